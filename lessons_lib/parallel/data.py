"""Data parallelism: every rank has the whole model and a share of the batch (lesson 12)."""

import zlib
from contextlib import contextmanager

import torch
from torch import nn

from ..collectives import Communicator, TorchTransport


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
        self.weight_by_batch, self.broadcast_buffers = weight_by_batch, broadcast_buffers
        over_a_wire = isinstance(comm.transport, TorchTransport) or comm.transport.wire is not None
        self._overlap = over_a_wire if overlap is None else overlap
        self._sync = self._sync_this_pass = True
        self._num_samples, self._weight_unit = 0, 1.0
        self._trained = [p for p in module.parameters() if p.requires_grad]
        comm.transport.agree(f"DataParallel({_signature(module)})")
        _broadcast([*module.parameters(), *module.buffers()], comm)
        self._make_buckets(bucket_cap_mb * 1e6)
        for parameter in self._trained:
            parameter.register_post_accumulate_grad_hook(self._ready)

    def forward(self, *args, **kwargs):
        if torch.is_grad_enabled():
            self._sync_this_pass = self._sync
            if self.weight_by_batch:
                self._num_samples += _batch_size(args, kwargs)
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

    def _make_buckets(self, cap_bytes):
        """Fill buckets from the last parameter to the first; behind the last one lie the flags of what was used."""
        groups, size_bytes = [], 0
        for parameter in reversed(self._trained):
            same = groups and groups[-1][0].dtype == parameter.dtype
            if not same or size_bytes + parameter.nbytes > cap_bytes:
                groups.append([])
                size_bytes = 0
            groups[-1].append(parameter)
            size_bytes += parameter.nbytes
        num_flags = len(self._trained) + 1
        extra = num_flags if groups[-1][0].dtype in (torch.float32, torch.float64) else 0
        self._buckets = [Bucket(group, self.comm, extra if group is groups[-1] else 0) for group in groups]
        if not extra:
            self._buckets.append(Bucket([], self.comm, num_flags))
        self._flags = self._buckets[-1].flat[-num_flags:]
        self._place = {p: (bucket, view) for bucket in self._buckets for p, view in bucket.views.items()}
        self._next = None

    def _ready(self, parameter):
        """Called by autograd when `parameter.grad` is complete on this rank."""
        if not self._sync_this_pass:
            return
        if self._next is None:
            self._next = 0
            for bucket in self._buckets:
                bucket.missing = set(bucket.views)
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        bucket, _ = self._place[parameter]
        self._collect(parameter)
        bucket.missing.discard(parameter)
        while self._next < len(self._buckets) - 1 and not self._buckets[self._next].missing:
            self._reduce_next()

    def _weight(self):
        return self._num_samples / self._weight_unit if self.weight_by_batch else 1 / self.comm.world_size

    def _collect(self, parameter):
        """Bring the parameter's gradient, weighted, into its bucket."""
        _, view = self._place[parameter]
        weight = self._weight()
        if parameter.grad is None or weight == 0:
            view.zero_()
        else:
            torch.mul(parameter.grad, weight, out=view)

    def _reduce_next(self):
        bucket = self._buckets[self._next]
        is_last = bucket is self._buckets[-1]  # nothing is left that it could overlap with
        bucket.work = self.comm.all_reduce(bucket.flat, async_op=self._overlap and not is_last)
        self._next += 1

    def _finish(self):
        """The end of a backward pass: reduce what is left, then hand the averages to the parameters."""
        for bucket in self._buckets[self._next :]:
            for parameter in bucket.missing:
                self._collect(parameter)
        used = [float(parameter.grad is not None) for parameter in self._trained]
        self._flags.copy_(torch.tensor([*used, self._num_samples]))
        while self._next < len(self._buckets):
            self._reduce_next()
        for bucket in self._buckets:
            if bucket.work is not None:
                bucket.work.wait()
        *used, num_samples = self._flags.tolist()
        self._rescale(num_samples)
        for parameter, ranks_used in zip(self._trained, used, strict=True):
            if ranks_used:
                parameter.grad = self._place[parameter][1]
        self._num_samples, self._next = 0, None

    def _rescale(self, num_samples):
        """Divide by the number of samples. The weights were made with the last step's number, most often the same."""
        if self.weight_by_batch and num_samples:
            if num_samples != self._weight_unit:
                for bucket in self._buckets:
                    bucket.gradients.mul_(self._weight_unit / num_samples)
            self._weight_unit = num_samples


class Bucket:
    """Gradients of several parameters in one flat buffer; `views` maps each parameter to its part, in its shape."""

    def __init__(self, parameters, comm, extra):
        numel = sum(parameter.numel() for parameter in parameters)
        self.flat = comm.buffer(numel + extra, parameters[0].dtype if parameters else torch.float32)
        self.gradients = self.flat[:numel]
        parts = self.gradients.split([parameter.numel() for parameter in parameters]) if parameters else []
        self.views = {p: part.view_as(p) for p, part in zip(parameters, parts, strict=True)}
        self.missing, self.work = set(), None


def _check(module, comm, bucket_cap_mb):
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}: a torch.nn.Module is needed")
    if not isinstance(comm, Communicator):
        raise TypeError(f"comm is a {type(comm).__name__}: the Communicator that launch or connect gives is needed")
    if not bucket_cap_mb > 0:
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
