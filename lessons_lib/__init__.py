"""The library of Gradient to Cluster: real ranks from a notebook cell, collectives as data, and trainers to read."""

from .check_run import check_run
from .comm import Communicator, Mesh
from .errors import CollectiveMismatch, InvalidSchedule, RankFailed, RankLost
from .launch import Results, connect, launch, warm_up
from .schedules import Links

__version__ = "0.1.0"
__all__ = [
    "CollectiveMismatch",
    "Communicator",
    "InvalidSchedule",
    "Links",
    "Mesh",
    "RankFailed",
    "RankLost",
    "Results",
    "check_run",
    "connect",
    "launch",
    "warm_up",
]
