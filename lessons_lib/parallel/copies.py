"""On how many ranks a number lies: what a norm over all ranks has to know, so that it counts each number once."""

from collections import OrderedDict
from math import prod

from ..errors import check_whole


def lies_on(parameter, comm, copies=1):
    """Note that of the ranks of `comm` only `copies` hold each number of `parameter`: it is cut, or is not everywhere.

    A strategy says so of every parameter that it splits over `comm`, or that it leaves on some ranks only. Of all other
    parameters all ranks hold the same numbers.

    Args:
        parameter: a tensor; the note goes with this object.
        comm: the `Communicator` of one axis of the mesh. Of several notes for one axis the last one counts.
        copies: on how many of its ranks each number lies.

    Raises:
        ValueError: `copies` is not a number of ranks of `comm`.

    Source: lesson 18.
    """
    check_whole("copies", copies, 1)
    if copies > comm.world_size:
        raise ValueError(f"copies={copies}: at most {comm.world_size} are possible, the ranks of the group")
    notes = getattr(parameter, "_shares", {})
    parameter._shares = _Notes({**notes, comm: (copies, comm.world_size)})


def num_copies(parameter, world_size):
    """On how many of `world_size` ranks each number of `parameter` lies, by what `lies_on` has noted.

    Raises:
        ValueError: the parameter is split over groups whose sizes do not make up the world.
    """
    notes = getattr(parameter, "_shares", {}).values()
    copies = world_size * prod(copies for copies, _ in notes)
    groups = prod(size for _, size in notes)
    if copies % groups:
        raise ValueError(f"world_size={world_size}: a multiple of {groups} is needed, over which a parameter is split")
    return copies // groups


def is_cut(parameter, comm):
    """Whether some rank of `comm` holds other numbers of `parameter`, as far as `lies_on` has noted."""
    copies, num_ranks = getattr(parameter, "_shares", {}).get(comm, (1, 1))
    return copies < num_ranks


def is_cut_within(parameter, comm):
    """Whether some rank of `comm` holds other numbers of `parameter`, whatever group the parameter is split over."""
    notes = getattr(parameter, "_shares", {}).items()
    return any(copies < size and len({*group.ranks} & {*comm.ranks}) > copies for group, (copies, size) in notes)


def note_piece(parameter):
    """Note that a parameter is a rank's piece of a flat one, 1-D, whatever shape it had."""
    parameter._is_piece = True


def is_piece(parameter):
    return getattr(parameter, "_is_piece", False)


class _Notes(dict):
    """They belong to their rank: a copy of the parameter, in a file or in another process, comes without them."""

    def __reduce__(self):
        return OrderedDict, ()  # one of the few kinds that torch.load takes from any file
