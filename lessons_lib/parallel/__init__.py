"""Strategies: ways to train one model on many ranks, one file each."""

from .data import DataParallel
from .pipeline import PipelineParallel, split_layers

__all__ = ["DataParallel", "PipelineParallel", "split_layers"]
