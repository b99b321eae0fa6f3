"""The library of Gradient to Cluster: real ranks from a notebook cell, collectives as data, and trainers to read."""

from .collectives import CollectiveMismatch, Communicator, InvalidSchedule, Links, RankFailed
from .launch import Results, connect, launch, warm_up

__version__ = "0.1.0"
__all__ = [
    "CollectiveMismatch",
    "Communicator",
    "InvalidSchedule",
    "Links",
    "RankFailed",
    "Results",
    "connect",
    "launch",
    "warm_up",
]
