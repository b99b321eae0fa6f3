"""State on disk that survives: whole or not there, checked before it is believed, and never unpickled (lesson 21)."""

from .checkpoints import Checkpoints
from .disk import BrokenCheckpoint
from .peers import PeerCopies

__all__ = ["BrokenCheckpoint", "Checkpoints", "PeerCopies"]
