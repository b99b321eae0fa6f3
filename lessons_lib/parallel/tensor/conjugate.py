"""What a tensor passes on its way into and out of a split region: each operation is the other's backward (lesson 15).

A tensor is *whole* where all ranks hold the same numbers, *cut* where each holds its own part along a dimension, and
*partial* where the sum over the ranks is meant.

    forward                                        backward
    enter            whole   -> whole              add_up            partial -> whole
    add_up           partial -> whole              enter             whole   -> whole
    gather           cut     -> whole              reduce_scatter    partial -> cut
    reduce_scatter   partial -> cut                gather            cut     -> whole
    cut              whole   -> cut                join              cut     -> whole
    join             cut     -> whole              cut               whole   -> cut

The gradient of a whole tensor is whole; but what a split region sends back to its whole input is partial.
"""

import torch

from ...schedules.schedule import chunk_bounds


def enter(x, comm):
    """Let a whole `x` into a region where each rank computes its part: nothing moves until backward, which adds up.

    Communication: backward: one all-reduce.
    """
    return _Enter.apply(x, comm)


def add_up(x, comm):
    """The sum of all ranks' `x`, on every rank.

    Communication: forward: one all-reduce.
    """
    return _AddUp.apply(x, comm)


def gather(x, comm, dim, keep=False):
    """Join the parts of `x`, which lie along `dim` and are equally long, for a region where each computes its part.

    Args:
        keep: keep `x` in the graph, as the one thing that the node of the result saves.

    Communication: forward: one all-gather of the whole; backward: one reduce-scatter of it.
    """
    return _Gather.apply(x, comm, dim, keep)


def reduce_scatter(x, comm, dim):
    """This rank's part, along `dim`, of the sum of all ranks' `x`.

    Raises:
        ValueError: `x` does not divide into equal parts.

    Communication: forward: one reduce-scatter of `x`; backward: one all-gather.
    """
    check_divides(x, comm, dim)
    return _ReduceScatter.apply(x, comm, dim)


def cut(x, comm, dim):
    """This rank's part of a whole `x` along `dim`, by `chunk_bounds`.

    Communication: backward: one all-gather of the whole, whose parts are padded to the longest one.
    """
    return _Cut.apply(x, comm, dim)


def join(x, comm, dim, size):
    """Join the parts of `x`, cut along `dim` by `chunk_bounds`, to a tensor of `size` there, for all to compute alike.

    Communication: forward: one all-gather of the whole, whose parts are padded to the longest one.
    """
    return _Join.apply(x, comm, dim, size)


def check_divides(x, comm, dim):
    if x.shape[dim] % comm.world_size:
        raise ValueError(
            f"a tensor {tuple(x.shape)} has {x.shape[dim]} positions along dimension {dim}: a multiple of the "
            f"{comm.world_size} ranks is needed with sequence_parallel=True, so pad the input"
        )


def bounds(size, comm):
    """(start, length) of this rank's part of `size`."""
    start, stop = chunk_bounds(size, comm.world_size)[comm.rank]
    return start, stop - start


def all_gathered(x, comm, dim, size):
    """All parts along `dim`, which make up `size`, one after the other."""
    lengths = [stop - start for start, stop in chunk_bounds(size, comm.world_size)]
    own, longest = x.movedim(dim, 0), max(lengths)
    if len(own) < longest:
        own = torch.cat([own, own.new_zeros(longest - len(own), *own.shape[1:])])
    parts = own.new_empty(comm.world_size, longest, *own.shape[1:])
    comm.all_gather(parts, own.contiguous())
    whole = [part[:length] for part, length in zip(parts, lengths, strict=True)]
    return (parts.flatten(0, 1) if longest * len(lengths) == size else torch.cat(whole)).movedim(0, dim).contiguous()


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, comm):
        ctx.comm = comm
        return x.detach()  # no view of x, which may hold it for others that enter

    @staticmethod
    def backward(ctx, gradient):
        return add_up(gradient, ctx.comm), None


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, comm):
        ctx.comm = comm
        total = x.clone(memory_format=torch.contiguous_format)
        comm.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return enter(gradient, ctx.comm), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, comm, dim, keep):
        ctx.options = comm, dim
        if keep:
            ctx.save_for_backward(x.detach())  # another object: x itself may know the whole
        return all_gathered(x, comm, dim, x.shape[dim] * comm.world_size)

    @staticmethod
    def backward(ctx, gradient):
        return reduce_scatter(gradient, *ctx.options), None, None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, comm, dim):
        ctx.options = comm, dim
        rows = x.movedim(dim, 0).contiguous()
        part = rows.new_empty(len(rows) // comm.world_size, *rows.shape[1:])
        comm.reduce_scatter(part, rows)
        return part.movedim(0, dim).contiguous()

    @staticmethod
    def backward(ctx, gradient):
        return gather(gradient, *ctx.options), None, None


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, comm, dim):
        ctx.options = comm, dim, x.shape[dim]
        return x.narrow(dim, *bounds(x.shape[dim], comm)).contiguous()

    @staticmethod
    def backward(ctx, gradient):
        return join(gradient, *ctx.options), None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, comm, dim, size):
        ctx.options = comm, dim
        return all_gathered(x, comm, dim, size)

    @staticmethod
    def backward(ctx, gradient):
        return cut(gradient, *ctx.options), None, None, None
