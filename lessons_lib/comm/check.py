"""What a communicator's operations accept, and what they say otherwise."""

from functools import lru_cache
from numbers import Integral

import torch

from ..devices import cgroup_limits, gigabytes, memory_left
from ..schedules.schedule import chunk_bounds
from .execute import REDUCE

OPS = ("sum", "mean", "max", "min")
LITTLE_BYTES = 10_000_000  # for so few it is not worth a look at what is left
READ_ONLY = ("send", "reduce_scatter", "all_gather: input")  # whose tensors are left as they are


def check_tensor(name, tensor):
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        is_tensor = isinstance(tensor, torch.Tensor)
        kind = f"{'meta' if tensor.is_meta else tensor.layout} tensor" if is_tensor else type(tensor).__name__
        raise TypeError(f"{name} was given a {kind}: a dense torch.Tensor is needed")
    is_expanded = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if is_expanded and name not in READ_ONLY:
        raise ValueError(f"{name} was given an expanded tensor, whose elements share memory: use tensor.clone()")


def check_peer(name, argument, peer, rank, world_size):
    if not isinstance(peer, Integral) or not 0 <= peer < world_size:
        raise ValueError(f"{name}: {argument}={peer!r}: a rank from 0 to {world_size - 1} is accepted")
    if peer == rank and name in ("send", "recv"):
        raise ValueError(f"{name}: {argument}={peer} is this rank itself: another rank is needed")


def check_op(op, tensor):
    if op not in OPS:
        raise ValueError(f"op={op!r}: one of {', '.join(OPS)} is accepted")
    if op == "mean" and not (tensor.is_floating_point() or tensor.is_complex()):
        raise ValueError(f"op='mean' of dtype {tensor.dtype}: a floating-point tensor is needed")
    if not _can(op, tensor.dtype):
        raise TypeError(f"op={op!r} of dtype {tensor.dtype}: torch cannot do that, use tensor.to(another dtype)")


@lru_cache(maxsize=256)
def _can(op, dtype):
    one = torch.zeros(1).to(dtype)
    try:
        REDUCE[op](one, one)
    except RuntimeError:
        return False
    return True


def check_part(name, argument, part, whole, rank, world_size):
    """Raise unless `part` can hold rank's chunk of `whole`; (start, stop) of that chunk."""
    check_tensor(f"{name}: {argument}", part)
    start, stop = chunk_bounds(whole.numel(), world_size)[rank]
    if part.numel() != stop - start:
        raise ValueError(
            f"{argument} has {part.numel()} elements: rank {rank}'s chunk of {whole.numel()} elements over "
            f"{world_size} ranks has {stop - start}"
        )
    if part.dtype != whole.dtype:
        raise ValueError(f"{argument} is {part.dtype}, the other tensor {whole.dtype}: the same dtype is needed")
    return start, stop


def check_buffer(numel, dtype, world_size):
    if not isinstance(numel, Integral) or isinstance(numel, bool) or numel < 0:
        raise ValueError(f"numel={numel!r}: a whole number of 0 or more is needed")
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={dtype!r}: a torch.dtype is needed, such as torch.float32")
    check_memory("a buffer", world_size, numel * dtype.itemsize)


def check_memory(what, world_size, size_bytes):
    """Raise MemoryError where every rank's `size_bytes` do not fit, before the system ends a process for it."""
    total = world_size * size_bytes
    if total > LITTLE_BYTES and total > (left := memory_left()):
        limit = cgroup_limits()[1]
        of_limit = f" of the {gigabytes(limit)} that this container may use" if limit else ""
        raise MemoryError(
            f"{what} of {world_size} ranks × {gigabytes(size_bytes)} = {gigabytes(total)} does not fit into memory: "
            f"{gigabytes(left)}{of_limit} are free"
        )
