"""The star: one rank does everybody's adding (lesson 10, and the loser of lesson 11)."""

from .schedule import Message, Schedule, check_world_size


def star_broadcast(world_size, root=0):
    """The root sends the whole tensor to every other rank, one round.

    Communication: 1 round; the root sends N - 1 payloads.
    """
    check_world_size(world_size)
    messages = [Message(root, rank, 0, "copy") for rank in range(world_size) if rank != root]
    rounds = [messages] if messages else []
    return Schedule(world_size, 1, rounds, "star broadcast", "broadcast", root)


def star(world_size, root=0):
    """All-reduce through one rank: everybody sends to the root, the root sends the sum to everybody.

    Communication: 2 rounds; the root receives and sends N - 1 payloads, the others one each.
    """
    spread = star_broadcast(world_size, root)
    gather = [[Message(m.dst, m.src, 0, "add") for m in messages] for messages in spread.rounds]
    return Schedule(world_size, 1, gather + spread.rounds, "star")
