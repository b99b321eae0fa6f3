"""What a communicator's operations accept, and what they say otherwise."""

from functools import lru_cache
from numbers import Integral

import torch

from ..devices import cgroup_limits, gigabytes, memory_left
from ..errors import check_whole
from ..schedules.schedule import chunk_bounds
from .execute import REDUCE

OPS = ("sum", "mean", "product", "max", "min")
LITTLE_BYTES = 10_000_000  # for so few it is not worth a look at what is left
# Those whose tensors are left as they are.
READ_ONLY = (
    "send",
    "isend",
    "gather",
    "reduce_scatter",
    "all_gather: input",
    "all_to_all: input",
    "scatter: scatter_list",
)


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
    if peer == rank and name in ("send", "recv", "isend", "irecv"):
        raise ValueError(f"{name}: {argument}={peer} is this rank itself: another rank is needed")


def check_others(name, world_size):
    if world_size == 1:
        raise ValueError(f"{name}: src=None: more ranks than this one are needed")


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


def check_list(name, argument, tensors, like, world_size):
    """Raise unless `tensors` is a list of one tensor `like` this for each rank; None where `world_size` is None."""
    if world_size is None:
        if tensors is not None:
            raise ValueError(f"{name}: {argument} is given: None is needed on every rank but the root")
        return
    if not isinstance(tensors, list | tuple) or len(tensors) != world_size:
        found = f"a list of {len(tensors)}" if isinstance(tensors, list | tuple) else f"a {type(tensors).__name__}"
        raise ValueError(f"{name}: {argument} is {found}: a list of {world_size} tensors is needed, one for each rank")
    for tensor in tensors:
        check_tensor(f"{name}: {argument}", tensor)
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise ValueError(
                f"{name}: {argument} has a tensor of {tensor.dtype}, shape {tuple(tensor.shape)}: all are needed as "
                f"the tensor is, {like.dtype}, shape {tuple(like.shape)}"
            )


def check_splits(output, input, output_split_sizes, input_split_sizes, world_size):
    """Raise unless both are lists of one tensor per rank, or tensors that the sizes fit; whether they are lists."""
    is_list = isinstance(output, list | tuple)
    if is_list != isinstance(input, list | tuple):
        raise TypeError(
            f"output is a {type(output).__name__}, input a {type(input).__name__}: two tensors or two lists are needed"
        )
    for name, given, sizes in (("output", output, output_split_sizes), ("input", input, input_split_sizes)):
        for tensor in given if is_list else [given]:
            check_tensor(f"all_to_all: {name}", tensor)
            if tensor.dtype != (first := output[0] if is_list else output).dtype:
                raise ValueError(f"{name} is {tensor.dtype}: {first.dtype} is needed, as of the first output")
        if is_list and len(given) != world_size:
            raise ValueError(f"{name} has {len(given)} tensors: {world_size} are needed, one for each rank")
        if is_list and sizes is not None:
            raise ValueError(f"{name}_split_sizes={sizes!r}: None is needed with lists of tensors")
        if not is_list:
            _check_rows(name, given, sizes, world_size)
    if not is_list and output_split_sizes is None and input_split_sizes is None and output.shape != input.shape:
        shapes = f"{tuple(output.shape)} and {tuple(input.shape)}"
        raise ValueError(f"output and input have shapes {shapes}: the same are needed without split sizes")
    return is_list


def _check_rows(name, tensor, sizes, world_size):
    if tensor.dim() == 0:
        raise ValueError(f"{name} has no dimension: one with rows is needed")
    if sizes is None:
        if len(tensor) % world_size:
            raise ValueError(f"{name} has {len(tensor)} rows: a multiple of {world_size} is needed without split sizes")
        return
    if not isinstance(sizes, list | tuple) or len(sizes) != world_size:
        raise ValueError(f"{name}_split_sizes={sizes!r}: a list of {world_size} numbers is needed, one for each rank")
    for size in sizes:
        check_whole(f"{name}_split_sizes", size, 0)
    if sum(sizes) != len(tensor):
        raise ValueError(f"{name}_split_sizes={sizes!r}: a sum of {len(tensor)} is needed, the rows of {name}")


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
