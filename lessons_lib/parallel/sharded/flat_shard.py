"""Parameters of a unit in one flat tensor, of which every rank keeps a chunk: gathered to be used (lesson 14)."""

import torch
from torch.autograd.graph import increment_version

from ..copies import lies_on, note_piece
from ..data.bucket import FLAG_DTYPES
from ..data.weights import NUM_FLAGS, check_flags, flags_of
from .layout import Layout


class FlatShard:
    """This rank's chunk of some parameters, and all of them while they are needed.

    Args:
        parameters: of one dtype, whole; each becomes this rank's piece of it, 1-D and perhaps empty.
        comm: `Communicator`.
        dtype: in which they are gathered; None for their own.

    Attributes:
        parameters, layout: they, and their `Layout`.
        whole: the flat tensor of all numbers, or None.
        reduce_dtype: in which gradients are added up.
    """

    def __init__(self, parameters, comm, dtype=None):
        self.parameters, self.comm = parameters, comm
        self.layout = Layout([p.shape for p in parameters], comm.world_size)
        own_dtype = parameters[0].dtype
        self.reduce_dtype = own_dtype if own_dtype in FLAG_DTYPES else torch.float32
        self._chunk = comm.buffer(self.layout.chunk, own_dtype)
        self._sent = self._chunk if dtype in (None, own_dtype) else comm.buffer(self.layout.chunk, dtype)
        self.whole, self._arriving, self._version, self._number = None, None, 0, 0
        self._staging, self._rows, self._targets = None, None, []
        self._kept = self._marks = None  # (gradients, counts) of passes without synchronisation; what they rely on
        self._pieces = self.layout.pieces(self._chunk, comm.rank)
        self._cut()

    @torch.no_grad()
    def _cut(self):
        """Keep a chunk of rank 0's numbers."""
        whole = torch.zeros(self.layout.chunk * self.comm.world_size, dtype=self._chunk.dtype)
        for view, parameter in zip(self.layout.views(whole), self.parameters, strict=True):
            view.copy_(parameter)
        self.comm.broadcast(whole)
        self.put(whole)
        for parameter, piece in zip(self.parameters, self._pieces, strict=True):
            parameter.data, parameter.grad = piece, None
            lies_on(parameter, self.comm)
            note_piece(parameter)

    def put(self, whole):
        """Keep this rank's chunk of a flat tensor."""
        first = self.comm.rank * self.layout.chunk
        self._chunk.copy_(whole[first : first + self.layout.chunk])
        increment_version(self.parameters)
        self._kept = self._marks = None

    def gather_own(self):
        """A new flat tensor of all numbers, in the dtype of the pieces."""
        self._take_over()
        whole = torch.empty(self.layout.chunk * self.comm.world_size, dtype=self._chunk.dtype)
        self.comm.all_gather(whole, self._chunk)
        return whole

    # --- gathering ---------------------------------------------------------------------------------------------------

    def version(self):
        """A number that grows when an optimiser, or anybody, changes the pieces."""
        return sum(parameter._version for parameter in self.parameters)

    def begin(self):
        """Begin to gather, if that has not been done yet."""
        if self.whole is None and self._arriving is None:
            self._arriving = self._start(async_op=True)

    def gather(self):
        """All numbers, on every rank."""
        if self.whole is not None and self._version != self.version():
            self.drop()
        if self.whole is None:
            if self._arriving is None:
                self.whole, _ = self._start(async_op=False)
            else:
                (self.whole, work), self._arriving = self._arriving, None
                work.wait()
        return self.whole

    def _start(self, async_op):
        self._take_over()
        self._version = self.version()
        if self._sent is not self._chunk:
            self._sent.copy_(self._chunk)
        whole = torch.empty(self.layout.chunk * self.comm.world_size, dtype=self._sent.dtype)
        return whole, self.comm.all_gather(whole, self._sent, async_op=async_op)

    def _take_over(self):
        """Follow the pieces to which somebody has given other memory."""
        for parameter, piece in zip(self.parameters, self._pieces, strict=True):
            if parameter.data_ptr() != piece.data_ptr():
                if parameter.shape != piece.shape or parameter.dtype != piece.dtype:
                    raise RuntimeError(
                        f"a piece of a parameter has become {parameter.dtype} {tuple(parameter.shape)}, it was "
                        f"{piece.dtype} {tuple(piece.shape)}: change the module before it is wrapped"
                    )
                piece.copy_(parameter.data)
                parameter.data = piece

    def drop(self):
        """Let go of all numbers but this rank's chunk."""
        if self._arriving is not None:
            self._arriving[1].wait()
        self.whole = self._arriving = None

    def views(self):
        """The parameters in their shapes, as views of `whole`."""
        return self.layout.views(self.whole)

    # --- gradients ---------------------------------------------------------------------------------------------------

    def staging_numel(self):
        """How many numbers `reduce` puts together: for each rank its chunk, and flags behind it."""
        return self.comm.world_size * (self.layout.chunk + len(self.parameters) + NUM_FLAGS)

    def reduce(self, gradients, counts, staging):
        """The mean gradient of all samples, of this rank's pieces; None for a parameter that no rank has used.

        Args:
            gradients: of the whole parameters on this rank, or None.
            counts: what the forward passes counted that led to them, as `flags_of` takes it.
            staging: a `comm.buffer` of `reduce_dtype`, from which the ranks take their parts.
        """
        gradients, counts = self._with_kept(gradients, counts)
        self._number += 1
        chunk, has_gradient = self.layout.chunk, [gradient is not None for gradient in gradients]
        flags = [*has_gradient, *flags_of(counts, self._number, 1)]
        rows = self._rows_of(staging)
        self._fill(gradients, counts[0][0])
        rows[:, chunk:] = torch.tensor(flags, dtype=rows.dtype)
        own = rows.new_empty(rows.shape[1])
        self.comm.reduce_scatter(own, rows)
        sums = own[chunk:].tolist()
        num_samples = check_flags(sums[-NUM_FLAGS:], counts, self.comm)
        if not num_samples:  # no rank had any
            return [None] * len(gradients)
        mean = own[:chunk].div_(num_samples).to(self._chunk.dtype)
        pieces = self.layout.pieces(mean, self.comm.rank)
        return [piece if used else None for piece, used in zip(pieces, sums, strict=False)]

    def keep(self, gradients, counts):
        """Add gradients of a pass that is not synchronised to those that wait to be reduced; zeros for the pieces."""
        self._kept = self._with_kept(gradients, counts, is_copied=True)
        return [
            None if gradient is None else torch.zeros_like(piece)
            for gradient, piece in zip(gradients, self.parameters, strict=True)
        ]

    def _with_kept(self, gradients, counts, is_copied=False):
        """These gradients and counts together with those that were kept, which are kept no longer."""
        self.check_kept()
        (kept, kept_counts), self._kept = self._kept or ([None] * len(gradients), ()), None
        self._marks = None
        both = []
        for before, gradient in zip(kept, gradients, strict=True):
            if before is not None and gradient is not None:
                both.append(before.add_(gradient))
            elif gradient is not None and is_copied:
                both.append(gradient.to(self.reduce_dtype, copy=True))
            else:
                both.append(gradient if before is None else before)
        return both, (*kept_counts, *counts)

    def mark_kept(self):
        """A backward pass has ended: note what must not change until what is kept has been reduced."""
        if self._kept is not None:
            grads = [piece.grad for piece in self.parameters]
            self._marks = self.version(), [(grad, None if grad is None else grad._version) for grad in grads]

    def check_kept(self):
        """Forget kept gradients that somebody has set to None; raise if they were used, or changed, too early."""
        if self._marks is None:
            return
        version, grads = self._marks
        if version != self.version():
            raise RuntimeError(
                "weights have changed while gradients of no_sync() waited to be reduced: let the last backward pass "
                "before a step come from a forward pass outside of no_sync()"
            )
        kept, _ = self._kept
        for number, (piece, (grad, grad_version)) in enumerate(zip(self.parameters, grads, strict=True)):
            if piece.grad is None:
                kept[number] = None
            elif piece.grad is not grad or grad._version != grad_version:
                raise RuntimeError(
                    "gradients have changed while those of no_sync() waited to be reduced: clip or scale them after "
                    "the last pass, and clear them by zero_grad(set_to_none=True)"
                )
        if all(gradient is None for gradient in kept):
            self._kept = self._marks = None

    def _rows_of(self, staging):
        """For each rank what it is to get, as views of `staging`, which are made once."""
        if staging is not self._staging:
            self._staging = staging
            self._rows = staging[: self.staging_numel()].view(self.comm.world_size, -1)
            self._targets = []
            for rank, row in enumerate(self._rows):
                parts = zip(self.layout.parts(rank), self.layout.pieces(row, rank), strict=True)
                found = [(number, *part, target) for number, (part, target) in enumerate(parts)]
                self._targets += [each for each in found if each[1] < each[2]]
        return self._rows

    def _fill(self, gradients, weight):
        """Put the gradients, weighted, into the rows of the ranks that keep them."""
        for number, start, stop, target in self._targets:
            gradient = gradients[number]
            if gradient is None or weight == 0:
                target.zero_()
                continue
            part = gradient.reshape(-1)[start:stop].view(target.shape)
            if part.dtype == target.dtype:
                torch.mul(part, weight, out=target)
            else:
                target.copy_(part).mul_(weight)
