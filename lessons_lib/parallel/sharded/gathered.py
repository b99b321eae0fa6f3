"""The way of gathered weights through autograd: their gradients go back to the pieces, and graphs do not hold them."""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable


class Gathered(torch.autograd.Function):
    """From this rank's pieces to the whole parameters; backward adds the gradients up over the ranks.

    `apply(flat, owner, counts, is_synced, *pieces)` gives the parameters of a `FlatShard` that is gathered; `owner`
    reduces their gradients: `owner.reduce(flat, gradients, counts, is_synced)`.
    """

    @staticmethod
    def forward(ctx, flat, owner, counts, is_synced, *pieces):
        ctx.flat, ctx.owner, ctx.counts, ctx.is_synced = flat, owner, counts, is_synced
        ctx.set_materialize_grads(False)
        views = flat.views()
        ctx.mark_non_differentiable(*[v for v, piece in zip(views, pieces, strict=True) if not piece.requires_grad])
        return tuple(views)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        return None, None, None, None, *ctx.owner.reduce(ctx.flat, gradients, ctx.counts, ctx.is_synced)


class Saved(NamedTuple):
    """What a graph keeps of a weight: where it lies, so that it can be gathered again."""

    flat: object
    version: int
    place: tuple


class SaveWeightsAsPlaces:
    """A context in which graphs keep places of gathered weights, and other tensors as ever.

    Args:
        flats: the `FlatShard`s.
    """

    def __init__(self, flats):
        self._flats, self._hooks = flats, None

    def __enter__(self):
        # Hooks that are there already, such as those of torch's checkpoint, count what is saved: it stays theirs. There
        # is no public way to ask for them.
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
            self._hooks.__enter__()

    def __exit__(self, *error):
        if self._hooks is not None:
            hooks, self._hooks = self._hooks, None
            hooks.__exit__(*error)

    def _pack(self, tensor):
        storage = tensor.untyped_storage()._cdata
        for flat in self._flats:
            whole = flat.whole
            if whole is not None and whole.untyped_storage()._cdata == storage and whole.dtype == tensor.dtype:
                return Saved(flat, flat.version(), (tensor.shape, tensor.stride(), tensor.storage_offset()))
        # Torch asks for a detached tensor, lest the graph holds itself, and then no longer looks at its version.
        return tensor.detach(), tensor._version

    @staticmethod
    def _unpack(saved):
        if not isinstance(saved, Saved):
            tensor, version = saved
            if tensor._version != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"a tensor of shape {tuple(tensor.shape)} is at version {tensor._version}, {version} was expected"
                )
            return tensor
        if saved.flat.version() != saved.version:
            raise RuntimeError(
                "weights have been modified by an inplace operation, such as a step, since the forward pass: backward "
                "would compute with the new ones"
            )
        return saved.flat.gather().as_strided(*saved.place)
