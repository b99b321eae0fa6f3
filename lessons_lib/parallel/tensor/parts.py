"""Parameters of which this rank holds a part, and the whole state that the ranks hold together (lesson 15)."""

from collections import OrderedDict
from typing import NamedTuple

import torch

from ..copies import is_piece, lies_on
from ..sharded.sharded_state import ShardedState
from .conjugate import all_gathered, bounds


class Part(NamedTuple):
    """What a parameter is a part of; a copy of it in a file or in another process is a plain tensor.

    Attributes:
        comm: the ranks that hold the whole one together.
        dim: along which dimension it is cut.
        size: of the whole one, along that dimension.
    """

    comm: object
    dim: int
    size: int

    def __reduce__(self):
        return OrderedDict, ()  # one of the few kinds that torch.load takes from any file


def cut_parameter(parameter, comm, dim):
    """Keep this rank's part of `parameter` along `dim`, in the same object. One that is cut already stays as it is."""
    if part_of(parameter) is None:
        parameter._part = Part(comm, dim, parameter.shape[dim])
        parameter.data = parameter.data.narrow(dim, *bounds(parameter.shape[dim], comm)).clone()
        parameter.grad = None
        lies_on(parameter, comm)


def part_of(parameter):
    """The `Part` of a parameter that is cut, or None."""
    return getattr(parameter, "_part", None) or None


def whole_size(parameter):
    """How long a cut parameter would be along the dimension of the cut."""
    return part_of(parameter).size


def check_part(parameter, value, written_by, name):
    """What of a saved `value` belongs into `parameter`: all of it if it is this rank's part, or its own part.

    Args:
        written_by: (rank, world_size) of the part, if one was saved; None: the whole.

    Raises:
        ValueError: it is the part of another rank.
    """
    if (part := part_of(parameter)) is None:
        return value
    comm, dim, size = part
    if written_by is not None:
        if tuple(written_by) != (comm.rank, comm.world_size):
            rank, world_size = written_by
            raise ValueError(
                f"{name} is the part of rank {rank} of {world_size}, this is rank {comm.rank} of {comm.world_size}: "
                "save full_state_dict(module), which fits any number of ranks"
            )
        return value
    fits = value.dim() == parameter.dim() and value.shape[dim] == size
    return value.narrow(dim, *bounds(size, comm)) if fits else value


@torch.no_grad()
def full_state_dict(module):
    """The state that `module` would have in one process, on every rank. All ranks call it together.

    It loads into the unsplit module, and by `load_state_dict` into one that is split over any number of ranks.

    Communication: one all-gather of each parameter that is cut.
    """
    state, gathered = OrderedDict(module.state_dict()), {}
    for name, parameter in _named_as_in_state(module):
        if name in state and part_of(parameter) is not None:
            if id(parameter) not in gathered:
                gathered[id(parameter)] = whole_of(state[name], parameter)
            state[name] = gathered[id(parameter)]
    return state


def _named_as_in_state(module):
    """Pairs of a name in `module.state_dict()` and the parameter; a `FullySharded` leaves no trace in names."""
    wrapped = [name for name, each in module.named_modules() if isinstance(each, ShardedState)]
    left_out = [f"{name}.module." if name else "module." for name in wrapped]
    for name, parameter in module.named_parameters(remove_duplicate=False):
        for start in left_out:
            if name.startswith(start):
                name = start.removesuffix("module.") + name.removeprefix(start)
        yield name, parameter


def whole_of(tensor, parameter):
    """All ranks' parts of a tensor that is cut as `parameter` is."""
    comm, dim, size = part_of(parameter)
    return all_gathered(tensor, comm, dim, size)


@torch.no_grad()
def full_optimizer_state_dict(optimizer):
    """The state that `optimizer` would have in one process, on every rank. All ranks call it together.

    Raises:
        ValueError: it steps pieces of a `FullySharded`, which puts them together itself.

    Communication: one all-gather of each tensor of the state that belongs to a parameter that is cut.
    """
    return _mapped(optimizer, optimizer.state_dict(), lambda value, p: whole_of(value, p))


@torch.no_grad()
def load_full_optimizer_state_dict(optimizer, state):
    """Load what `full_optimizer_state_dict`, or an optimiser of one process, has given: each rank takes its parts."""

    def own(value, parameter):
        comm, dim, size = part_of(parameter)
        return value.narrow(dim, *bounds(size, comm)).clone()

    optimizer.load_state_dict(_mapped(optimizer, state, own))


def _mapped(optimizer, state, change):
    """`state` with `change(tensor, parameter)` in the place of what is cut as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if any(is_piece(parameter) for parameter in parameters):
        raise ValueError("optimizer steps pieces of a FullySharded: net.optimizer_state_dict(optimizer) is needed")
    changed = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if part_of(parameter) is not None and number in changed:
            own = changed[number]
            cut = [name for name, value in own.items() if isinstance(value, torch.Tensor) and value.dim()]
            # A change may be a collective, and a state that was loaded may have its names in another order elsewhere.
            changed[number] = {**own, **{name: change(own[name], parameter) for name in sorted(cut)}}
    return {**state, "state": changed}
