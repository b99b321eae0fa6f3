"""Strategies: ways to train one model on many ranks, one file each."""

from .all_to_all_attention import all_to_all_attention
from .average import average_gradients
from .clip import clip_grad_norm_
from .context import context_parallel
from .copies import lies_on
from .data import DataParallel
from .experts import ExpertParallel
from .fully_sharded import FullySharded
from .local_sgd import LocalSGD
from .parameter_server import parameter_server
from .pipeline import PipelineParallel, split_layers
from .ring_attention import ring_attention
from .sequence import join_sequence, sequence_positions, share_of_mean, split_sequence
from .sharded_optimizer import ShardedOptimizer
from .slow_device import emulate_device

__all__ = [
    "DataParallel",
    "ExpertParallel",
    "FullySharded",
    "LocalSGD",
    "PipelineParallel",
    "ShardedOptimizer",
    "all_to_all_attention",
    "average_gradients",
    "clip_grad_norm_",
    "context_parallel",
    "emulate_device",
    "join_sequence",
    "lies_on",
    "parameter_server",
    "ring_attention",
    "sequence_positions",
    "share_of_mean",
    "split_layers",
    "split_sequence",
]
