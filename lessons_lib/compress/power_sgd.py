"""Gradients of matrices as products of two thin ones: PowerSGD (lesson 24)."""

import torch

from ..errors import check_whole
from .feedback import Compression


class PowerSGD(Compression):
    """A gradient M (n, m) travels as P (n, r) and Q (m, r), with M ≈ P Qᵀ: one step of power iteration per step.

    P = Σ M_k Q over ranks, made orthonormal; Q = Σ M_kᵀ P. The Q of one step starts the next one, so that over steps P
    comes to the directions in which M is largest. As P Pᵀ M is linear in M, ranks can add up P and Q where they could
    not add up their own best approximations.

    Args:
        rank: r, at least 1.
        feedback: whether what P Qᵀ misses counts in the next step.
        seed: of the first Q, the same on all ranks.
        start_step: how many steps are sent in full before.

    Vectors travel in full, and so do matrices with (n + m) r ≥ n m. A weight with more dimensions is one of
    (first, all others).

    Communication: three all-reduces, of Σ n r, Σ m r and of what travels in full.

    Source: Vogels, Karimireddy and Jaggi, PowerSGD (2019), algorithm 1.
    """

    def __init__(self, rank=1, feedback=True, seed=0, start_step=0):
        super().__init__(feedback)
        check_whole("rank", rank, 1)
        check_whole("seed", seed, 0)
        check_whole("start_step", start_step, 0)
        self.rank, self.seed, self.start_step = rank, seed, start_step
        self._steps, self._qs = {}, {}  # of each bucket: steps made, the Q of each matrix

    def reduce(self, bucket, comm):
        step = self._steps.get(bucket.index, 0)
        self._steps[bucket.index] = step + 1
        if step < self.start_step:
            own = bucket.gradients.clone()
            comm.all_reduce(bucket.gradients)
            return own
        views = [view for _, view in bucket.pairs.values()]
        matrices = [view.view(len(view), -1) for view in views if self._is_compressed(view.shape)]
        full = [view for view in views if not self._is_compressed(view.shape)]
        own = bucket.gradients.clone()
        _sum_over_ranks(full, comm)
        if matrices:
            self._reduce(matrices, bucket.index, comm)
        # Of the sum P Qᵀ each rank counts an equal part as its own: what is left adds up to what the sum misses.
        for mine, view in zip(own.split([view.numel() for view in views]), views, strict=True):
            if self._is_compressed(view.shape):
                mine.copy_(view.flatten() / comm.world_size)
        return own

    def _reduce(self, matrices, index, comm):
        """Replace each matrix by P Qᵀ, with P and Q of all ranks."""
        wide = [matrix.float() if matrix.itemsize < 4 else matrix for matrix in matrices]
        qs = self._first_qs(wide, index)
        ps = [matrix @ q for matrix, q in zip(wide, qs, strict=True)]
        _sum_over_ranks(ps, comm)
        ps = [torch.linalg.qr(p).Q for p in ps]
        qs = [matrix.T @ p for matrix, p in zip(wide, ps, strict=True)]
        _sum_over_ranks(qs, comm)
        for matrix, p, q in zip(matrices, ps, qs, strict=True):
            matrix.copy_(p @ q.T)
        if all(torch.isfinite(q).all() for q in qs):
            self._qs[index] = qs

    def _first_qs(self, matrices, index):
        """The Qs of the last step; new ones at the start, and where one has become 0."""
        generator = torch.Generator().manual_seed(self.seed)
        fresh = [torch.randn(m.shape[1], self.rank, generator=generator, dtype=m.dtype) for m in matrices]
        fresh = [q.to(m.device) for q, m in zip(fresh, matrices, strict=True)]
        return [q if q.any() else new for q, new in zip(self._qs.get(index, fresh), fresh, strict=True)]

    def _is_compressed(self, shape):
        if len(shape) < 2:
            return False
        n, m = shape[0], torch.Size(shape[1:]).numel()
        return (n + m) * self.rank < n * m

    def bytes_sent(self, shapes, world_size, itemsize=4):
        numel = sum(self._num_sent(torch.Size(shape)) for shape in shapes)
        return 2 * (world_size - 1) / world_size * numel * itemsize

    def _num_sent(self, shape):
        return (shape[0] + shape[1:].numel()) * self.rank if self._is_compressed(shape) else shape.numel()

    def state_dict(self):
        steps = {str(index): number for index, number in self._steps.items()}
        return super().state_dict() | {"steps": steps, "qs": {str(index): list(qs) for index, qs in self._qs.items()}}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._steps = {int(index): steps for index, steps in state["steps"].items()}
        self._qs = {int(index): list(qs) for index, qs in state["qs"].items()}

    def forget(self, index):
        super().forget(index)
        self._qs.pop(index, None)


def _sum_over_ranks(tensors, comm):
    """Add up each of `tensors` over all ranks, in place, in one message."""
    if tensors:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        comm.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
