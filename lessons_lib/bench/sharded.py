"""What a training step takes whose state, or whose weights, lie in shares, beside torch's own tools."""

from functools import partial

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from ..launch import launch
from ..losses import cross_entropy
from ..models import GPT, SimpleCNN
from ..parallel import DataParallel, FullySharded, ShardedOptimizer
from .turns import compared, shared_memory, slowest, take_turns

ADAM = torch.optim.Adam


def sharded_optimizer_step(name, world_size, repeats):
    """A step of `DataParallel` and `ShardedOptimizer` in shared memory, and of DDP and `ZeroRedundancyOptimizer`."""

    def fn(comm):
        torch.set_num_threads(1)
        inner = shared_memory(comm)
        ours = _trainer(
            name,
            lambda model: DataParallel(model, inner),
            lambda model: ShardedOptimizer(model.parameters(), ADAM, inner, lr=1e-4),
        )
        theirs = _trainer(
            name, DistributedDataParallel, lambda model: ZeroRedundancyOptimizer(model.parameters(), ADAM, lr=1e-4)
        )
        return take_turns(inner, repeats, ours, theirs)

    ours_s, theirs_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    what = f"step of {name} by ShardedOptimizer and Adam, {world_size} ranks"
    return [compared(what, "DDP + ZeRO over gloo", ours_s, theirs_s, ">= 2")]


def fully_sharded_step(world_size, repeats):
    """A step of `FullySharded` in shared memory and one of FSDP2, of a GPT with Adam."""

    def fn(comm):
        torch.set_num_threads(1)
        inner, make = shared_memory(comm), lambda model: ADAM(model.parameters(), lr=1e-4)
        ours = _trainer("GPT", lambda model: FullySharded(model, inner), make)
        theirs = _trainer("GPT", partial(_fully_shard, world_size), make)
        return take_turns(inner, repeats, ours, theirs)

    ours_s, theirs_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    what = f"step of GPT by FullySharded and Adam, {world_size} ranks"
    return [compared(what, "FSDP2 over gloo", ours_s, theirs_s, ">= 2")]


def _fully_shard(world_size, model):
    mesh = init_device_mesh("cpu", (world_size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _trainer(name, wrap, make_optimizer):
    """A function that does one step: SimpleCNN on 64 pictures, or a GPT of ten million parameters on 2 x 64 tokens."""
    if name == "GPT":
        model = GPT(256, 384, num_layers=6, num_heads=6, context=64)
        x, y = torch.randint(256, (2, 64)), torch.randint(256, (128,))
    else:
        model, x, y = SimpleCNN(), torch.rand(64, 1, 28, 28), torch.randint(10, (64,))
    model = wrap(model)
    optimizer = make_optimizer(model)

    def step():
        optimizer.zero_grad()
        cross_entropy(model(x).flatten(0, -2), y).backward()
        optimizer.step()

    return step
