"""Where the bytes of training go: parameters counted from a description, bytes by rule, and tensors metered."""

import contextlib
import weakref
from numbers import Integral

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PARAMETERS = {
    "linear": lambda inputs, outputs, bias=True: (inputs + bool(bias)) * outputs,
    "conv": lambda inputs, outputs, k, bias=True: (inputs * k * k + bool(bias)) * outputs,
    "norm": lambda width: 2 * width,
    "embedding": lambda rows, width: rows * width,
}
RECIPES = {
    "float32 sgd": {"parameters": 4, "gradients": 4},
    "float32 adam": {"parameters": 4, "gradients": 4, "first moments": 4, "second moments": 4},
    "mixed adam": {"parameters": 2, "gradients": 2, "master weights": 4, "first moments": 4, "second moments": 4},
}
RECIPES["mixed adam, float32 gradients"] = {**RECIPES["mixed adam"], "gradients": 4}


def num_parameters(layers):
    """Count the parameters of a model that is described as a list of layers (lesson 08).

    Args:
        layers: tuples ("linear", inputs, outputs) or ("conv", channels in, channels out, k), both with False at the
            end for no bias; ("norm", width) for batch and layer norms; ("embedding", rows, width). A layer that is
            shared stands in the list once.

    Raises:
        ValueError: a layer is none of these.
    """
    return sum(map(_parameters_of, layers))


def _parameters_of(layer):
    kind, *sizes = layer
    if kind in _PARAMETERS and all(isinstance(size, Integral) and size >= 0 for size in sizes):
        with contextlib.suppress(TypeError):  # too few sizes, or too many
            return _PARAMETERS[kind](*sizes)
    raise ValueError(f"a layer is one of {', '.join(_PARAMETERS)} and its sizes, such as ('norm', 64); not {layer!r}")


def resnet(blocks=(3, 4, 6, 3), num_classes=1000):
    """List the layers of a ResNet of bottleneck blocks (lesson 08).

    Convolutions have no bias, and each is followed by a batch norm.

    Args:
        blocks: how many blocks each stage has. The default is 50 layers deep, and (3, 4, 23, 3) is 101 deep.
        num_classes: the length of the output.

    Source: He et al. (2016), table 1.
    """
    layers, width = [("conv", 3, 64, 7, False), ("norm", 64)], 64
    for stage, repeats in enumerate(blocks):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        for block in range(repeats):
            shapes = [(width, inner, 1), (inner, inner, 3), (inner, outer, 1)]
            shapes += [(width, outer, 1)] * (block == 0)  # the shortcut, where the shape changes
            for inputs, outputs, k in shapes:
                layers += [("conv", inputs, outputs, k, False), ("norm", outputs)]
            width = outer
    return [*layers, ("linear", width, num_classes)]


def transformer(num_layers, width, vocabulary, context, segments=0):
    """List the layers of a GPT or, with 2 segments, of a BERT (lesson 08).

    A block is attention and then a hidden layer of 4 · width. The output shares the token embedding.

    Args:
        num_layers: the number of blocks.
        width: the length of the vector of a token.
        vocabulary: the number of different tokens.
        context: the length of the longest sequence; every position in it has an embedding.
        segments: how many kinds of segment BERT tells apart. BERT also has a norm after its embeddings instead of at
            the end, and a "pooler" on top.

    Source: Radford et al. (2019), section 2.3; Devlin et al. (2019), section 3.
    """
    attention = [("linear", width, width)] * 4  # query, key, value, output
    block = [*attention, ("linear", width, 4 * width), ("linear", 4 * width, width), *[("norm", width)] * 2]
    embeddings = [("embedding", rows, width) for rows in (vocabulary, context, segments)]
    pooler = [("linear", width, width)] * bool(segments)
    return [*embeddings, *block * num_layers, ("norm", width), *pooler]


def training_bytes(num_parameters, recipe="mixed adam"):
    """Predict the bytes of everything whose size is a multiple of the number of parameters (lesson 08).

    Args:
        num_parameters: how many parameters the model has.
        recipe: a key of `RECIPES`, which lists the bytes per parameter; "mixed adam" takes 2 + 2 + 4 + 4 + 4 = 16.

    Returns:
        {what: bytes}. Activations and buffers come on top.

    Raises:
        ValueError: `recipe` is unknown.

    Source: Rajbhandari et al. (2020), "ZeRO", section 3.1.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe={recipe!r}: one of {', '.join(map(repr, RECIPES))} is needed")
    return {what: size * num_parameters for what, size in RECIPES[recipe].items()}


def activation_bytes(num_layers, width, heads, context, batch=1, recompute="nothing"):
    """Predict the bytes that the blocks of a transformer keep for the backward pass (lesson 08).

    Numbers have 16 bits, there is dropout, and embeddings and the output are left out.

        L · s · b · h · (34 + 5 · a · s / h)     with L blocks, s tokens, b samples, width h, a heads

    Args:
        num_layers, width, heads, context, batch: L, h, a, s and b.
        recompute: "nothing"; "attention", which drops the term with a, the matrices of scores; or "all", which keeps
            only the inputs of the blocks, 2 · L · s · b · h.

    Raises:
        ValueError: `recompute` is another word.

    Source: Korthikanti et al. (2023), sections 4.1 and 5.
    """
    bytes_each = {"nothing": 34 + 5 * heads * context / width, "attention": 34, "all": 2}
    if recompute not in bytes_each:
        raise ValueError(f"recompute={recompute!r}: one of {', '.join(map(repr, bytes_each))} is needed")
    return round(num_layers * context * batch * width * bytes_each[recompute])


class Meter(TorchDispatchMode):
    """Count the bytes of every tensor that is made inside `with Meter(...) as meter:`, until it is freed (lesson 08).

    Memory is counted once, however many tensors (views) look at it. What a single operation allocates and frees inside
    itself is not seen.

    Args:
        tensors: tensors that are there already and count too.

    Attributes:
        now: how many bytes are alive.
        peak: the most that were alive at any time.
        curve: a list of `now` after each operation.
    """

    def __init__(self, *tensors):
        super().__init__()
        self.now = self.peak = 0
        self.curve, self._alive = [], set()
        for tensor in tensors:
            self._watch(tensor)

    def _watch(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
            self.peak = max(self.peak, self.now)

    def _freed(self, address, size_bytes):
        self._alive.discard(address)
        self.now -= size_bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor):
                self._watch(each)
        self.curve.append(self.now)
        return out
