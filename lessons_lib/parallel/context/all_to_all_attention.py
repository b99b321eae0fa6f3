"""Attention over a cut sequence: for a while each rank has all positions of some of the heads (lesson 17)."""

from math import prod

import torch
from torch.nn import functional as F

from ..exchange import exchange
from .attention_inputs import check_attention
from .sequence import all_positions


def all_to_all_attention(q, k, v, comm, causal=True, balance="zigzag"):
    """This rank's part of softmax(q kᵀ / √d) v over the whole sequence, exact, with exact gradients.

    An all-to-all gives each rank all positions of 1/N of the heads, torch's own attention does the rest, and another
    all-to-all brings the answers home. Arguments, result and errors are those of `ring_attention`.

    Raises:
        ValueError: N does not divide the heads, or the key heads.

    Communication: forward one all-to-all of q, k and v and one of the answer; backward the same of their gradients. A
    rank sends (N - 1)/N of what it has. What ranks tell each other to be checked is no payload.

    Memory: with S bytes of q, as many of k and of v: 8S are kept for the backward pass, since all four are there twice,
    cut along positions and along heads. At most 10S forward and 13S backward; S is 1/N of the whole.

    Source: Jacobs et al., DeepSpeed Ulysses (2023), §3; lesson 17.
    """
    for name, heads in (("q", q), ("k", k)):
        if isinstance(heads, torch.Tensor) and heads.dim() == 4 and heads.shape[1] % comm.world_size:
            raise ValueError(f"{name} has {heads.shape[1]} heads: a multiple of the {comm.world_size} ranks is needed")
    lengths, key_lengths = check_attention("all_to_all_attention", q, k, v, comm, causal, balance)
    whole = _by_heads([q, k, v], comm, [lengths, key_lengths, key_lengths], balance)
    answer = F.scaled_dot_product_attention(*whole, is_causal=bool(causal), enable_gqa=q.shape[1] != k.shape[1])
    return _by_positions(answer, comm, lengths, balance)


def _by_heads(tensors, comm, lengths, balance):
    """Each of the tensors (B, heads, T_r, d) as (B, heads / N, T, d), with positions in their order."""
    size = comm.world_size
    pieces = [each.unflatten(1, (size, -1)).movedim(1, 0).flatten(1) for each in tensors]  # a row for each rank
    shapes = [(each.shape[0], each.shape[1] // size, each.shape[3]) for each in tensors]
    numels = [[prod(shape) * length for length in own] for shape, own in zip(shapes, lengths, strict=True)]
    given = [sum(own[comm.rank] for own in numels)] * size
    taken = [sum(own[rank] for own in numels) for rank in range(size)]
    came = exchange(torch.cat(pieces, 1).flatten(), comm, given, taken).split(taken)
    parts = [each.split([own[rank] for own in numels]) for rank, each in enumerate(came)]
    wholes = []
    for number, ((batch, heads, width), own) in enumerate(zip(shapes, lengths, strict=True)):
        by_rank = [parts[rank][number].view(batch, heads, own[rank], width) for rank in range(size)]
        order = torch.cat(all_positions(sum(own), size, balance)).argsort().to(comm.device)
        wholes.append(torch.cat(by_rank, 2).index_select(2, order))
    return wholes


def _by_positions(answer, comm, lengths, balance):
    """(B, heads / N, T, d) as (B, heads, T_r, d), this rank's positions."""
    batch, heads, length, width = answer.shape
    order = torch.cat(all_positions(length, comm.world_size, balance)).to(answer.device)
    given = [batch * heads * own * width for own in lengths]
    taken = [given[comm.rank]] * comm.world_size
    pieces = [each.flatten() for each in answer.index_select(2, order).split(lengths, 2)]
    came = exchange(torch.cat(pieces), comm, given, taken)
    return came.view(comm.world_size, batch, heads, -1, width).movedim(0, 1).flatten(1, 2)
