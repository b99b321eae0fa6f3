"""Gradients in 8 bits: quantised, exchanged, added up, quantised again (lesson 24)."""

import torch

from .feedback import Compression, unless_unused
from .quantize import Quantized, quantize

SCALE_BYTES = 8  # a scale travels in float64 before its values


class Int8Gradients(Compression):
    """Each rank sends int8 to the owner of each chunk, who adds up, and sends the sum to all, in int8 again.

    Sums of int8 need more than 8 bits, so that a ring cannot add them on the way. Both roundings have their feedback:
    that of a rank's own numbers, and that of the owner's sums, which it adds to its next ones.

    Communication: one all-to-all and one all-gather; with n numbers, N ranks and chunks of c = ceil(n / N) numbers
    2 (N - 1) (c + 8) bytes per rank, about a quarter of what float32 needs.

    Source: Tang et al., 1-bit Adam (2021), §5.2, with 8 bits.
    """

    def __init__(self, feedback=True):
        super().__init__(feedback)
        self._sums_left = {}  # {number of the bucket: what the owner's rounding has left}

    def reduce(self, bucket, comm):
        n, size = bucket.gradients.numel(), -(-bucket.gradients.numel() // comm.world_size)
        padded = bucket.gradients.new_zeros(comm.world_size * size)
        padded[:n] = bucket.gradients
        mine = torch.stack([_pack(chunk) for chunk in padded.view(comm.world_size, size)])
        own = torch.stack([_unpack(row, padded.dtype) for row in mine]).flatten()[:n]
        theirs = torch.empty_like(mine)
        comm.all_to_all(theirs, mine)
        total = sum(_unpack(row, padded.dtype) for row in theirs)
        left = self._sums_left.get(bucket.index, torch.zeros_like(total))
        due = unless_unused(left, bucket, start=comm.rank * size)
        total += due
        packed = _pack(total)
        sums = torch.empty_like(mine)
        comm.all_gather(sums, packed)
        bucket.gradients.copy_(torch.stack([_unpack(row, padded.dtype) for row in sums]).flatten()[:n])
        if self.feedback and torch.isfinite(bucket.gradients).all():
            self._sums_left[bucket.index] = total - _unpack(packed, padded.dtype) + (left - due)
        return own

    def forget(self, index):
        super().forget(index)
        self._sums_left.pop(index, None)

    def bytes_sent(self, shapes, world_size, itemsize=4):
        size = -(-sum(torch.Size(shape).numel() for shape in shapes) // world_size)
        return 2 * (world_size - 1) * (size + SCALE_BYTES)

    def state_dict(self):
        return super().state_dict() | {"sums_left": {str(i): left.clone() for i, left in self._sums_left.items()}}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._sums_left = {int(i): left.clone() for i, left in state["sums_left"].items()}


def _pack(x):
    """A scale and int8 values as one message of bytes. Where a number is not finite the scale says so."""
    finite = torch.isfinite(x).all()
    small = quantize(x.double() if finite else torch.zeros_like(x, dtype=torch.float64))
    scale = small.scale if finite else small.scale * torch.nan
    return torch.cat([scale.view(1).view(torch.int8), small.values])


def _unpack(message, dtype):
    scale = message[:SCALE_BYTES].clone().view(torch.float64)
    return Quantized(message[SCALE_BYTES:], scale).dequantize().to(dtype)
