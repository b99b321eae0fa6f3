"""Algorithms for many processes as data, and their readers (lessons 10 and 11). No process, no tensor, no torch."""

from .choose import ALGORITHMS
from .count import Counts, count
from .direct import direct
from .halving_doubling import halving_doubling
from .hierarchical import hierarchical
from .links import Links
from .replay import replay
from .ring import ring, ring_all_gather, ring_reduce_scatter
from .schedule import Message, Schedule, chunk_bounds
from .simulate import Simulation, simulate
from .star import star, star_broadcast
from .tree import tree, tree_broadcast
from .verify import verify

__all__ = [
    "ALGORITHMS",
    "Counts",
    "Links",
    "Message",
    "Schedule",
    "Simulation",
    "chunk_bounds",
    "count",
    "direct",
    "halving_doubling",
    "hierarchical",
    "replay",
    "ring",
    "ring_all_gather",
    "ring_reduce_scatter",
    "simulate",
    "star",
    "star_broadcast",
    "tree",
    "tree_broadcast",
    "verify",
]
