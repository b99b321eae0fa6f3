"""Algorithms by name, and `auto`: the one that the counts say is fastest."""

from collections import Counter
from functools import lru_cache

from .direct import direct
from .halving_doubling import halving_doubling
from .hierarchical import hierarchical
from .links import Links
from .ring import ring
from .schedule import Schedule, transfers
from .star import star, star_broadcast
from .tree import tree, tree_broadcast

ALGORITHMS = {
    "star": star,
    "tree": tree,
    "ring": ring,
    "direct": direct,
    "halving_doubling": halving_doubling,
    "hierarchical": hierarchical,
}
# Two ranks of one laptop, measured in lesson 00. The choice depends on the order of magnitude of their ratio only.
DEFAULT_LINKS = Links(latency_s=20e-6, bandwidth_Bps=5e9)


def check_algorithm(algorithm):
    """Raise `ValueError` unless `algorithm` is a name that `Communicator` knows, or a `Schedule`."""
    names = ["auto", "torch", *ALGORITHMS]
    if not isinstance(algorithm, Schedule) and algorithm not in names:
        raise ValueError(f"algorithm={algorithm!r}: one of {', '.join(names)}, or a Schedule, is needed")


@lru_cache(maxsize=1024)
def all_reduce_schedule(algorithm, world_size, size_bytes, links=DEFAULT_LINKS):
    """Return the all-reduce of a name, or for "auto" the one that is cheapest for this size.

    Args:
        algorithm: "auto" or a name of `ALGORITHMS`.
        world_size: the number of ranks.
        size_bytes: the size of the tensor.
        links: what a message costs, by which "auto" compares direct, halving-doubling, ring and tree.
    """
    if algorithm != "auto":
        return ALGORITHMS[algorithm](world_size)

    def time_s(candidate):
        _, num_messages, num_payloads = candidate
        return num_messages * links.latency_s + num_payloads * size_bytes / links.bandwidth_Bps

    return min(_candidates(world_size), key=time_s)[0]


@lru_cache(maxsize=64)
def _candidates(world_size):
    """What "auto" chooses from.

    Returns:
        A list of (schedule, messages, payloads): how many messages, and how many times the tensor, the busiest rank of
        each round handles, summed over the rounds.
    """
    found = []
    for name in ("direct", "halving_doubling", "ring", "tree"):
        schedule, num_messages, num_chunks = ALGORITHMS[name](world_size), 0, 0
        for messages in schedule.rounds:
            taken = Counter(transfer.dst for transfer in transfers(messages))
            moved = Counter(end for m in messages for end in ((m.src, "out"), (m.dst, "in")))
            # For the ranks to meet in a round costs about as much as a message.
            num_messages += (1 + max(taken.values())) / 2
            num_chunks += max(moved.values())
        found.append((schedule, num_messages, num_chunks / schedule.num_chunks))
    return found


@lru_cache(maxsize=1024)
def broadcast_schedule(algorithm, world_size, root):
    """Return the star for algorithm="star", and the binomial tree for any other."""
    return star_broadcast(world_size, root) if algorithm == "star" else tree_broadcast(world_size, root)
