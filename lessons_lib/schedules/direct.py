"""Everybody to everybody: the fewest rounds that still spread the work evenly (lesson 11)."""

from .schedule import Message, Schedule, check_world_size


def direct(world_size):
    """All-reduce in two rounds: rank r adds up chunk r of all ranks, then hands it to all ranks.

    Communication: 2 rounds of N - 1 messages per rank; every rank sends 2(N-1)/N of the payload, as in the ring.
    """
    check_world_size(world_size)
    # Each rank starts with its right-hand neighbour, so that no rank is asked by all others at once.
    pairs = [((r + k) % world_size, r) for k in range(1, world_size) for r in range(world_size)]
    gather = [Message(src, dst, dst, "add") for src, dst in pairs]
    spread = [Message(src, dst, src, "copy") for src, dst in pairs]
    return Schedule(world_size, world_size, [gather, spread] if pairs else [], "direct")
