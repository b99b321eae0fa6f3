"""Strategies: ways to train one model on many ranks. A folder holds one kind of parallelism and what it is made of."""

from .average import average_gradients
from .balance.balancer import Balancer
from .clip import clip_grad_norm_
from .context.all_to_all_attention import all_to_all_attention
from .context.context import context_parallel
from .context.ring_attention import ring_attention
from .context.sequence import join_sequence, sequence_positions, share_of_mean, split_sequence
from .copies import lies_on
from .data.data_parallel import DataParallel
from .experts import ExpertParallel
from .federated.federated_averaging import federated_averaging
from .federated.split import dirichlet_split
from .local.local_sgd import LocalSGD
from .local.parameter_server import parameter_server
from .pipeline.pipeline import PipelineParallel
from .pipeline.slow_device import emulate_device
from .pipeline.split import split_layers
from .sharded.fully_sharded import FullySharded
from .sharded.sharded_optimizer import ShardedOptimizer
from .tasks.halving import successive_halving
from .tasks.run_tasks import run_tasks
from .tensor.layers import ColumnParallelLinear, RowParallelLinear
from .tensor.parallelize import parallelize
from .tensor.parts import full_optimizer_state_dict, full_state_dict, load_full_optimizer_state_dict
from .tensor.plans import gpt_plan
from .tensor.vocabulary import VocabParallelEmbedding, parallel_cross_entropy

__all__ = [
    "Balancer",
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
    "dirichlet_split",
    "emulate_device",
    "federated_averaging",
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
    "run_tasks",
    "sequence_positions",
    "share_of_mean",
    "split_layers",
    "split_sequence",
    "successive_halving",
]
