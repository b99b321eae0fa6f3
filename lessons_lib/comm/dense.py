"""Tensors as they travel: in one piece of memory, and back to where they came from."""


def dense(tensor):
    """`tensor` in one piece, as it lies in memory: itself where it does, else a copy."""
    whole = tensor.detach().contiguous().resolve_conj().resolve_neg()
    # Up to one element is in one piece whatever the strides say, but torch does not view it as bytes with all of them.
    return whole.as_strided(whole.shape, [1] * whole.dim()) if whole.numel() < 2 else whole


def copy_back(tensor, contiguous):
    """Fill `tensor` from what `dense` made of it; nothing to do where that is the tensor itself."""
    if contiguous.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(contiguous)
