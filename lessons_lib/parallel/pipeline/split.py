"""Cutting a list of layers into the stages of a pipeline, and a batch into its micro-batches (lesson 16)."""

from collections import OrderedDict
from itertools import accumulate, pairwise

import torch
from torch import nn

from ...errors import check_whole


def split_layers(layers, num_stages, lengths=None):
    """Cut layers into stages, of nearly equal numbers of layers, the longer ones last, or of given numbers.

    A layer keeps its number among all layers as its name: in state dicts it is called alike however many stages there
    are, and as in `nn.Sequential(*layers)`.

    Args:
        layers: a list of modules, such as `GPT(...).stages()`, or an `nn.Sequential`.
        num_stages: how many stages.
        lengths: how many layers each stage has, a list.

    Returns:
        A list of `nn.Sequential`.

    Raises:
        ValueError: there are more stages than layers, or `lengths` are not so many numbers whose sum is theirs.
    """
    layers = list(layers)
    check_whole("num_stages", num_stages, 1)
    if num_stages > len(layers):
        raise ValueError(f"num_stages={num_stages}: at most {len(layers)} are possible, the number of layers")
    if lengths is None:
        cuts = [number * len(layers) // num_stages for number in range(num_stages + 1)]
    else:
        cuts = [0, *accumulate(lengths)]
        if len(lengths) != num_stages or min(lengths) < 1 or cuts[-1] != len(layers):
            raise ValueError(
                f"lengths={lengths!r}: {num_stages} numbers from 1 on with the sum {len(layers)} are needed"
            )
    named = [(str(number), layer) for number, layer in enumerate(layers)]
    return [nn.Sequential(OrderedDict(named[start:stop])) for start, stop in pairwise(cuts)]


def split_batch(x, y, num_parts):
    """Cut a batch and its targets into micro-batches of equal size.

    Returns:
        {("activation", -1, part): rows of x}, and the same of y.

    Raises:
        TypeError: x or y is no tensor with rows.
        ValueError: their rows do not divide, those of y are no multiple of those of x, or one requires a gradient.
    """
    parts = _cut(x, num_parts, "x"), _cut(y, num_parts, "y")
    if len(y) % len(x):
        raise ValueError(f"y has {len(y)} rows: a multiple of the {len(x)} of x is needed")
    return parts


def _cut(batch, num_parts, name):
    """{("activation", -1, part): rows of the batch}."""
    if not isinstance(batch, torch.Tensor) or batch.dim() == 0:
        raise TypeError(f"{name} is a {type(batch).__name__}: a tensor with the batch along its rows is needed")
    if len(batch) == 0 or len(batch) % num_parts:
        raise ValueError(f"{name} has {len(batch)} rows: a multiple of the {num_parts} micro-batches is needed")
    if batch.requires_grad:
        raise ValueError(f"{name} requires a gradient, which would be lost: {name}.detach() is needed")
    return {("activation", -1, part): rows for part, rows in enumerate(batch.chunk(num_parts))}
