"""Rows that go to other ranks within a graph: their gradients come back the same way (lesson 17)."""

import torch
from torch.autograd.function import once_differentiable


def exchange(x, comm, given, taken):
    """Give `given[r]` rows of x to each rank r, and get `taken[r]` rows from it: `comm.all_to_all` with a graph.

    Args:
        x: (sum of given, ...), first the rows for rank 0.

    Returns:
        (sum of taken, ...), first the rows from rank 0.

    Communication: one all-to-all, and one more in the backward pass.
    """
    return _Exchange.apply(x, comm, given, taken)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, comm, given, taken):
        ctx.way = comm, given, taken
        return _moved(x, comm, given, taken)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        comm, given, taken = ctx.way
        return _moved(gradient, comm, taken, given), None, None, None


def _moved(x, comm, given, taken):
    output = x.new_empty((sum(taken), *x.shape[1:]))
    comm.all_to_all(output, x.contiguous(), output_split_sizes=taken, input_split_sizes=given)
    return output
