"""Cutting a list of layers into the stages of a pipeline (lesson 16)."""

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from ..errors import check_whole


def split_layers(layers, num_stages):
    """Cut layers into stages of nearly equal numbers of layers, the longer ones last.

    A layer keeps its number among all layers as its name: in state dicts it is called alike however many stages there
    are, and as in `nn.Sequential(*layers)`.

    Args:
        layers: a list of modules, such as `GPT(...).stages()`, or an `nn.Sequential`.
        num_stages: how many stages.

    Returns:
        A list of `nn.Sequential`.

    Raises:
        ValueError: there are more stages than layers.
    """
    layers = list(layers)
    check_whole("num_stages", num_stages, 1)
    if num_stages > len(layers):
        raise ValueError(f"num_stages={num_stages}: at most {len(layers)} are possible, the number of layers")
    cuts = [number * len(layers) // num_stages for number in range(num_stages + 1)]
    named = [(str(number), layer) for number, layer in enumerate(layers)]
    return [nn.Sequential(OrderedDict(named[start:stop])) for start, stop in pairwise(cuts)]
