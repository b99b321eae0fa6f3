"""Many tensors as few: one flat tensor for each dtype, which is what travels."""

import torch


def pack(tensors):
    """One flat copy of all `tensors` of a dtype after another, in the order in which the dtypes first come."""
    by_dtype = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor.detach().reshape(-1))
    return [torch.cat(same) for same in by_dtype.values()]


def unpack(flats, like):
    """The views of `flats` that stand for the tensors of `like`, in their order, as `pack(like)` laid them out."""
    offsets, by_dtype = dict.fromkeys((flat.dtype for flat in flats), 0), {flat.dtype: flat for flat in flats}
    views = []
    for tensor in like:
        start = offsets[tensor.dtype]
        offsets[tensor.dtype] = stop = start + tensor.numel()
        views.append(by_dtype[tensor.dtype][start:stop].view(tensor.shape))
    return views


def empty_like(tensors):
    """Flat tensors to receive what `pack(tensors)` gives elsewhere."""
    numel = {}
    for tensor in tensors:
        numel[tensor.dtype] = numel.get(tensor.dtype, 0) + tensor.numel()
    return [torch.empty(size, dtype=dtype, device=tensors[0].device) for dtype, size in numel.items()]
