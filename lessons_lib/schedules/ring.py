"""The ring: every rank talks to its right-hand neighbour only, and every link is busy in every round.

Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms (2009), §3; lesson 11.
"""

from .schedule import Message, Schedule, check_world_size, no_collection


@no_collection()
def _turn(world_size, offset, op):
    """One turn of the ring: in round k, rank r passes chunk r - k + offset to the right."""
    # Lists are turned instead of computing 2 N² remainders: quicker, and Python keeps one object for each number.
    ranks = list(range(world_size))
    right, rounds = ranks[1:] + ranks[:1], []
    for k in range(world_size - 1):
        first = (offset - k) % world_size
        chunks = ranks[first:] + ranks[:first]
        rounds.append([Message(r, dst, chunk, op) for r, dst, chunk in zip(ranks, right, chunks, strict=True)])
    return rounds


def ring_reduce_scatter(world_size):
    """Chunks travel once round the ring and grow: rank r ends with the sum of chunk r.

    Communication: N - 1 rounds; every rank sends (N-1)/N of the payload.
    """
    check_world_size(world_size)
    return Schedule(world_size, world_size, _turn(world_size, -1, "add"), "ring reduce-scatter", "reduce_scatter")


def ring_all_gather(world_size):
    """Finished chunks travel once round the ring: every rank ends with all of them.

    Communication: N - 1 rounds; every rank sends (N-1)/N of the payload.
    """
    check_world_size(world_size)
    return Schedule(world_size, world_size, _turn(world_size, 0, "copy"), "ring all-gather", "all_gather")


def ring(world_size):
    """All-reduce as a reduce-scatter followed by an all-gather, both round the ring.

    Communication: 2(N-1) rounds; every rank sends 2(N-1)/N of the payload, the least that any algorithm can.
    """
    rounds = ring_reduce_scatter(world_size).rounds + ring_all_gather(world_size).rounds
    return Schedule(world_size, world_size, rounds, "ring")
