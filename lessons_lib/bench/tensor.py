"""What a column and a row layer take, forward and backward, beside torch's tensor parallelism."""

from functools import partial

import torch
from torch import nn
from torch.distributed import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ..launch import launch
from ..parallel import parallelize
from .turns import compared, shared_memory, slowest, take_turns


def column_row_pair(world_size, width, num_rows, repeats):
    def fn(comm):
        inner, mesh = shared_memory(comm), init_device_mesh("cpu", (comm.world_size,))
        ours, theirs = _mlp(width), _mlp(width)
        parallelize(ours, inner, {"0": "column", "2": "row"})
        parallelize_module(theirs, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        torch.manual_seed(0)
        x = torch.randn(num_rows, width, requires_grad=True)
        return take_turns(inner, repeats, partial(_both_passes, ours, x), partial(_both_passes, theirs, x), calls=10)

    ours_s, theirs_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    work = f"column and row layer, {num_rows} x {width}, {world_size} ranks"
    return [compared(work, "parallelize_module", ours_s, theirs_s, ">= 3")]


def _mlp(width):
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def _both_passes(net, x):
    net(x).sum().backward()
