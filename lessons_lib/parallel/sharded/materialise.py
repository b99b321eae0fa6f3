"""Modules on the meta device get memory and first numbers, one unit at a time (lesson 14)."""

import torch
from torch import nn


@torch.no_grad()
def materialise(unit, found, initialise, device):
    """Give the parameters and buffers of a unit that are on the meta device memory and numbers.

    Args:
        unit, found: a unit, and all of them, as `find_units` gives them.
        initialise: gives a layer its numbers; its own `reset_parameters()` if None.
        device: where they shall be.

    Returns:
        The unit's [(owner, name, parameter), ...] as they are now.

    Raises:
        ValueError: a layer cannot be initialised.
    """
    fresh, owners = {}, []
    for owner, name, parameter in found[unit]:
        if parameter.is_meta:
            if parameter not in fresh:
                memory = torch.empty_like(parameter, device=device)
                fresh[parameter] = nn.Parameter(memory, requires_grad=parameter.requires_grad)
            owner._parameters[name] = fresh[parameter]
            owners.append(owner)
    for owner in _inside(unit, found):
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_meta:
                owner._buffers[name] = torch.empty_like(buffer, device=device)
                owners.append(owner)
    for owner in dict.fromkeys(owners):
        if any(parameter.is_meta for parameter in owner.parameters(recurse=False)):
            raise ValueError(
                f"a {type(owner).__name__} on the meta device has parameters in two units: name other ones"
            )
        own = getattr(owner, "reset_parameters", getattr(owner, "_reset_parameters", None))  # MultiheadAttention's
        if initialise is None and own is None:
            raise ValueError(
                f"a {type(owner).__name__} on the meta device has no reset_parameters(): initialise=fn is needed, "
                "which is called with it"
            )
        initialise(owner) if initialise is not None else own()
    return [(owner, name, owner._parameters[name]) for owner, name, _ in found[unit]]


def _inside(module, units):
    """The modules within a unit that lie in no other one."""
    yield module
    for child in module.children():
        if child not in units:
            yield from _inside(child, units)
