"""Starting ranks from a cell or a script, and joining those that `torchrun` started (lesson 00)."""

from .connect import connect
from .launch import Results, launch, warm_up

__all__ = ["Results", "connect", "launch", "warm_up"]
