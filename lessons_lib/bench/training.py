"""What a training step takes: with the other ranks, without them, and beside torch's own."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from ..compress import PowerSGD
from ..launch import launch
from ..losses import cross_entropy
from ..models import SimpleCNN, mlp
from ..optim import Adam
from ..parallel import DataParallel
from .turns import compared, shared_memory, slowest, take_turns


class Work(NamedTuple):
    """A training step to measure. `calls`: how many in a row make one turn, so that a turn is not over in no time."""

    name: str
    make: Callable
    shape: tuple
    batch: int
    calls: int
    repeats: int


MODELS = (
    Work("MLP 64-128-10", partial(mlp, [64, 128, 10]), (64,), 32, calls=20, repeats=60),
    Work("MLP 784-100-10", partial(mlp, [784, 100, 10]), (784,), 64, calls=20, repeats=60),
    Work("SimpleCNN", SimpleCNN, (1, 28, 28), 64, calls=1, repeats=24),
)


def shared_memory_step(work, world_size, repeats, num_busy=0):
    """A step of `DataParallel` in shared memory and one of DDP, if asked for beside other processes that never rest."""

    def fn(comm):
        inner = shared_memory(comm)
        ours = _trainer(work, lambda model: DataParallel(model, inner))
        return take_turns(inner, repeats, ours, _trainer(work, DistributedDataParallel), calls=work.calls)

    with _busy(num_busy):
        ours_s, ddp_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    goal = ">= 1.08" if work.name == "SimpleCNN" else ">= 2" if world_size == 2 else ">= 3"
    beside = f", {num_busy} busy processes beside" if num_busy else ""
    what = f"step of {work.name}, batch {work.batch}, {world_size} ranks{beside}"
    return [compared(what, "DDP over gloo", ours_s, ddp_s, ">= 1" if num_busy else goal)]


def gloo_step(work, world_size, repeats):
    """Both over gloo, as on many machines: there `DataParallel` must not cost more than DDP."""

    def fn(comm):
        ours = _trainer(work, lambda model: DataParallel(model, comm))
        return take_turns(comm, repeats, ours, _trainer(work, DistributedDataParallel), calls=work.calls)

    ours_s, ddp_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    what = f"step of {work.name} over gloo, batch {work.batch}, {world_size} ranks"
    return [compared(what, "DDP over gloo", ours_s, ddp_s, "<= 1.05", inverse=True)]


def power_sgd_step(work, world_size, repeats):
    """A step with gradients of rank 2 and error feedback, beside DDP with torch's own hook; all over gloo."""

    def with_hook(model):
        net = DistributedDataParallel(model)
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
        net.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return net

    def fn(comm):
        ours = _trainer(work, lambda model: DataParallel(model, comm, hook=PowerSGD(2)))
        return take_turns(comm, repeats, ours, _trainer(work, with_hook), calls=work.calls)

    ours_s, ddp_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    what = f"step of {work.name} with PowerSGD, batch {work.batch}, {world_size} ranks"
    return [compared(what, "DDP, torch's hook, gloo", ours_s, ddp_s, "<= 1.1", inverse=True)]


def weak_scaling(work, repeats):
    def fn(comm):
        sides = _trainer(work, lambda model: DataParallel(model, comm)), _trainer(work)
        return take_turns(comm, repeats, *sides, calls=work.calls)

    ours_s, alone_s = slowest(launch(fn, world_size=2))
    goal = ">= 0.85" if work.name == "SimpleCNN" else ">= 0.95"
    return [compared(f"weak scaling of {work.name}, 2 ranks", "the step without the others", ours_s, alone_s, goal)]


def adam_step(repeats):
    def fn(comm):
        sides = []
        for optimizer in (Adam, torch.optim.Adam):
            model = mlp([784, 100, 10])
            model(torch.rand(8, 784)).sum().backward()
            sides.append(optimizer(model.parameters()).step)
        return take_turns(comm, repeats, *sides, calls=20)

    ours_s, theirs_s = slowest(launch(fn, world_size=1))
    return [compared("Adam step, MLP 784-100-10", "torch.optim.Adam", ours_s, theirs_s, "<= 1.25", inverse=True)]


def _trainer(work, wrap=lambda model: model):
    """A function that does one training step of `work`, its model wrapped by `wrap`."""
    model = wrap(work.make())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = torch.rand(work.batch, *work.shape), torch.randint(0, 10, (work.batch,))

    def step():
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


@contextmanager
def _busy(num_processes):
    """Processes that keep a core busy each, as other programs of a shared machine do."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()
