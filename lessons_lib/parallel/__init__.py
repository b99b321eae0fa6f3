"""Strategies: ways to train one model on many ranks, one file each."""

from .data import DataParallel

__all__ = ["DataParallel"]
