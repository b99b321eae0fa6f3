"""Linear layers whose weights, and if calibrated whose inputs, are int8 (lesson 24)."""

import copy

import torch
from torch import nn
from torch.nn import functional

from .quantize import quantize


class Int8Linear(nn.Module):
    """What a trained `nn.Linear` computes, with int8 weights: y = x Wᵀ + b. For answering, not for training.

    Without `largest_input` the weights are made float again in each call: fewer bytes, no less work. With it the
    inputs are rounded too, and the product is one of whole numbers, added up in 32 bits.

    Args:
        linear: the layer, left as it is.
        per_channel: a scale for each output; False: one for all.
        largest_input: what input 127 stands for, as `calibrate` gives it; None leaves inputs as they are.

    Raises:
        TypeError: `linear` is no `nn.Linear`.
    """

    def __init__(self, linear, per_channel=True, largest_input=None):
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is a {type(linear).__name__}: an nn.Linear is needed")
        weight = quantize(linear.weight.detach(), dim=0 if per_channel else None)
        self.register_buffer("values", weight.values)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        largest = None if largest_input is None else weight.scale.new_tensor(float(largest_input))
        self.register_buffer("largest_input", largest)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x):
        """(…, in) to (…, out)."""
        if self.largest_input is None:
            return functional.linear(x, (self.values * self.scale).to(x.dtype), self.bias)
        rounded = quantize(x, largest=self.largest_input)
        rows = rounded.values.reshape(-1, self.in_features)
        sums = torch._int_mm(rows, self.values.T) if len(rows) else rows.new_zeros(0, self.out_features)
        y = sums * (rounded.scale * self.scale.flatten())
        y = y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self):
        inputs = "float inputs" if self.largest_input is None else f"inputs to ±{self.largest_input.item():.3g}"
        return f"{self.in_features}, {self.out_features}, {inputs}"


def calibrate(module, batches, share=1.0):
    """Find out how large the inputs of each `nn.Linear` get on typical data.

    Args:
        module: any module, left as it is; run in eval mode, without gradients.
        batches: an iterable of its inputs.
        share: of the inputs' magnitudes in each batch, the quantile that counts; below 1 a few outliers are cut off.

    Returns:
        {name of the layer: the largest |input|}, for `quantize_linears`.

    Raises:
        ValueError: `share` is not above 0 and at most 1, or there is no batch.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r}: a number above 0 and at most 1 is needed")
    largest, was_training = {}, module.training

    def watch(name):
        def note(layer, inputs):
            found = inputs[0].detach().abs().flatten().float()
            found = found.max() if share == 1 else found.kthvalue(max(1, round(share * found.numel()))).values
            largest[name] = max(largest.get(name, 0.0), found.item())

        return note

    linears = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in linears]
    try:
        module.eval()
        with torch.no_grad():
            num_batches = sum(1 for batch in batches if module(batch) is not None)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    if not num_batches:
        raise ValueError("batches: at least one is needed")
    return largest


def quantize_linears(module, per_channel=True, largest_inputs=None, skip=()):
    """A copy of `module` whose `nn.Linear`s are `Int8Linear`s.

    Args:
        module: left as it is. A module that is an `nn.Linear` itself gives an `Int8Linear`.
        per_channel: as in `Int8Linear`.
        largest_inputs: from `calibrate`: inputs are rounded too. None: weights only.
        skip: names of layers that stay float, often the first and the last. A weight that another layer shares stays
            float too, as with a tied table of tokens.

    Raises:
        ValueError: calibration has not seen a layer, or `skip` names none.
    """
    linears = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    if unknown := set(skip) - set(linears):
        raise ValueError(f"skip={sorted(unknown)}: names of linear layers are needed, of {list(linears)}")
    users = [id(p) for layer in module.modules() for p in layer.parameters(recurse=False)]
    chosen = {n: layer for n, layer in linears.items() if n not in skip and users.count(id(layer.weight)) == 1}
    if largest_inputs is not None and (missing := set(chosen) - set(largest_inputs)):
        raise ValueError(f"largest_inputs has no {sorted(missing)}: every layer has to be seen by calibrate")
    made = {
        n: Int8Linear(x, per_channel, None if largest_inputs is None else largest_inputs[n]) for n, x in chosen.items()
    }
    if "" in made:
        return made[""]
    smaller = copy.deepcopy(module)
    for name, layer in made.items():
        smaller.set_submodule(name, layer)
    return smaller
