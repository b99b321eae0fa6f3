"""Collectives as schedules, their readers, and the communicator that runs them (lessons 10 and 11)."""

from .choose import ALGORITHMS
from .communicator import Communicator
from .count import Counts, count
from .direct import direct
from .errors import CollectiveMismatch, InvalidSchedule, RankFailed
from .halving_doubling import halving_doubling
from .hierarchical import hierarchical
from .links import Links
from .ring import ring, ring_all_gather, ring_reduce_scatter
from .schedule import Message, Schedule, chunk_bounds
from .shared_memory import SharedMemoryTransport
from .simulate import Simulation, simulate
from .star import star, star_broadcast
from .torch_transport import TorchTransport
from .trace import Ledger, Span, Trace
from .tree import tree, tree_broadcast
from .verify import verify

__all__ = [
    "ALGORITHMS",
    "CollectiveMismatch",
    "Communicator",
    "Counts",
    "InvalidSchedule",
    "Ledger",
    "Links",
    "Message",
    "RankFailed",
    "Schedule",
    "SharedMemoryTransport",
    "Simulation",
    "Span",
    "TorchTransport",
    "Trace",
    "chunk_bounds",
    "count",
    "direct",
    "halving_doubling",
    "hierarchical",
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
