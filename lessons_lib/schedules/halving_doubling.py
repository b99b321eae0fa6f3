"""Recursive halving, then recursive doubling: few rounds and few bytes, with distant partners (lesson 11).

Source: Thakur, Rabenseifner and Gropp, Optimization of collective communication operations in MPICH (2005), §4.
"""

from .schedule import Message, Schedule, check_world_size, no_collection


@no_collection()
def halving_doubling(world_size):
    """All-reduce in which each pair of partners swaps half of what it still works on.

    P is the largest power of two that is at most N. In round k, rank r hands rank r XOR P/2^(k+1) the half of its
    chunks that this partner will own; then the same rounds go backwards. The N - P ranks beyond P hand their tensors
    over before the first round, and get the sum after the last.

    Communication: 2 log2 P rounds, and two more if N is no power of two; 2(P-1)/P of the payload per rank.
    """
    check_world_size(world_size)
    power = 1 << (world_size.bit_length() - 1)
    fold = [Message(r + power, r, c, "add") for r in range(world_size - power) for c in range(power)]
    halving, distance = [], power // 2
    while distance:
        halving.append(
            [Message(r, r ^ distance, c, "add") for r in range(power) for c in _owned(r ^ distance, distance, power)]
        )
        distance //= 2
    doubling = [[Message(m.dst, m.src, m.chunk, "copy") for m in messages] for messages in reversed(halving)]
    unfold = [Message(m.dst, m.src, m.chunk, "copy") for m in fold]
    rounds = [messages for messages in [fold, *halving, *doubling, unfold] if messages]
    return Schedule(world_size, power, rounds, "halving-doubling")


def _owned(rank, distance, power):
    """The chunks that `rank` still works on after it has swapped at `distance`: those that share its leading bits."""
    first = rank // distance * distance
    return range(first, first + distance)
