"""One sequence cut over ranks: which positions a rank has, and how parts and losses come together (lesson 17)."""

import torch

from ...schedules.attention import chunk_owners
from ...schedules.schedule import chunk_bounds
from ..weighed import refuse_weighed


def sequence_positions(length, comm, balance="zigzag"):
    """The positions of a sequence that this rank holds, in the order in which it holds them.

    Args:
        length: T, of the whole sequence; it need not divide.
        comm: the `Communicator` of the ranks that share the sequence.
        balance: "zigzag": of 2N nearly equal chunks rank r holds chunk r and chunk 2N - 1 - r. "straight": of N chunks
            chunk r.

    Returns:
        A tensor of int64, about T / N long.
    """
    return all_positions(length, comm.world_size, balance)[comm.rank].to(comm.device)


def split_sequence(x, comm, balance="zigzag", dim=1):
    """This rank's part of `x`, which is whole on every rank; along dimension `dim` lie the positions.

    The part remembers how it was cut, so that a `context_parallel` model that was told otherwise can say so.
    """
    part = x.index_select(dim, sequence_positions(x.shape[dim], comm, balance).to(x.device))
    part.cut_as = balance
    return part


def join_sequence(x, comm, balance="zigzag", dim=1):
    """The whole of what `split_sequence` has cut, on every rank, without a graph: for evaluation, not for training.

    Args:
        x: this rank's part, along `dim` as long as `sequence_positions` says, along others as on all ranks.
        comm, balance, dim: as for `split_sequence`.

    Raises:
        ValueError: x has a graph, or is not as long as the cut says.

    Communication: one broadcast of each part.
    """
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("x has a graph, which join_sequence would cut: x.detach() is needed, and losses of the parts")
    lengths = [length for (length,) in comm.tell("join_sequence", [x.shape[dim]])]
    check_lengths("x", lengths, balance)
    shapes = [(*x.shape[:dim], length, *x.shape[dim:][1:]) for length in lengths]
    parts = [x.detach().contiguous() if r == comm.rank else x.new_empty(shape) for r, shape in enumerate(shapes)]
    for rank, part in enumerate(parts):
        comm.broadcast(part, src=rank)
    order = torch.cat(all_positions(sum(lengths), comm.world_size, balance)).to(x.device)
    return torch.cat(parts, dim).index_select(dim, order.argsort())


def share_of_mean(loss, count, comm):
    """The loss to take the gradient of on this rank, so that the plain mean over ranks is right for unequal counts.

    With the mean ℓ_k over the n_k tokens of rank k, the mean over all is Σ n_k ℓ_k / Σ n_k, and rank k gets its term
    N n_k ℓ_k / Σ n_k. Where keys or tokens of other ranks pass through a rank, no weighting of its gradients after the
    backward pass comes to the same.

    `DataParallel` and `FullySharded` do that by themselves: with them, over the same ranks, this is for
    `weight_by_batch=False` alone. Otherwise the backward pass raises `RuntimeError` on every rank.

    Args:
        loss: ℓ_k, a number with a graph; with n_k = 0 it does not count, even if it is nan.
        count: n_k, such as the number of tokens that are no padding.
        comm: the `Communicator` of all N ranks that hold parts of the batch.

    Communication: one all-reduce of one number.
    """
    total = torch.tensor([float(count)], dtype=torch.float64, device=comm.device)
    comm.all_reduce(total)
    share = loss * (comm.world_size * count / total.item()) if count else torch.nan_to_num(loss) * 0.0
    if share.requires_grad and comm.world_size > 1:
        refuse_weighed(share, comm)
    return share


def check_lengths(name, lengths, balance):
    """Raise, on every rank, unless the parts of `name` are as long as the cut of a sequence of their total length."""
    needed = [len(positions) for positions in all_positions(sum(lengths), len(lengths), balance)]
    for rank, (length, wanted) in enumerate(zip(lengths, needed, strict=True)):
        if length != wanted:
            raise ValueError(
                f"{name} has {length} positions on rank {rank}: {wanted} are needed of {sum(lengths)} over "
                f"{len(lengths)} ranks, balance={balance!r}, as split_sequence cuts them"
            )


def all_positions(length, num_ranks, balance):
    """For each rank the positions that it holds."""
    owners = chunk_owners(num_ranks, balance)
    chunks = [torch.arange(*bounds) for bounds in chunk_bounds(length, len(owners))]
    return [torch.cat([chunks[c] for c, owner in enumerate(owners) if owner == rank]) for rank in range(num_ranks)]
