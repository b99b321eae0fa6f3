"""What goes into a checkpoint and who writes it; and what each rank takes out again (lesson 21)."""

import hashlib

import torch

from ..parallel.objects import share_objects
from .packing import pack, unpack
from .randomness import random_state, set_random_state
from .strategies import put, take

RANDOM = "random"


def entries_of(state):
    """{name: tensor}, {name: plain value} of all that is in `state`, and of the random generators.

    Raises:
        TypeError, ValueError: something cannot be kept, which is named.
    """
    tensors, values = pack(random_state(), RANDOM)
    for name in state:
        if not isinstance(name, str) or "/" in name or name == RANDOM:
            raise ValueError(f"state has the name {name!r}: a text without a slash that is not {RANDOM!r} is needed")
        more_tensors, more_values = pack(take(name, state), name)
        tensors |= more_tensors
        values |= more_values
    return tensors, values


def divide(comm, kept):
    """Who writes what: what all ranks have alike is written once, what differs by each of them.

    Args:
        comm: `Communicator`.
        kept: what `entries_of` gave.

    Returns:
        The names of what this rank writes; of what some ranks alone have, {name: these ranks}.
    """
    if comm.world_size == 1:
        return [name for part in kept for name in part], {}
    told = share_objects(comm, {name: digest(value) for part in kept for name, value in part.items()})
    names = dict.fromkeys(name for each in told for name in each)
    ours, some = [], {}
    for name in names:
        holders = [rank for rank, each in enumerate(told) if name in each]
        is_common = len({told[rank][name] for rank in holders}) == 1
        if comm.rank == holders[0] or (comm.rank in holders and not is_common):
            ours.append(name)
        if len(holders) < comm.world_size:
            some[name] = holders
    return ours, some


def digest(value):
    """Of a tensor or a plain value: equal ones have equal digests."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        about = f"{value.dtype} {tuple(value.shape)}"
    else:
        data, about = repr(value).encode(), "value"
    return about + hashlib.sha256(data).hexdigest()  # processors have instructions for it


def put_into(state, comm, step, about, every):
    """Put what all ranks have kept into the objects of `state`.

    Args:
        state: {name: object or plain value}.
        comm: `Communicator`.
        step, about, every: of the checkpoint: its step, what its manifest says, and {name: value} of each rank.

    Raises:
        KeyError: a name was not saved.
        ValueError: what differs between ranks was saved by another number of them.
    """
    is_resized = about["world_size"] != comm.world_size
    entries = _merged(every, None if is_resized else comm.rank)
    own = {name for name in entries if sum(name in each for each in every) > 1 and name.split("/")[0] != RANDOM}
    if is_resized and own:
        raise ValueError(
            f"{min(own)} of step {step} differs between the {about['world_size']} ranks that saved it: as many are "
            f"needed, here are {comm.world_size}"
        )
    some = about["held_by_some"]
    if not is_resized:
        entries = {name: value for name, value in entries.items() if comm.rank in some.get(name, [comm.rank])}
    for name in state:
        _put(state, name, entries, set(some) if is_resized else set())
    if not is_resized or comm.rank < about["world_size"]:
        set_random_state(unpack(_merged(every, comm.rank), RANDOM))


def _put(state, name, entries, some):
    kept = {key: value for key, value in entries.items() if key == name or key.startswith(name + "/")}
    if not kept:
        raise KeyError(f"{name!r} was not saved: there are {', '.join(sorted({key.split('/')[0] for key in entries}))}")
    target = state[name]
    if isinstance(target, torch.nn.Module) and some & set(kept):  # such as stages that lay on other ranks
        wanted = set(pack(target.state_dict(), name)[0])
        kept = {key: value for key, value in kept.items() if key not in some or key in wanted}
    put(name, state, unpack(kept, name))


def _merged(every, rank):
    """{name: value}: this rank's own where there are several; in the order in which they were kept."""
    entries = {}
    for each in every:
        entries |= {name: value for name, value in each.items() if name not in entries}
    return entries if rank is None else {**entries, **every[rank]}
