"""One rank's plan of a schedule: what it gives and takes in each step, and whom it has to wait for."""

import zlib
from collections import Counter
from dataclasses import dataclass, field

from .hazards import Hazards
from .schedule import chunk_bounds, transfers
from .verify import check_schedule


@dataclass(eq=False)
class Part:
    """One rank's end of a transfer. Parts compare by identity, so that a window can keep something for each.

    Attributes:
        peer: the rank at the other end.
        slices: the (start, stop) pairs in the flat tensor, neighbouring chunks joined.
        numel: how many elements these are together.
        op: "add" or "copy".
        queued_numel: how many elements the sender sends up to the end of this part in the same step.
        ready: how many steps the sender must have ended before it has this part to give.
        source_slices: where it lies at the sender, in a delivery; else None, as it lies at the same `slices`.
    """

    peer: int
    slices: list
    numel: int
    op: str
    queued_numel: int
    ready: int
    source_slices: list | None = None


@dataclass
class Step:
    """One round of one segment, for one rank.

    Attributes:
        number: which step of the plan it is, from 0.
        segment: which segment it moves, from 0.
        outgoing, incoming: the `Part`s that this rank gives and takes.
        readers: {reader: how many steps it must have ended before this rank may write what comes in here}.
        written: after how many steps this rank itself has last written what is copied over here.
    """

    number: int
    segment: int = 0
    outgoing: list = field(default_factory=list)
    incoming: list = field(default_factory=list)
    readers: dict = field(default_factory=dict)
    written: int = 0


@dataclass(eq=False)
class Plan:
    """All steps of one rank. Plans compare by identity, so that a transport can keep something for each.

    Attributes:
        steps: the rounds of the schedule, once for each segment, in the order in which the rank takes them.
        num_rounds: how many rounds the schedule has.
        readers: {reader: how many steps it must have ended before the whole tensor is free again}.
        peers: the ranks that this rank gives to or takes from, in order.
    """

    steps: list
    num_rounds: int
    readers: dict
    peers: list


class Plans:
    """The plans of one rank, each made once."""

    def __init__(self, rank, world_size):
        self._rank, self._world_size = rank, world_size
        self._plans, self._checked = {}, {}

    def of(self, schedule, numel, num_segments=1):
        """The `Plan` of this rank for a tensor of `numel` elements, its chunks cut into `num_segments` pieces."""
        key = schedule, numel, num_segments
        if key not in self._plans:
            self._plans[key] = make_plan(schedule, self._rank, numel, num_segments)
        return self._plans[key]

    def checked(self, schedule):
        """Verify a schedule, the first time that it or its equal comes.

        Returns:
            The schedule as it came first (whose plans are at hand), and a number that tells it from others of its name.
        """
        if schedule not in self._checked:
            check_schedule(schedule, self._world_size)
            self._checked[schedule] = schedule, zlib.crc32(repr(schedule).encode())
        return self._checked[schedule]


def make_plan(schedule, rank, numel, num_segments=1):
    """Take the messages of one rank out of every round of a schedule.

    Large tensors go through the rounds in segments: every chunk is cut into `num_segments` pieces, and the first pieces
    of all chunks are ahead of the second ones. What one round has written is then still in the cache when the next
    round reads it.

    Args:
        schedule: a `Schedule` that `verify` has passed.
        rank: whose plan it is.
        numel: how many elements the tensor has.
        num_segments: into how many pieces every chunk is cut.

    Returns:
        The `Plan` of this rank.
    """
    rounds = [transfers(messages) for messages in schedule.rounds]
    slices = _slices(schedule, numel, num_segments)
    hazards, steps = Hazards(rank), []
    for segment, number in _order(num_segments, len(rounds)):
        steps.append(_make_step(len(steps), segment, rounds[number], rank, slices, hazards))
        hazards.end_step(len(steps), schedule.rounds[number], segment)
    return Plan(steps, len(rounds), hazards.readers(), _peers(steps))


def _slices(schedule, numel, num_segments):
    """slices[chunk][segment]: the (start, stop) of this piece in the flat tensor."""
    return [
        [(first + start, first + stop) for start, stop in chunk_bounds(end - first, num_segments)]
        for first, end in chunk_bounds(numel, schedule.num_chunks)
    ]


def _order(num_segments, num_rounds):
    """Yield (segment, round) in the order of the steps.

    A segment starts one round later than the one before it, so that while one segment waits another can move.
    """
    for wave in range(num_segments + num_rounds - 1):
        for number in range(num_rounds):
            if 0 <= wave - number < num_segments:
                yield wave - number, number


def _make_step(number, segment, round_transfers, rank, slices, hazards):
    """The step of `rank` in which it does its parts of the transfers of one round, for one segment."""
    step, queued_numel, taken, copied = Step(number, segment), Counter(), [], []
    for src, dst, chunks, op in round_transfers:
        bounds = [slices[chunk][segment] for chunk in sorted(chunks)]
        numel = sum(stop - start for start, stop in bounds)
        queued_numel[src] += numel
        if rank not in (src, dst):
            continue
        pieces = [(chunk, segment) for chunk in chunks]
        ready, peer = hazards.written(src, pieces), dst if src == rank else src
        part = Part(peer, _joined(bounds), numel, op, queued_numel[src], ready)
        if src == rank:
            step.outgoing.append(part)
        else:
            step.incoming.append(part)
            taken += pieces
            copied += pieces if op == "copy" else []
    step.readers, step.written = hazards.readers(taken), hazards.written(rank, copied)
    return step


def _joined(bounds):
    """`bounds` without empty ones, and with neighbours made one."""
    slices = []
    for start, stop in bounds:
        if slices and slices[-1][1] == start:
            slices[-1] = (slices[-1][0], stop)
        elif stop > start:
            slices.append((start, stop))
    return slices


def _peers(steps):
    return sorted({part.peer for step in steps for part in step.outgoing + step.incoming})
