"""How many samples a gradient is the mean over: counted in forward passes, bound to their outputs (lesson 12)."""

import inspect
import math
import weakref
from collections.abc import Mapping
from numbers import Real

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map_only

from ..hooks import Hook, remove
from ..weighed import note_weighed
from .weights import agree_on_weights, total_counts


class Forward:
    """One forward pass. The graph of its outputs holds it, and tells `reducer` when a backward pass comes there.

    Attributes:
        counts: how many samples there were; several numbers if the arguments leave that open.
        is_synced: whether the gradients are to be averaged.
    """

    __slots__ = ("_is_known", "_reducer", "counts", "is_synced")

    def __init__(self, reducer, counts, is_known):
        self._reducer, self.counts, self.is_synced = weakref.ref(reducer), counts, reducer.is_synced
        self._is_known = is_known

    def bind(self, output):
        """Hook the nodes of the graph that computed the tensors in `output`. That changes no value and no gradient."""
        nodes = set()
        for tensor in [output] if isinstance(output, torch.Tensor) else tensors_in(output):
            tensor = tensor.data if isinstance(tensor, PackedSequence) else tensor
            nodes.add(tensor.grad_fn)
            if tensor._base is not None:  # a view that is changed in place gets another node, its base keeps its own
                nodes.add(tensor._base.grad_fn)
        nodes.discard(None)
        for node in nodes:
            node.register_prehook(self)
        if (reducer := self._reducer()).weight_by_batch:
            note_weighed(nodes, reducer.comm)

    def __call__(self, gradients):
        reducer = self._reducer()
        if reducer is None:
            raise RuntimeError(
                "backward() through the output of a DataParallel that is gone: keep it until backward() has returned"
            )
        if not self._is_known:
            raise RuntimeError(
                "the parameters of net.module have changed since it was wrapped: call net(...), on all ranks, which "
                "takes them over"
            )
        reducer.reached(self)


class SampleCounter:
    """Watches the forward passes of `module`, also those past the wrapper, and binds their counts to the outputs.

    Args:
        module: the wrapped module.
        reducer: who is told of a forward pass when a backward pass comes to its outputs.
        batch_dim: the dimension that counts samples.

    Attributes:
        given: the count that the caller of the wrapper has given for the forward pass under way, or None.
        is_checked: whether the forward pass under way goes through the wrapper, which sees to it that all is watched.
        shards: the `Communicator` over which the module weighs its gradients by itself, or None.
    """

    def __init__(self, module, reducer, batch_dim):
        self._reducer, self._batch_dim = reducer, batch_dim
        self.given, self.is_checked, self.shards = None, False, None
        self._handles = [module.register_forward_hook(Hook(self, SampleCounter._bind), with_kwargs=True)]

    def __del__(self):
        self.release()

    def release(self):
        """Let go of the module."""
        remove(self._handles)

    def _bind(self, module, args, kwargs, output):
        if not torch.is_grad_enabled() or self._reducer.is_released:
            return None
        is_known = self.is_checked or self._reducer.trains_all(module)
        mixes_ranks = self._reducer.weight_by_batch and any(hasattr(layer, "mixes_ranks") for layer in module.modules())
        counts = self._count(args, kwargs, mixes_ranks)
        if self.shards is not None:
            counts = total_counts(counts, self.shards, self._reducer.comm)
        if mixes_ranks:
            output, counts = weigh_outputs(output, counts, self._reducer.comm), (1,)
        Forward(self._reducer, counts, is_known).bind(output)
        return output

    def _count(self, args, kwargs, counts_tokens):
        if not self._reducer.weight_by_batch:
            return (1,)
        if self.given is not None:
            return (self.given,)
        counts = tuple(dict.fromkeys(batch_sizes((args, kwargs), self._batch_dim, 1 + counts_tokens)))
        if not counts:
            raise ValueError(
                f"forward was given no tensor with a dimension {self._batch_dim}: how many samples there are is "
                "needed, as weight=n"
            )
        return counts


def takes_weight(module):
    """Whether the module's own forward has an argument `weight`, which is then its own and no count."""
    return "weight" in inspect.signature(module.forward).parameters


def checked_weight(weight):
    """`weight` as a number."""
    if isinstance(weight, torch.Tensor) and weight.numel() == 1:
        weight = weight.item()
    if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= weight < math.inf:
        raise ValueError(f"weight={weight!r}: a number of samples or tokens, 0 or more, is needed")
    return weight


def weigh_outputs(output, counts, comm):
    """`output` with a graph whose gradients are N n_k / Σ n_k times as long, so that ranks can be averaged plainly.

    Where tokens or keys of other ranks pass through this one, its gradients hold parts of all ranks' losses: each loss
    has to be weighed by its own n_k, before the backward pass and not after it.
    """
    total = torch.tensor([float(counts[0]), len(counts) > 1], dtype=torch.float64, device=comm.device)
    comm.all_reduce(total)
    num_samples, unclear = total.tolist()
    if unclear:
        agree_on_weights(counts, comm)
    factor = comm.world_size * counts[0] / (num_samples or 1.0)

    def weighed(tensor):
        if not tensor.requires_grad:
            return tensor
        # A view: gradients that come to the tensor by way of another output are weighed there.
        view = tensor.view_as(tensor)
        view.register_hook(lambda gradient: gradient * factor if factor else torch.zeros_like(gradient))
        return view

    tensors = [each for each in tensors_in(output) if isinstance(each, torch.Tensor) and each.requires_grad]
    found = []
    weighed_output = tree_map_only(torch.Tensor, lambda tensor: found.append(tensor) or weighed(tensor), output)
    if not {id(tensor) for tensor in tensors} <= {id(tensor) for tensor in found}:
        kind = type(output).__name__
        raise TypeError(f"the module's output is a {kind}: tensors, or lists, tuples and dicts of them, are needed")
    return weighed_output


def batch_sizes(value, batch_dim, num_dims=1):
    """Of every tensor in `value` that has them, the product of `num_dims` dimensions from `batch_dim` on."""
    sizes = []
    for tensor in tensors_in(value):
        if isinstance(tensor, PackedSequence):
            sizes.append(int(tensor.batch_sizes[0]))
        elif tensor.dim() >= batch_dim + num_dims:
            sizes.append(math.prod(tensor.shape[batch_dim : batch_dim + num_dims]))
    return sizes


def tensors_in(value, depth=6):
    """Every tensor and packed sequence in `value`: in containers, data classes and the like, down to `depth`."""
    if isinstance(value, torch.Tensor | PackedSequence):
        return [value]
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    else:  # functions, classes and modules are not data
        parts = () if callable(value) else getattr(value, "__dict__", {}).values()
    return [tensor for part in parts for tensor in tensors_in(part, depth - 1)] if depth else []
