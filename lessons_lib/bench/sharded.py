"""What a training step takes whose state, or whose weights, lie in shares, beside torch's own tools.

What bounds a ratio is measured in the same turns: the step of a rank that sends nothing, but computes as much. No
transport can be faster.
"""

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
        return take_turns(inner, repeats, ours, theirs, _alone(name, world_size))

    ours_s, theirs_s, alone_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    what, peer = f"step of {name} by ShardedOptimizer and Adam, {world_size} ranks", "DDP + ZeRO over gloo"
    return [
        compared(what, peer, ours_s, theirs_s, ">= 2"),
        compared(f"the same of {name}, nothing sent, {world_size} ranks", peer, alone_s, theirs_s, "the bound"),
    ]


def fully_sharded_step(world_size, repeats):
    """A step of `FullySharded` in shared memory and one of FSDP2, of a GPT with Adam."""

    def fn(comm):
        torch.set_num_threads(1)
        inner, make = shared_memory(comm), lambda model: ADAM(model.parameters(), lr=1e-4)
        ours = _trainer("GPT", lambda model: FullySharded(model, inner), make)
        theirs = _trainer("GPT", partial(_fully_shard, world_size), make)
        return take_turns(inner, repeats, ours, theirs, _alone("GPT", world_size))

    ours_s, theirs_s, alone_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    what, peer = f"step of GPT by FullySharded and Adam, {world_size} ranks", "FSDP2 over gloo"
    return [
        compared(what, peer, ours_s, theirs_s, ">= 2"),
        compared(f"the same of GPT, nothing sent, {world_size} ranks", peer, alone_s, theirs_s, "the bound"),
    ]


def _fully_shard(world_size, model):
    mesh = init_device_mesh("cpu", (world_size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _alone(name, world_size):
    """A step that sends nothing: forward and backward of the whole model, Adam on 1/N of its parameters' numbers."""

    def share(model):
        parameters = list(model.parameters())
        most, few = sum(p.numel() for p in parameters) // world_size, []
        while parameters and sum(p.numel() for p in few) < most:
            few.append(parameters.pop())
        return ADAM(few, lr=1e-4)

    return _trainer(name, lambda model: model, share)


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
