"""Weights left out: small ones set to zero, or whole units taken away (lesson 24)."""

import copy

import torch
from torch import nn

from ..errors import check_whole


def prune(module, share):
    """Set the smallest weights of all linear and convolution layers to 0, in place, by one threshold for all of them.

    The shapes stay, and so does the time: a product with a 0 takes as long as any other.

    Args:
        module: changed in place. Biases stay, and so do other layers.
        share: of these weights, how many become 0: at least 0 and at most 1.

    Returns:
        {name of the weight: bool mask, True where it is kept}. Multiply gradients or weights by it to train on.

    Raises:
        ValueError: `share` is outside, or there is no such layer.

    Source: Han et al., Learning both Weights and Connections (2015), §3.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share!r}: a number from 0 to 1 is needed")
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = {f"{n}.weight".lstrip("."): m.weight for n, m in module.named_modules() if isinstance(m, layers)}
    if not found:
        raise ValueError("module has no linear layer and no convolution: nothing to prune")
    sizes = torch.cat([weight.detach().abs().flatten() for weight in found.values()])
    dropped = torch.zeros(len(sizes), dtype=torch.bool)
    dropped[sizes.argsort(stable=True)[: round(share * len(sizes))]] = True
    parts = dropped.split([weight.numel() for weight in found.values()])
    masks = {n: ~part.view(weight.shape) for (n, weight), part in zip(found.items(), parts, strict=True)}
    with torch.no_grad():
        for name, weight in found.items():
            weight.mul_(masks[name])
    return masks


def drop_units(first, second, keep):
    """Two linear layers with fewer units between them: those whose weights matter most stay. Smaller shapes, less time.

    A unit's weight is the norm of what comes in, its row of `first` and its bias, times that of what goes out, its
    column of `second`: with ReLU between them, scaling one up and the other down changes neither the product nor the
    function.

    Args:
        first, second: `nn.Linear` of (units, in) and (out, units), left as they are; between them a function of each
            unit alone.
        keep: how many units stay, at least 1.

    Returns:
        (first, second), new layers of (keep, in) and (out, keep).

    Raises:
        ValueError: `keep` is outside, or the layers do not fit together.

    Source: Li et al., Pruning Filters for Efficient ConvNets (2017), §3, for convolutions and the L1 norm.
    """
    units = first.out_features
    check_whole("keep", keep, 1)
    if keep > units or second.in_features != units:
        raise ValueError(
            f"keep={keep!r} of {units} units, and second takes {second.in_features}: at most as many as there are, and "
            "as many inputs as first has outputs, are needed"
        )
    with torch.no_grad():
        entering = first.weight if first.bias is None else torch.cat([first.weight, first.bias[:, None]], dim=1)
        matters = entering.norm(dim=1) * second.weight.norm(dim=0)
        kept = matters.argsort(descending=True, stable=True)[:keep].sort().values
        return _with(first, first.weight[kept], first.bias, kept), _with(second, second.weight[:, kept], second.bias)


def _with(linear, weight, bias, kept=slice(None)):
    """A copy of `linear` with another weight and part of its bias."""
    smaller = copy.deepcopy(linear)
    smaller.out_features, smaller.in_features = weight.shape
    smaller.weight = nn.Parameter(weight.clone(), linear.weight.requires_grad)
    if bias is not None:
        smaller.bias = nn.Parameter(bias[kept].clone(), bias.requires_grad)
    return smaller


def sparsity(module):
    """The share of the numbers in all parameters that are 0."""
    numbers = [p.detach().flatten() for p in module.parameters()]
    total = sum(len(each) for each in numbers)
    return sum((each == 0).sum().item() for each in numbers) / total if total else 0.0
