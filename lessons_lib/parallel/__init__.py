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
from .parallelize import parallelize
from .parameter_server import parameter_server
from .parts import full_optimizer_state_dict, full_state_dict, load_full_optimizer_state_dict
from .pipeline import PipelineParallel
from .plans import gpt_plan
from .ring_attention import ring_attention
from .sequence import join_sequence, sequence_positions, share_of_mean, split_sequence
from .sharded_optimizer import ShardedOptimizer
from .slow_device import emulate_device
from .split import split_layers
from .tensor import ColumnParallelLinear, RowParallelLinear
from .vocabulary import VocabParallelEmbedding, parallel_cross_entropy

__all__ = [
    "ColumnParallelLinear",
    "DataParallel",
    "ExpertParallel",
    "FullySharded",
    "LocalSGD",
    "PipelineParallel",
    "RowParallelLinear",
    "ShardedOptimizer",
    "VocabParallelEmbedding",
    "all_to_all_attention",
    "average_gradients",
    "clip_grad_norm_",
    "context_parallel",
    "emulate_device",
    "full_optimizer_state_dict",
    "full_state_dict",
    "gpt_plan",
    "join_sequence",
    "lies_on",
    "load_full_optimizer_state_dict",
    "parallel_cross_entropy",
    "parallelize",
    "parameter_server",
    "ring_attention",
    "sequence_positions",
    "share_of_mean",
    "split_layers",
    "split_sequence",
]
