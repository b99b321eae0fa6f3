"""Averages the gradients of a module over ranks while autograd computes them (lesson 12)."""

import weakref

import torch

from ..hooks import Hook, remove
from ..replicas import identities, trained
from .bucket import FLAG_DTYPES, make_buckets
from .weights import NUM_FLAGS, UNCOUNTED, check_flags, flags_of


class Reducer:
    """Watches the gradients of parameters and hands each the average over all ranks when a backward pass ends.

    A backward pass is one of autograd's graph tasks: the outermost one that comes to an output of the module. Rank k's
    gradients count n_k / Σ n_k, where n_k is what the forward passes counted whose outputs the pass came to.

    Args:
        comm: `Communicator`.
        cap_bytes: about how many bytes of gradients travel together; the last parameters' go first.
        overlap: whether buckets are reduced in a thread while the backward pass goes on.
        weight_by_batch: False: every n_k is 1.
        hook: `hook(bucket, comm)` adds up `bucket.gradients` over all ranks in place of an all-reduce, or None.
            The flags go first then: it gets this rank's part of the mean, and knows what no rank has used.

    Attributes:
        is_synced: whether gradients of forward passes from now on are to be averaged, or add up on this rank.
        unit: what gradients are weighed against: the number of samples of the last step, at first that of the ranks.
        is_released: whether it has let go of its parameters, because another one watches them.
    """

    def __init__(self, comm, cap_bytes, overlap, weight_by_batch, hook=None):
        self.comm, self._cap_bytes, self.weight_by_batch, self.hook = comm, cap_bytes, weight_by_batch, hook
        self._overlap = overlap and hook is None
        self.is_synced, self.is_released, self._handles = True, False, []
        self._token, self.unit, self._number = _nothing, comm.world_size, 0
        self._kept, self._differentiated = [], []

    def __del__(self):
        remove(self._handles)

    def watch(self, module):
        """Make buckets for the parameters of `module` that need a gradient, and hook them. All ranks do so together."""
        remove(self._handles)
        parameters, self._identities = trained(module), identities(module)
        for parameter in parameters:
            for hook in list((parameter._post_accumulate_grad_hooks or {}).values()):
                if isinstance(hook, Hook) and isinstance(other := hook.owner(), Reducer):
                    other.release()
        self._buckets = make_buckets(parameters, self.comm, self._cap_bytes, len(parameters) + NUM_FLAGS)
        self._pairs = [pair for bucket in self._buckets for pair in bucket.pairs.values()]
        self._bucket_of = {key: bucket for bucket in self._buckets for key in bucket.pairs}
        self._flags = self._buckets[-1].flags
        self._is_exact = all(bucket.flat.dtype in FLAG_DTYPES for bucket in self._buckets)
        hook = Hook(self, Reducer._ready)
        self._handles += [parameter.register_post_accumulate_grad_hook(hook) for parameter in parameters]

    def trains_all(self, module):
        """Whether all is watched that needs a gradient now, in the dtype that it has now."""
        found = identities(module)
        if found == self._identities or None in found:
            return True
        known = {*zip(self._identities[::2], self._identities[1::2], strict=True)}
        return known.issuperset(zip(found[::2], found[1::2], strict=True))

    def release(self):
        """Let go of the parameters, for good."""
        self.is_released = True
        remove(self._handles)

    # --- what autograd tells -----------------------------------------------------------------------------------------

    def reached(self, forward):
        """A backward pass has come to an output of `forward`."""
        if self.is_released:
            raise RuntimeError("backward() through a DataParallel whose module has been wrapped again: use the new one")
        if self._token() is None:
            self._begin()
        if forward not in self._forwards:
            self._forwards.append(forward)

    def _ready(self, parameter):
        """The gradient of `parameter` is complete on this rank, or has grown again."""
        if self._token() is None:
            self._begin()
        if not self._arrived:
            self._first_gradient()
        self._arrived.append(parameter)
        if self._overlap and self._forwards and self._is_synced():
            self._send_early(parameter)

    def _begin(self):
        """A backward pass begins: `_finish` is called at its end, unless it fails."""
        self._forwards, self._arrived, self._next = [], [], None
        self._is_differentiable = torch.is_grad_enabled()
        # The engine holds the token, and drops it with a pass that fails: the next one does not go on from there.
        token = _Token()
        self._token = weakref.ref(token)
        torch.autograd.Variable._execution_engine.queue_callback(lambda token=token: self._finish())

    def _first_gradient(self):
        if self._is_differentiable:
            raise RuntimeError(
                "backward(create_graph=True): the average over ranks has no graph, so use "
                "torch.autograd.grad(..., create_graph=True) and backward() of what is made of that"
            )
        self._number += self._is_synced()  # counted now: a pass that fails from here on is missed by the other ranks

    def _is_synced(self):
        if not self._forwards:
            return self.is_synced
        return True in [forward.is_synced for forward in self._forwards]

    def _send_early(self, parameter):
        """Put a gradient into its bucket, and reduce those buckets that are full."""
        if self._next is None:
            self._open((self._kept or [self._forwards[0].counts])[0])
        bucket = self._bucket_of[id(parameter)]
        if bucket.missing.pop(id(parameter), None) is None:
            raise RuntimeError(
                "a gradient has grown after it was put into its bucket, as that of a shared weight does in torch's "
                "checkpoint(use_reentrant=True): use use_reentrant=False, or DataParallel(overlap=False)"
            )
        bucket.fill(*bucket.pairs[id(parameter)])
        while self._next < len(self._buckets) - 1 and not self._buckets[self._next].missing:
            self._reduce_next(async_op=True)

    def _finish(self):
        """The end of a backward pass that did not fail."""
        self._token = _nothing
        if not self._arrived:  # torch.autograd.grad(): nothing is put into any .grad
            self._differentiated += self._forwards if self._is_differentiable else []
            return
        for parameter in self._arrived:
            if parameter.grad is None:
                raise RuntimeError(
                    "a gradient was taken away before it was averaged: step and set .grad to None when backward() has "
                    "returned, not in a hook of the parameter"
                )
        # A penalty on gradients that torch.autograd.grad() gave leads past the outputs, back to where they came from.
        counts = [forward.counts for forward in self._forwards or self._differentiated]
        self._kept += counts
        if self._is_synced():
            counts, self._kept, self._differentiated = self._kept if counts else [], [], []
            self._average(counts)
        elif not counts:
            raise RuntimeError(UNCOUNTED)

    # --- the average -------------------------------------------------------------------------------------------------

    def _average(self, counts):
        """Put the average over all ranks into every `.grad`, given what each forward pass since the last one counted.

        Without counts this rank has to raise: the others learn it from the flags, so they are sent all the same.
        """
        if not self.weight_by_batch:
            counts = [(1,)]
        if self.hook is not None:
            self._average_by_hook(counts)
            return
        if self._next is None:
            self._open(counts[0] if counts else (0,))
        for bucket in self._buckets:
            bucket.fill_missing()
        self._flags.copy_(self._own_flags(counts))
        while self._next < len(self._buckets):
            self._reduce_next(async_op=False)  # nothing is left that it could overlap with
        for bucket in self._buckets:
            bucket.settle()
        flags = self._flags.tolist()
        num_samples = check_flags(flags[-NUM_FLAGS:], counts, self.comm)
        if num_samples:
            self._rescale(num_samples)
            self._hand_over(flags)
        else:  # no rank had any: the gradients stay what they were
            for (parameter, _), gradient in zip(self._pairs, self._before, strict=True):
                parameter.grad = gradient

    def _average_by_hook(self, counts):
        flags = self._own_flags(counts)
        self.comm.all_reduce(flags)
        flags = flags.tolist()
        num_samples = check_flags(flags[-NUM_FLAGS:], counts, self.comm)
        if not num_samples:
            return
        self.unit = num_samples
        used = iter(flags)
        for bucket in self._buckets:
            bucket.open(counts[0][0] / num_samples)
            bucket.fill_missing()
            bucket.unused = [key for key in bucket.pairs if not next(used)]
            if bucket.pairs:
                self.hook(bucket, self.comm)
        self._hand_over(flags)

    def _own_flags(self, counts):
        has_gradient = [parameter.grad is not None for parameter, _ in self._pairs]
        return torch.tensor([*has_gradient, *flags_of(counts, self._number, self.unit)], dtype=self._flags.dtype)

    def _open(self, sizes):
        """The first gradient of this pass is put into its bucket: weigh it by the first forward pass."""
        self._next, num_samples = 0, sizes[0]
        if not self._is_exact:  # in half precision, weights above 1 would soon be too large
            total = torch.tensor([num_samples], dtype=torch.float64)
            self.comm.all_reduce(total)
            self.unit = total.item() or self.unit
        for bucket in self._buckets:
            bucket.open(num_samples / self.unit)
        grads = [parameter.grad for parameter, _ in self._pairs] if num_samples == 0 else []
        self._before = [None if grad is None else grad.clone() for grad in grads]

    def _reduce_next(self, async_op):
        bucket = self._buckets[self._next]
        # Ranks agreed on the buckets when they were made, and the flags tell whether they are in the same pass.
        bucket.work = self.comm.all_reduce(bucket.flat, async_op=async_op, is_agreed=True)
        self._next += 1

    def _rescale(self, num_samples):
        """Divide by the number of samples. The weights were made with the last step's number, most often the same."""
        if num_samples != self.unit:
            for bucket in self._buckets:
                bucket.gradients.mul_(self.unit / num_samples)
            self.unit = num_samples

    def _hand_over(self, ranks_used):
        """Let `.grad` be the average, of those parameters that some rank has used."""
        for (parameter, view), used in zip(self._pairs, ranks_used, strict=False):
            if used and parameter.grad is not view:
                parameter.grad = view


class _Token:
    """Stands for a backward pass that is under way."""


def _nothing():
    """What a dead weak reference gives."""
