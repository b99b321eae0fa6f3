"""Tensors as they travel: in one piece of memory, and back to where they came from."""

import torch


def dense(tensor):
    """`tensor` in one piece, as it lies in memory: the same memory where it does already, else a copy."""
    whole = tensor.detach().contiguous().resolve_conj().resolve_neg()
    # Up to one element is in one piece whatever the strides say, but torch does not view it as bytes with all of them.
    whole = whole.as_strided(whole.shape, [1] * whole.dim()) if whole.numel() < 2 else whole
    return _writable(whole) if whole.is_inference() else whole


@torch.inference_mode(False)
def _writable(tensor):
    """An ordinary tensor on the memory of one made in `inference_mode`, which may only be changed within that mode."""
    writable = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return writable.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def copy_back(tensor, contiguous):
    """Fill `tensor` from what `dense` made of it; nothing to do where that is the tensor itself."""
    if contiguous.data_ptr() != tensor.data_ptr():
        with torch.inference_mode(tensor.is_inference()):
            tensor.detach().copy_(contiguous)
