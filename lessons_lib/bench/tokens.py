"""How many tokens a second a GPT learns from on two cores: one process with two threads, or two ranks with one each."""

import statistics
from functools import partial
from typing import NamedTuple

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ..launch import launch
from ..losses import cross_entropy
from ..models import GPT
from ..parallel import DataParallel, FullySharded
from .turns import compared, shared_memory, slowest, take_turns


class Size(NamedTuple):
    """A GPT, and the batch of all ranks together: `batch` rows of `context` tokens."""

    vocabulary: int
    width: int
    num_layers: int
    num_heads: int
    context: int
    batch: int


TEN_MILLION = Size(vocabulary=256, width=384, num_layers=6, num_heads=6, context=128, batch=8)
DDP, FSDP2, ALONE = "DDP over gloo", "FSDP2 over gloo", "one process, two threads"
GOALS = {  # (ours, the other): ratio
    ("DataParallel", DDP): ">= 1",
    ("DataParallel", ALONE): ">= 1",
    ("FullySharded", FSDP2): ">= 2",
    ("FullySharded", ALONE): ">= 1",
}


def tokens_a_second(size, repeats):
    """A step with Adam from the same batch: two ranks of ours against two of torch's, and against one process."""

    def fn(comm):
        torch.set_num_threads(1)
        inner = shared_memory(comm)
        sides = {
            "DataParallel": _trainer(size, 2, lambda model: DataParallel(model, inner)),
            "FullySharded": _trainer(size, 2, lambda model: FullySharded(model, inner)),
            DDP: _trainer(size, 2, DistributedDataParallel),
            FSDP2: _trainer(size, 2, _fully_shard),
            ALONE: partial(_alone, comm.rank, _trainer(size, 1)),
        }
        return dict(zip(sides, take_turns(comm, repeats, *sides.values()), strict=True))

    results = launch(fn, world_size=2, transport="torch")
    times_s = dict(zip(results[0], slowest([list(times.values()) for times in results]), strict=True))
    num_tokens, rows = size.batch * size.context, []
    for (ours, peer), goal in GOALS.items():
        rates = [num_tokens / statistics.median(times_s[side]) for side in (ours, peer)]
        work = f"{ours} of a GPT on 2 cores: {rates[0]:,.0f} tokens a second against {rates[1]:,.0f}"
        rows.append(compared(work, peer, times_s[ours], times_s[peer], goal))
    return rows


def _trainer(size, num_ranks, wrap=lambda model: model):
    """A function that does one training step of the GPT, wrapped by `wrap`, on a rank's share of the batch."""
    model = GPT(size.vocabulary, size.width, size.num_layers, size.num_heads, size.context)
    model = wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(size.vocabulary, (size.batch // num_ranks, size.context + 1))
    x, y = tokens[:, :-1], tokens[:, 1:].flatten()

    def step():
        optimizer.zero_grad()
        cross_entropy(model(x).flatten(0, 1), y).backward()
        optimizer.step()

    return step


def _fully_shard(model):
    """The model as FSDP2 advises: each block is gathered by itself."""
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _alone(rank, step):
    """One process does the whole batch with two threads, while the other rank waits without a core."""
    if rank == 0:
        torch.set_num_threads(2)
        step()
        torch.set_num_threads(1)
