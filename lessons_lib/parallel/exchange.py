"""Rows that go to other ranks within a graph: their gradients come back the same way (lesson 17)."""

import torch
from torch.autograd.function import once_differentiable


def exchange(x, comm, given, taken, scale=1.0):
    """Give `given[r]` rows of x to each rank r, in order, and get `taken[r]` rows from it: `comm.all_to_all` with a graph.

    Args:
        x: (sum of given, ...), contiguous.
        scale: the factor by which gradients are multiplied on their way back.

    Communication: one all-to-all, and one more in the backward pass.
    """
    return _Exchange.apply(x, comm, given, taken, scale)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, comm, given, taken, scale):
        ctx.way = comm, given, taken, scale
        return _moved(x, comm, given, taken)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        comm, given, taken, scale = ctx.way
        moved = _moved(gradient, comm, taken, given)
        return moved if scale == 1 else moved * scale, None, None, None, None


def _moved(x, comm, given, taken):
    output = x.new_empty((sum(taken), *x.shape[1:]))
    comm.all_to_all(output, x.contiguous(), output_split_sizes=taken, input_split_sizes=given)
    return output
