"""Starting ranks from a cell or a script, and joining those that `torchrun` started (lesson 00)."""

from .launch import Results, connect, launch, warm_up

__all__ = ["Results", "connect", "launch", "warm_up"]
