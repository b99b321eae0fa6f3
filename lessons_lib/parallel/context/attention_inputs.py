"""What attention over a cut sequence accepts, and what it says otherwise, on every rank (lesson 17)."""

import torch

from ...errors import CollectiveMismatch
from ...schedules.attention import BALANCES, chunk_owners
from .sequence import check_lengths

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TOLD = ("batch", "heads", "key heads", "width", "dtype", "whether gradients are needed", "causal", "balance")


def check_attention(name, q, k, v, comm, causal, balance):
    """The numbers of queries and of keys of each rank: two lists.

    Raises:
        TypeError, ValueError: as `ring_attention` says.
        CollectiveMismatch: ranks have other sizes, dtypes or options.
    """
    _check_tensors(q, k, v)
    chunk_owners(comm.world_size, balance)
    needs_grad = torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v))
    (batch, heads, length, width), (_, key_heads, key_length, _) = q.shape, k.shape
    dtype = _DTYPES.index(q.dtype)
    told = [batch, heads, key_heads, width, dtype, needs_grad, bool(causal), BALANCES.index(balance)]
    table = comm.tell(name, [*map(int, told), length, key_length])
    _check_same(name, table)
    lengths, key_lengths = ([row[column] for row in table] for column in (-2, -1))
    if causal and lengths != key_lengths:
        raise ValueError(f"q has {lengths} positions by rank, k {key_lengths}: causal=True needs the same")
    check_lengths("q", lengths, balance)
    check_lengths("k", key_lengths, balance)
    if not sum(key_lengths):
        raise ValueError("k has no position on any rank: at least one is needed")
    return lengths, key_lengths


def _check_tensors(q, k, v):
    for argument, tensor in {"q": q, "k": k, "v": v}.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"{argument} is a {kind}: a floating-point tensor is needed")
        if tensor.dim() != 4:
            raise ValueError(f"{argument} has shape {tuple(tensor.shape)}: (batch, heads, positions, width) is needed")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(
                f"{argument} is {tensor.dtype} on {tensor.device}: {q.dtype} on {q.device}, as q, is needed"
            )
    if v.shape != k.shape or (k.shape[0], k.shape[3]) != (q.shape[0], q.shape[3]):
        shapes = ", ".join(str(tuple(each.shape)) for each in (q, k, v))
        raise ValueError(f"q, k and v have shapes {shapes}: the same batch and width are needed, and k as v")
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"k has {k.shape[1]} heads: a divisor of the {q.shape[1]} heads of q is needed")


def _check_same(name, table):
    for what, column in zip(_TOLD, range(len(_TOLD)), strict=True):
        if len({row[column] for row in table}) > 1:
            raise CollectiveMismatch({rank: f"{name} with {what} {row[column]}" for rank, row in enumerate(table)})
