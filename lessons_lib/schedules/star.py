"""The star: one rank adds for all others (lesson 10; lesson 11 shows what it costs)."""

from .schedule import Message, Schedule, check_world_size


def star_broadcast(world_size, root=0):
    """The root sends the whole tensor to every other rank.

    Communication: 1 round; the root sends N - 1 payloads.
    """
    check_world_size(world_size)
    messages = [Message(root, rank, 0, "copy") for rank in range(world_size) if rank != root]
    rounds = [messages] if messages else []
    return Schedule(world_size, 1, rounds, "star broadcast", "broadcast", root)


def star(world_size, root=0):
    """All-reduce through one rank: all ranks send to the root, and the root sends the sum to all.

    Communication: 2 rounds; the root receives and sends N - 1 payloads, each other rank one.
    """
    spread = star_broadcast(world_size, root)
    gather = [[Message(m.dst, m.src, 0, "add") for m in messages] for messages in spread.rounds]
    return Schedule(world_size, 1, gather + spread.rounds, "star")
