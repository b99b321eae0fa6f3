"""The binomial tree: who has the data doubles in every round (lessons 10 and 11)."""

from .schedule import Message, Schedule, check_world_size


def tree_broadcast(world_size, root=0):
    """In round k, the 2^k ranks that have the tensor hand it to 2^k others.

    Communication: ceil(log2 N) rounds. The root sends that many payloads, and no rank sends more.
    """
    check_world_size(world_size)
    rounds, span = [], 1
    while span < world_size:
        pairs = [(k, k + span) for k in range(min(span, world_size - span))]
        rounds.append([Message((a + root) % world_size, (b + root) % world_size, 0, "copy") for a, b in pairs])
        span *= 2
    return Schedule(world_size, 1, rounds, "tree broadcast", "broadcast", root)


def tree(world_size, root=0):
    """All-reduce up a binomial tree and down again.

    Communication: 2 ceil(log2 N) rounds. Each message is a whole payload, so there are few rounds and many bytes.
    """
    down = tree_broadcast(world_size, root).rounds
    up = [[Message(m.dst, m.src, 0, "add") for m in messages] for messages in reversed(down)]
    return Schedule(world_size, 1, up + down, "tree")
