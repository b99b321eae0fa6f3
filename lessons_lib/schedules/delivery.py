"""Deliveries: in one round, every chunk goes straight from the rank that has it to a rank that wants it (lesson 11)."""

from collections import Counter
from dataclasses import dataclass, field

from .direct import pairs
from .plan import Part, Plan, Step
from .promise import has, wants
from .schedule import Message, Schedule, check_world_size, transfers


def gather(world_size, root=0):
    """Rank r's chunk r goes to the root, which ends with all of them.

    Communication: 1 round; the root receives (N-1)/N of the payload, the others send 1/N.
    """
    check_world_size(world_size)
    messages = [Message(rank, root, rank, "copy") for rank in range(world_size) if rank != root]
    return Schedule(world_size, world_size, [messages] if messages else [], "gather", "gather", root)


def scatter(world_size, root=0):
    """Chunk r goes from the root to rank r.

    Communication: 1 round; the root sends (N-1)/N of the payload, the others receive 1/N.
    """
    check_world_size(world_size)
    messages = [Message(root, rank, rank, "copy") for rank in range(world_size) if rank != root]
    return Schedule(world_size, world_size, [messages] if messages else [], "scatter", "scatter", root)


def all_to_all(world_size):
    """Rank s has a chunk for every rank d, with number s * N + d: each goes where it belongs.

    Communication: 1 round of N - 1 messages per rank; every rank sends (N-1)/N of what it has, and no algorithm can
    send less.
    """
    check_world_size(world_size)
    messages = [Message(src, dst, src * world_size + dst, "copy") for src, dst in pairs(world_size)]
    return Schedule(world_size, world_size**2, [messages] if messages else [], "all-to-all", "all_to_all")


@dataclass(eq=False)
class Delivery(Plan):
    """One rank's plan of a delivery: what it gives lies in one tensor, what it takes in another.

    Attributes:
        kept: the chunks that it both has and wants, as pairs: (start, stop) in the one and (start, stop) in the other.
        most_given: the largest number of elements that any rank gives.
    """

    kept: list = field(default_factory=list)
    most_given: int = 0


def delivery_plan(schedule, rank, sizes):
    """Take rank `rank`'s messages out of a schedule of one round, for chunks of different sizes.

    Each rank has a tensor of the chunks that it starts with, and one for the chunks that it wants, both in order of
    their numbers and without gaps.

    Args:
        schedule: a `Schedule` of one round at most, in which every chunk goes from a rank that starts with it to one
            that wants it.
        rank: whose plan it is.
        sizes: how many elements each chunk has.
    """
    ranks = range(schedule.world_size)
    given = [_packed(schedule, r, sizes, has) for r in ranks]
    wanted = [_packed(schedule, r, sizes, wants) for r in ranks]
    step, queued_numel = Step(0), Counter()
    for src, dst, chunks, op in transfers(message for messages in schedule.rounds for message in messages):
        numel = sum(sizes[chunk] for chunk in chunks)
        queued_numel[src] += numel
        filled = [chunk for chunk in chunks if sizes[chunk]]
        leaving, coming = [given[src][chunk] for chunk in filled], [wanted[dst][chunk] for chunk in filled]
        if src == rank:
            step.outgoing.append(Part(dst, leaving, numel, op, queued_numel[src], ready=0))
        elif dst == rank:
            step.incoming.append(Part(src, coming, numel, op, queued_numel[src], ready=0, source_slices=leaving))
    kept = [(given[rank][chunk], wanted[rank][chunk]) for chunk in given[rank] if chunk in wanted[rank]]
    readers = {part.peer: 1 for part in step.outgoing}
    peers = sorted({part.peer for part in step.outgoing + step.incoming})
    most_given = max(sum(stop - start for start, stop in slices.values()) for slices in given)
    return Delivery([step], len(schedule.rounds), readers, peers, kept, most_given)


def _packed(schedule, rank, sizes, belongs):
    """{chunk: (start, stop)} of the chunks that are `rank`'s, as `belongs` says, one after the other."""
    slices, start = {}, 0
    for chunk in range(schedule.num_chunks):
        if belongs(schedule, rank, chunk):
            slices[chunk] = start, start + sizes[chunk]
            start += sizes[chunk]
    return slices
