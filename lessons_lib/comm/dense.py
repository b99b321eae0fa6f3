"""Tensors as they travel: in one piece of memory, and back to where they came from."""


def dense(tensor):
    """`tensor` in one piece, as it lies in memory: itself where it does, else a copy."""
    return tensor.detach().contiguous().resolve_conj().resolve_neg()


def copy_back(tensor, contiguous):
    """Fill `tensor` from what `dense` made of it; nothing to do where that is the tensor itself."""
    if contiguous.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(contiguous)
