"""Tensors that backward gathers once more, instead of keeping them whole (lesson 15)."""

from contextlib import nullcontext

from torch.autograd.graph import saved_tensors_hooks

from .conjugate import all_gathered


class Again:
    """How to get a gathered tensor once more.

    Args:
        x: this rank's part of it, which is kept.
        whole: the gathered tensor, which is not: what `gather(x, comm, dim, keep=True)` gives.
        comm, dim: over which ranks, and along which dimension.
    """

    def __init__(self, x, whole, comm, dim):
        # The node of `whole` keeps x as autograd keeps all else; without a gradient for x there is no node.
        self._node, self._part = whole.grad_fn, None if whole.grad_fn else x.detach()
        self._comm, self._dim, self._size = comm, dim, whole.shape[dim]
        self._memory, self._numel = whole.data_ptr(), whole.numel()
        self._num_kept, self._num_left, self._whole = 0, 0, None

    def pack(self, tensor):
        """What autograd keeps of a tensor that it saves."""
        if tensor.data_ptr() != self._memory or tensor.numel() != self._numel:
            return tensor
        self._num_kept += 1
        return self, tensor.shape

    def get(self):
        """The whole tensor, gathered when the first of those who have kept it asks, and dropped with the last."""
        if self._num_left == 0:
            part = self._part if self._node is None else self._node.saved_tensors[0]
            self._whole = all_gathered(part, self._comm, self._dim, self._size)
            self._num_left = self._num_kept
        self._num_left -= 1
        whole = self._whole
        if self._num_left == 0:
            self._whole = None
        return whole


def keeping_parts(again):
    """A context in which the tensor of `again` is not kept for backward; None: it is."""
    return nullcontext() if again is None else saved_tensors_hooks(again.pack, _unpack)


def _unpack(kept):
    if isinstance(kept, tuple):
        again, shape = kept
        return again.get().view(shape)
    return kept
