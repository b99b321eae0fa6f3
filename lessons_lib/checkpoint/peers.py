"""A copy of each rank's state in the memory of a neighbour: one lost rank comes back without the disk (lesson 21)."""

import json

import safetensors.torch
import torch

from ..errors import check_whole
from ..parallel.objects import share_objects
from ..parallel.wrapped import check_communicator
from .packing import pack, unpack
from .randomness import random_state, set_random_state
from .strategies import put, take


class PeerCopies:
    """Keeps of each rank's state a copy in this rank's memory and one in that of the next rank.

        comm = comm.regroup()  # after a RankLost; a replacement begins here, with PeerCopies of its own
        state = {"model": net, "optimizer": optimizer}  # made for the new communicator
        step = copies.load(state, comm)

    `state` is a dict of names to objects with `state_dict()` and `load_state_dict()`, or to plain values, as in
    `Checkpoints`. The random generators are kept too.

    Args:
        comm: `Communicator` of an elastic launch.

    Communication: a save sends each rank's state once, to the next rank; a load sends it to replacements alone.

    Memory: of the last two saves the own state and the neighbour's: one that a death has cut short leaves the last.

    Source: Wang et al., Gemini (2023), §4; lesson 21.
    """

    def __init__(self, comm):
        check_communicator(comm)
        self.comm, self._saves = comm, {}  # step -> {number in the launch: bytes}

    def save(self, step, state):
        """Copy `state`, as that of `step`. All ranks call it together.

        Raises:
            ValueError: the ranks save other steps or names; `step` is no whole number of at least 0.
            TypeError: something cannot be kept, which is named.
            RankLost: a rank has died; the copies of before stay.
        """
        check_whole("step", step, 0)
        told = share_objects(self.comm, (step, sorted(state)))
        if any(each != told[0] for each in told):
            raise ValueError(f"the ranks save {told}: the same step and the same names are needed")
        own = _as_bytes(state)
        held = {self._number(self.comm.rank): own}
        if self.comm.world_size > 1:
            before = (self.comm.rank - 1) % self.comm.world_size
            held[self._number(before)] = self._exchange(own, before)
        self._saves[step] = held
        self.comm.barrier()  # now all have it
        self._saves = {each: held for each, held in self._saves.items() if each in sorted(self._saves)[-2:]}

    def _number(self, rank):
        return self.comm.ranks[rank]

    def _exchange(self, own, before):
        """Send the own bytes to the next rank; those of the rank before."""
        theirs = torch.empty(share_objects(self.comm, len(own))[before], dtype=torch.uint8)
        sent = self.comm.isend(own, (self.comm.rank + 1) % self.comm.world_size)
        self.comm.recv(theirs, before)
        sent.wait()
        return theirs

    def load(self, state, comm=None):
        """Let all objects in `state` go on from the newest save of which a copy of each rank lives.

        All ranks call it together. What a rank alone had that is gone without a replacement is not asked for.

        Args:
            comm: the communicator that `regroup()` gave, which is the one from now on.

        Returns:
            Its step, or None if nothing was saved. Plain values are put into `state`.

        Raises:
            RuntimeError: more ranks are lost than the copies cover; names one of which no copy is left.
        """
        self.comm = self.comm if comm is None else comm
        told = share_objects(self.comm, {step: sorted(held) for step, held in self._saves.items()})
        steps = sorted({step for each in told for step in each}, reverse=True)
        missing = None
        for step in steps:
            holders = {number: rank for rank, each in enumerate(told) for number in each.get(step, [])}
            holders |= {n: rank for rank, n in enumerate(self.comm.ranks) if n in told[rank].get(step, [])}
            lacks = [number for number in self.comm.ranks if number not in holders]
            if not lacks:
                self._put(step, state, holders)
                return step
            missing = missing or (step, lacks[0])
        # A replacement that the others have left alone must not begin anew: what it replaces had begun.
        if missing is None and all(share_objects(self.comm, self.comm.restart_count > 0)):
            raise RuntimeError("no copy of any rank is left: all ranks here are replacements")
        if missing:
            raise RuntimeError(f"no copy of rank {missing[1]} at step {missing[0]} is left: its neighbour is lost too")
        return None

    def _put(self, step, state, holders):
        held = self._saves.get(step, {})
        sizes = share_objects(self.comm, {number: len(data) for number, data in held.items()})
        for rank, number in enumerate(self.comm.ranks):
            holder = holders[number]
            if holder != rank and self.comm.rank == holder:
                self.comm.send(held[number], rank)
            elif holder != rank and self.comm.rank == rank:
                held[number] = torch.empty(sizes[holder][number], dtype=torch.uint8)
                self.comm.recv(held[number], holder)
        self._saves = {step: held}
        _from_bytes(held[self._number(self.comm.rank)], state)


def _as_bytes(state):
    """A state as one tensor of bytes: safetensors, with the plain values as JSON in its header."""
    kept = {name: take(name, state) for name in state}
    tensors, values = pack({"kept": kept, "random": random_state()}, "all")
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save({**tensors, "values": _text(json.dumps(values))})
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _text(text):
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _from_bytes(data, state):
    tensors = safetensors.torch.load(bytes(data.numpy()))
    values = json.loads(bytes(tensors.pop("values").numpy()))
    everything = unpack({**tensors, **values}, "all")
    for name in state:
        put(name, state, everything["kept"][name])
    set_random_state(everything["random"])
