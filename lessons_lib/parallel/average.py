"""The mean of gradients over several axes of a mesh, for parameters that may be split over one of them (lesson 18)."""

from math import prod

import torch

from .averaged import averaged, note_averaged
from .copies import is_cut
from .flat import pack, unpack


@torch.no_grad()
def average_gradients(parameters, mesh, axes):
    """Make gradients of each rank's mean loss those of the mean over all ranks along `axes`.

    Along an axis over which a parameter is split (`lies_on`), as experts are, its gradient holds the sum over that axis
    already: there it is divided alone. Where no rank along an axis has a gradient, it stays None; where some have none,
    theirs counts as zero. All ranks call it together, once per step and axis, after all its backward passes.

    Args:
        parameters: this rank's parameters; the same along each of the axes.
        mesh: a `Mesh`.
        axes: names of axes along which the ranks have seen equally many samples or tokens.

    Raises:
        CollectiveMismatch: the ranks' parameters differ.
        ValueError: an axis that the mesh does not have.
        RuntimeError: the gradients are the mean over one of the axes already, and nothing was added since.

    Communication: for each axis of N > 1 ranks one all-reduce of one number per parameter, and one of the gradients of
    each dtype.

    Source: lesson 18.
    """
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    groups = [mesh[axis] for axis in axes]
    trained = [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]
    done = {parameter: averaged(parameter.grad) for parameter in trained if parameter.grad is not None}
    for axis in axes:
        if done and all(axis in note.axes for note in done.values()):
            raise RuntimeError(f"the gradients are the mean over {axis!r} already: average them once in a step")
    for group in groups:
        if group.world_size > 1:
            _add_up([parameter for parameter in trained if not is_cut(parameter, group)], group)
    num_ranks = prod(group.world_size for group in groups)
    for parameter in trained:
        if parameter.grad is not None:
            before = done.get(parameter, averaged(None))
            was_sum = before.was_sum or any(is_cut(parameter, group) for group in groups)
            parameter.grad.div_(num_ranks)
            note_averaged(parameter.grad, (*before.axes, *axes), was_sum)


def _add_up(parameters, group):
    """Add gradients over the ranks of a group."""
    if not parameters:
        return
    num_with = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=group.device)
    group.all_reduce(num_with)
    held = [parameter for parameter, number in zip(parameters, num_with.tolist(), strict=True) if number]
    for parameter in held:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in held]
    flats = pack(gradients)
    for flat in flats:
        group.all_reduce(flat)
    for gradient, total in zip(gradients, unpack(flats, gradients), strict=True):
        gradient.copy_(total)
