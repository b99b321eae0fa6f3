"""Strategies: ways to train one model on many ranks, one file each."""

from .average import average_gradients
from .clip import clip_grad_norm_
from .copies import lies_on
from .data import DataParallel
from .local_sgd import LocalSGD
from .parameter_server import parameter_server
from .pipeline import PipelineParallel, split_layers
from .sharded_optimizer import ShardedOptimizer
from .slow_device import emulate_device

__all__ = [
    "DataParallel",
    "LocalSGD",
    "PipelineParallel",
    "ShardedOptimizer",
    "average_gradients",
    "clip_grad_norm_",
    "emulate_device",
    "lies_on",
    "parameter_server",
    "split_layers",
]
