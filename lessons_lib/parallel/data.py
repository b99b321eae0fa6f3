"""Data parallelism: every rank has the whole model and a share of the batch (lesson 12)."""

import zlib
from contextlib import contextmanager
from numbers import Real

import torch
from torch import nn

from ..comm import Communicator
from .reducer import Reducer


class DataParallel(nn.Module):
    """Trains one model on many ranks: gradients are averaged over all samples when `backward()` returns.

    At the start every rank takes over rank 0's parameters and buffers. With n_k samples on rank k and g_k the gradient
    of their mean loss, every rank gets  g = Σ_k n_k g_k / Σ_k n_k,  the gradient of the mean over all samples.

    Args:
        module: any `nn.Module`, with the same parameters on every rank; on `comm.device`.
        comm: `Communicator`.
        bucket_cap_mb: gradients travel in buckets of about this size (MB), the last layers' first.
        overlap: whether buckets are reduced in a thread while `backward()` goes on; by default where messages wait for
            a wire, and not in shared memory, where the reduction needs the same core.
        weight_by_batch: count n_k along dimension 0 of the first tensor that `forward` is given (a rank may have none).
            False: a plain mean over ranks, as in torch's DDP; the two are equal when all n_k are.
        broadcast_buffers: take over rank 0's buffers (batch norm statistics) before each forward pass in training.

    Attributes:
        module: the wrapped module.

    Raises:
        TypeError, ValueError: bad arguments; no parameter needs a gradient.
        CollectiveMismatch: the ranks' modules differ in shape.

    Communication: one all-reduce of the gradients a backward pass, and as many numbers more as there are parameters.

    Differs from torch's DDP: parameters without a gradient need no flag, and keep `grad` None if no rank has one;
    uneven shards are weighted; parameters' `.grad` are views of the buckets after a backward pass.

    Source: Li et al., PyTorch Distributed (2020), §3.2; lesson 12.
    """

    def __init__(self, module, comm, bucket_cap_mb=25.0, overlap=None, weight_by_batch=True, broadcast_buffers=True):
        super().__init__()
        _check(module, comm, bucket_cap_mb)
        self.module, self.comm = module, comm
        self.broadcast_buffers = broadcast_buffers and any(True for _ in module.buffers())
        comm.transport.agree(f"DataParallel({_signature(module)})")
        _broadcast([*module.parameters(), *module.buffers()], comm)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        options = comm.transport.waits_on_wire if overlap is None else overlap, weight_by_batch
        self._reducer, self._sync = Reducer(trained, comm, bucket_cap_mb * 1e6, *options), True

    def forward(self, *args, **kwargs):
        if torch.is_grad_enabled():
            self._reducer.is_on = self._sync
            self._reducer.num_samples += _batch_size(args, kwargs)
            if self.broadcast_buffers and self._sync and self.training:
                _broadcast(list(self.module.buffers()), self.comm)
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self):
        """Within this context backward passes add up gradients on each rank; the first pass after it averages them."""
        before, self._sync = self._sync, False
        try:
            yield
        finally:
            self._sync = before


def _check(module, comm, bucket_cap_mb):
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}: a torch.nn.Module is needed")
    if not isinstance(comm, Communicator):
        raise TypeError(f"comm is a {type(comm).__name__}: the Communicator that launch or connect gives is needed")
    if not isinstance(bucket_cap_mb, Real) or not bucket_cap_mb > 0:
        raise ValueError(f"bucket_cap_mb={bucket_cap_mb!r}: more than 0 MB are needed")
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError("module has no parameter that needs a gradient: there is nothing to train")
    for name, p in module.named_parameters():
        if p.device.type != comm.device.type:
            raise ValueError(
                f"parameter {name} is on {p.device}, this rank on {comm.device}: use module.to(comm.device)"
            )


def _signature(module):
    shapes = [(name, tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in module.named_parameters()]
    shapes += [(name, tuple(b.shape), str(b.dtype)) for name, b in module.named_buffers()]
    numel = sum(p.numel() for p in module.parameters())
    return f"{len(shapes)} tensors, {numel} numbers, shapes {zlib.crc32(repr(shapes).encode()):08x}"


@torch.no_grad()
def _broadcast(tensors, comm):
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor.detach() for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        comm.broadcast(flat)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _batch_size(args, kwargs):
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim()]
    return len(tensors[0]) if tensors else 1
