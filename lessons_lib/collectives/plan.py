"""One rank's part in a schedule: what it gives, what it takes and whom it has to wait for, round by round."""

import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

from .schedule import chunk_bounds, transfers
from .verify import check_schedule


class Part(NamedTuple):
    """One transfer as its ranks see it.

    Attributes:
        peer: the other rank.
        slices: the places (start, stop) in the flat tensor, neighbouring chunks joined.
        numel: how many elements in all.
        op: "add" or "copy".
        queued_numel: how many elements the sender sends before and with this part in the same round.
    """

    peer: int
    slices: list
    numel: int
    op: str
    queued_numel: int


@dataclass
class Step:
    """One round for one rank.

    `readers` maps a rank to the number of rounds it must have ended before this rank may write what it takes here.
    """

    number: int
    outgoing: list = field(default_factory=list)
    incoming: list = field(default_factory=list)
    readers: dict = field(default_factory=dict)


@dataclass
class Plan:
    """All rounds of one rank.

    `readers`: the rounds that others must have ended before the tensor is free again. `peers`: whom it meets.
    """

    steps: list
    readers: dict
    peers: list


class Plans:
    """One rank's plans of the schedules that it runs, each made once."""

    def __init__(self, rank, world_size):
        self._rank, self._world_size = rank, world_size
        self._plans, self._checked = {}, []

    def of(self, schedule, numel):
        # The schedule is kept beside its plan, so that its id stays its own.
        key = id(schedule), numel
        if key not in self._plans:
            self._plans[key] = make_plan(schedule, self._rank, numel), schedule
        return self._plans[key][0]

    def checked(self, schedule):
        """The schedule, verified, and a number that tells it from others of its name."""
        for known in self._checked:
            if known[0] == schedule:
                return known
        check_schedule(schedule, self._world_size)
        self._checked.append((schedule, zlib.crc32(repr(schedule).encode())))
        return self._checked[-1]


def make_plan(schedule, rank, numel):
    """Take rank `rank`'s messages out of every round of `schedule`, for a tensor of `numel` elements."""
    bounds = chunk_bounds(numel, schedule.num_chunks)
    steps, last_read = [], [{} for _ in bounds]
    for number, messages in enumerate(schedule.rounds):
        step, queued = Step(number), {}
        for src, dst, chunks, op in transfers(messages):
            size = sum(bounds[c][1] - bounds[c][0] for c in chunks)
            queued[src] = queued.get(src, 0) + size
            if src == rank:
                step.outgoing.append(Part(dst, _joined(bounds, chunks), size, op, queued[src]))
            elif dst == rank:
                step.incoming.append(Part(src, _joined(bounds, chunks), size, op, queued[src]))
                for chunk in chunks:
                    step.readers.update(last_read[chunk])
        for message in messages:
            if message.src == rank:
                last_read[message.chunk][message.dst] = number + 1
        steps.append(step)
    readers = {}
    for chunk_readers in last_read:
        for reader, rounds in chunk_readers.items():
            readers[reader] = max(rounds, readers.get(reader, 0))
    peers = {part.peer for step in steps for part in step.outgoing + step.incoming}
    return Plan(steps, readers, sorted(peers))


def _joined(bounds, chunks):
    slices = []
    for start, stop in (bounds[chunk] for chunk in sorted(chunks)):
        if slices and slices[-1][1] == start:
            slices[-1] = (slices[-1][0], stop)
        elif stop > start:
            slices.append((start, stop))
    return slices
