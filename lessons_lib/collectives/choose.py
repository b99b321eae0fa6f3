"""Algorithms by name, and `auto`: the one that the counts say is fastest."""

from functools import lru_cache

from .count import count
from .direct import direct
from .halving_doubling import halving_doubling
from .hierarchical import hierarchical
from .links import Links
from .ring import ring
from .schedule import Schedule
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
# Two ranks of one laptop, measured in lesson 00; what matters is the order of magnitude of their ratio.
DEFAULT_LINKS = Links(latency_s=20e-6, bandwidth_Bps=5e9)


def check_algorithm(algorithm):
    """Raise ValueError unless `algorithm` is a name `Communicator` knows or a `Schedule`."""
    names = ["auto", "torch", *ALGORITHMS]
    if not isinstance(algorithm, Schedule) and algorithm not in names:
        raise ValueError(f"algorithm={algorithm!r}: one of {', '.join(names)}, or a Schedule, is accepted")


@lru_cache(maxsize=1024)
def all_reduce_schedule(algorithm, world_size, size_bytes, links=DEFAULT_LINKS):
    """The all-reduce `Schedule` of that name; "auto" takes the cheapest of tree, ring, direct and halving-doubling.

    The cost of a schedule is (rounds + messages of the busiest rank) α / 2 + bytes of the busiest rank / bandwidth.
    """
    if algorithm != "auto":
        return ALGORITHMS[algorithm](world_size)
    candidates = [ALGORITHMS[name](world_size) for name in ("tree", "direct", "halving_doubling", "ring")]
    return min(candidates, key=lambda schedule: _cost_s(schedule, size_bytes, links))


def _cost_s(schedule, size_bytes, links):
    counts = count(schedule, size_bytes, itemsize=1)
    busiest = max(map(sum, zip(counts.bytes_sent, counts.bytes_received, strict=True))) / 2
    messages = counts.num_rounds + max(counts.messages_received)
    return messages / 2 * links.latency_s + busiest / links.bandwidth_Bps


@lru_cache(maxsize=1024)
def broadcast_schedule(algorithm, world_size, root):
    """The star for algorithm="star", the binomial tree otherwise."""
    return star_broadcast(world_size, root) if algorithm == "star" else tree_broadcast(world_size, root)
