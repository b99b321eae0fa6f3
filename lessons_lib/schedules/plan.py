"""One rank's part in a schedule: what it gives, what it takes and whom it has to wait for, round by round."""

import zlib
from dataclasses import dataclass, field

from .schedule import chunk_bounds, transfers
from .verify import check_schedule


@dataclass(eq=False)
class Part:
    """One transfer as its ranks see it. Parts compare by identity, so that a window can keep something for each.

    Attributes:
        peer: the other rank.
        slices: the places (start, stop) in the flat tensor, neighbouring chunks joined.
        numel: how many elements in all.
        op: "add" or "copy".
        queued_numel: how many elements the sender sends before and with this part in the same round.
        ready: how many steps the sender must have ended before it has this part.
    """

    peer: int
    slices: list
    numel: int
    op: str
    queued_numel: int
    ready: int


@dataclass
class Step:
    """One round of one segment for one rank.

    `readers` maps a rank to the number of steps it must have ended before this rank may write what it takes here;
    `written` is the number of steps after which this rank itself has written what it copies over here.
    """

    number: int
    segment: int = 0
    outgoing: list = field(default_factory=list)
    incoming: list = field(default_factory=list)
    readers: dict = field(default_factory=dict)
    written: int = 0


@dataclass(eq=False)
class Plan:
    """All steps of one rank: the schedule's `num_rounds` rounds, once for each segment. Plans compare by identity.

    `readers`: the steps that others must have ended before the tensor is free again. `peers`: whom it meets.
    """

    steps: list
    num_rounds: int
    readers: dict
    peers: list


class Plans:
    """One rank's plans of the schedules that it runs, each made once."""

    def __init__(self, rank, world_size):
        self._rank, self._world_size = rank, world_size
        self._plans, self._checked = {}, []

    def of(self, schedule, numel, num_segments=1):
        key = schedule, numel, num_segments
        if key not in self._plans:
            self._plans[key] = make_plan(schedule, self._rank, numel, num_segments)
        return self._plans[key]

    def checked(self, schedule):
        """The schedule, verified, and a number that tells it from others of its name."""
        for known in self._checked:
            if known[0] == schedule:
                return known
        check_schedule(schedule, self._world_size)
        self._checked.append((schedule, zlib.crc32(repr(schedule).encode())))
        return self._checked[-1]


def make_plan(schedule, rank, numel, num_segments=1):
    """Take rank `rank`'s messages out of every round of `schedule`, for a tensor of `numel` elements.

    With `num_segments`, every chunk is cut into so many pieces, and the first pieces of all chunks go through the
    rounds ahead of the second ones, and so on: what one round has written is still in the cache when the next reads it.
    """
    cut = [
        [(at + start, at + stop) for start, stop in chunk_bounds(end - at, num_segments)]
        for at, end in chunk_bounds(numel, schedule.num_chunks)
    ]
    grouped = [transfers(messages) for messages in schedule.rounds]
    steps, last_read, last_write = [], {}, {}  # of a piece: how many steps who reads or writes it has ended then
    for segment, number in _waves(num_segments, len(grouped)):
        step, queued = Step(len(steps), segment), {}
        for src, dst, chunks, op in grouped[number]:
            bounds = [cut[chunk][segment] for chunk in sorted(chunks)]
            size = sum(stop - start for start, stop in bounds)
            queued[src] = queued.get(src, 0) + size
            ready = max(last_write.get((src, chunk, segment), 0) for chunk in chunks)
            if src == rank:
                step.outgoing.append(Part(dst, _joined(bounds), size, op, queued[src], ready))
            elif dst == rank:
                step.incoming.append(Part(src, _joined(bounds), size, op, queued[src], ready))
                for chunk in chunks:
                    step.readers.update(last_read.get((chunk, segment), {}))
                    if op == "copy":
                        step.written = max(step.written, last_write.get((rank, chunk, segment), 0))
        steps.append(step)
        for src, dst, chunk, _ in schedule.rounds[number]:
            last_write[dst, chunk, segment] = len(steps)
            if src == rank:
                last_read.setdefault((chunk, segment), {})[dst] = len(steps)
    readers = {}
    for reads in last_read.values():
        for reader, num_steps in reads.items():
            readers[reader] = max(num_steps, readers.get(reader, 0))
    peers = {part.peer for step in steps for part in step.outgoing + step.incoming}
    return Plan(steps, len(grouped), readers, sorted(peers))


def _waves(num_segments, num_rounds):
    """The order of (segment, round): a segment starts a round later than the one before it, so that nobody waits."""
    for wave in range(num_segments + num_rounds - 1):
        for number in range(num_rounds):
            if 0 <= wave - number < num_segments:
                yield wave - number, number


def _joined(bounds):
    slices = []
    for start, stop in bounds:
        if slices and slices[-1][1] == start:
            slices[-1] = (slices[-1][0], stop)
        elif stop > start:
            slices.append((start, stop))
    return slices
