"""Everybody to everybody: the fewest rounds that still spread the work evenly (lesson 11)."""

from .schedule import Message, Schedule, check_world_size, no_collection


def pairs(world_size):
    """All (src, dst). Each rank starts with its right-hand neighbour: no rank is asked by all others at once."""
    return [((dst + k) % world_size, dst) for k in range(1, world_size) for dst in range(world_size)]


@no_collection()
def direct_reduce_scatter(world_size):
    """Rank r adds up chunk r of all ranks.

    Communication: 1 round of N - 1 messages per rank; every rank sends (N-1)/N of the payload.
    """
    check_world_size(world_size)
    messages = [Message(src, dst, dst, "add") for src, dst in pairs(world_size)]
    return Schedule(world_size, world_size, [messages] if messages else [], "direct reduce-scatter", "reduce_scatter")


@no_collection()
def direct_all_gather(world_size):
    """Rank r hands chunk r to all ranks.

    Communication: 1 round of N - 1 messages per rank; every rank sends (N-1)/N of the payload.
    """
    check_world_size(world_size)
    messages = [Message(src, dst, src, "copy") for src, dst in pairs(world_size)]
    return Schedule(world_size, world_size, [messages] if messages else [], "direct all-gather", "all_gather")


def direct(world_size):
    """All-reduce in two rounds: a direct reduce-scatter, then a direct all-gather.

    Communication: 2 rounds of N - 1 messages per rank; every rank sends 2(N-1)/N of the payload, as in the ring.
    """
    rounds = direct_reduce_scatter(world_size).rounds + direct_all_gather(world_size).rounds
    return Schedule(world_size, world_size, rounds, "direct")
