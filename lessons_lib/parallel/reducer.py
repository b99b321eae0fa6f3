"""Averages the gradients of a module over ranks while autograd computes them (lesson 12)."""

from functools import partial

import torch

FLAG_DTYPES = (torch.float32, torch.float64)  # these hold counts of samples and ranks exactly


class Reducer:
    """Watches the gradients of `parameters` and hands each the average over all ranks when a backward pass ends.

    Args:
        parameters: those that need a gradient, in the order of the module.
        comm: `Communicator`.
        cap_bytes: about how many bytes of gradients travel together; the last parameters' go first.
        overlap: whether buckets are reduced in a thread while the backward pass goes on.
        weight_by_batch: weight this rank's gradients with `num_samples`, instead of averaging over ranks.

    Attributes:
        is_on: whether the pass under way is to be averaged; otherwise gradients add up on this rank.
        num_samples: samples that this rank's gradients are a mean over, since the last average.
    """

    def __init__(self, parameters, comm, cap_bytes, overlap, weight_by_batch):
        self.comm, self._overlap, self._weight_by_batch = comm, overlap, weight_by_batch
        self.is_on, self.num_samples = True, 0
        self._weight, self._weight_unit = None, 1.0
        self._make_buckets(parameters, cap_bytes)
        for bucket in self._buckets:
            for parameter, _ in bucket.pairs.values():
                parameter.register_post_accumulate_grad_hook(partial(self._ready, bucket))

    def _make_buckets(self, parameters, cap_bytes):
        """Fill buckets from the last parameter to the first; behind the last one lie the flags of what was used."""
        groups, size_bytes = [], 0
        for parameter in reversed(parameters):
            same = groups and groups[-1][0].dtype == parameter.dtype
            if not same or size_bytes + parameter.nbytes > cap_bytes:
                groups.append([])
                size_bytes = 0
            groups[-1].append(parameter)
            size_bytes += parameter.nbytes
        num_flags = len(parameters) + 1
        if groups[-1][0].dtype not in FLAG_DTYPES:
            groups.append([])
        self._buckets = [Bucket(group, self.comm, num_flags if group is groups[-1] else 0) for group in groups]
        self._flags = self._buckets[-1].flat[-num_flags:]  # which gradients this rank has, and of how many samples
        self._pairs = [pair for bucket in self._buckets for pair in bucket.pairs.values()]
        self._next, self._mine = None, None

    def _ready(self, bucket, parameter):
        """Called by autograd when `parameter.grad` is complete on this rank."""
        if not self.is_on:
            return
        if self._next is None:
            self._begin()
        if self._overlap:
            if bucket in self._buckets[: self._next]:
                raise RuntimeError(
                    "a gradient has grown after it was averaged, as that of a shared weight does in torch's "
                    "checkpoint(use_reentrant=True): use use_reentrant=False, or DataParallel(overlap=False)"
                )
            bucket.fill(*bucket.pairs[id(parameter)])
            bucket.missing.pop(id(parameter), None)
            while self._next < len(self._buckets) - 1 and not self._buckets[self._next].missing:
                self._reduce_next(async_op=True)

    def _begin(self):
        """The first gradient of a backward pass has come."""
        self._next = 0
        weight = self.num_samples / self._weight_unit if self._weight_by_batch else 1 / self.comm.world_size
        for bucket in self._buckets:
            bucket.missing = bucket.pairs.copy()
            if weight != self._weight:
                bucket.weight = torch.tensor(weight, dtype=bucket.weight.dtype)
        self._weight = weight
        torch.autograd.Variable._execution_engine.queue_callback(self._finish)

    def _reduce_next(self, async_op):
        bucket = self._buckets[self._next]
        if self._weight == 0:  # no sample here: whatever the gradients are, even nan, they do not count
            bucket.gradients.zero_()
        bucket.work = self.comm.all_reduce(bucket.flat, async_op=async_op)
        self._next += 1

    def _finish(self):
        """The end of a backward pass: reduce what is left, then hand the averages to the parameters."""
        for bucket in self._buckets:
            for parameter, view in bucket.missing.values():
                bucket.fill(parameter, view)
        mine = [*(parameter.grad is not None for parameter, _ in self._pairs), self.num_samples]
        if mine != self._mine:
            self._mine, self._my_flags = mine, torch.tensor(mine)
        self._flags.copy_(self._my_flags)
        while self._next < len(self._buckets):
            self._reduce_next(async_op=False)  # nothing is left that it could overlap with
        for bucket in self._buckets:
            if bucket.work is not None:
                bucket.work.wait()
        *ranks_used, num_samples = self._flags.tolist()
        self._rescale(num_samples)
        for (parameter, view), used in zip(self._pairs, ranks_used, strict=True):
            if used:
                parameter.grad = view
        self.num_samples, self._next = 0, None

    def _rescale(self, num_samples):
        """Divide by the number of samples. The weights were made with the last step's number, most often the same."""
        if self._weight_by_batch and num_samples:
            if num_samples != self._weight_unit:
                for bucket in self._buckets:
                    bucket.gradients.mul_(self._weight_unit / num_samples)
            self._weight_unit = num_samples


class Bucket:
    """Gradients of several parameters in one flat buffer.

    `pairs`: of each parameter, by its id (hashing it costs more), itself and its part of the buffer, in its shape;
    `missing`: those pairs whose gradient has not come yet in this pass.
    """

    def __init__(self, parameters, comm, extra):
        numel = sum(parameter.numel() for parameter in parameters)
        self.flat = comm.buffer(numel + extra, parameters[0].dtype if parameters else torch.float32)
        self.gradients = self.flat[:numel]
        parts = self.gradients.split([parameter.numel() for parameter in parameters]) if parameters else []
        self.pairs = {id(p): (p, part.view_as(p)) for p, part in zip(parameters, parts, strict=True)}
        self.missing, self.work = {}, None
        # Multiplying by a tensor is faster than by a number, most of all by one of the same dtype, if that is exact.
        self.weight = torch.tensor(0.0, dtype=self.flat.dtype if self.flat.dtype in FLAG_DTYPES else torch.float64)

    def fill(self, parameter, view):
        """Put this rank's gradient into its place, weighted."""
        view.zero_() if parameter.grad is None else torch.mul(parameter.grad, self.weight, out=view)
