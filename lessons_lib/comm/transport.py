"""The seam between algorithms and wires: what a transport can do (DESIGN: Transport)."""

import time
import zlib
from functools import lru_cache

from ..trace import now_s


class Transport:
    """Moves tensors between ranks. Subclasses: `SharedMemoryTransport` and `TorchTransport`.

    Attributes:
        rank, world_size: who this is, of how many.
        wire: the `EmulatedWire` that delays every message, or None for the real one.
        trace: a `Trace` to record messages in, or None.
        segment_bytes: the size of the pieces in which large tensors go through the rounds of a schedule.
    """

    def __init__(self, rank, world_size, links=None):
        self.rank, self.world_size = rank, world_size
        self.wire = EmulatedWire(rank, links) if links else None
        self.trace = None

    @property
    def source(self):
        """What a figure of this transport's trace must say: "measured" or "emulated links"."""
        return "emulated links" if self.wire else "measured"

    def set_timeout(self, timeout_s):
        """How long any wait lasts before `RankFailed` names who did not come."""
        raise NotImplementedError

    def agree(self, call, note=""):
        """Wait until all ranks have come to this call; a list of their notes. `CollectiveMismatch` if calls differ."""
        raise NotImplementedError

    def send(self, tensor, dst):
        """Give a contiguous tensor to rank `dst`; returns when it has been taken."""
        raise NotImplementedError

    def recv(self, tensor, src):
        """Fill a contiguous tensor from rank `src`; the time at which that rank was ready to send (s)."""
        raise NotImplementedError

    def buffer(self, numel, dtype):
        """A 1-D tensor that `window` uses in place. All ranks call it together."""
        raise NotImplementedError

    def num_segments(self, flat):
        """Into how many pieces to cut the chunks of a tensor, to take one piece after the other through the rounds."""
        if self.wire or self.trace is not None or not flat.is_cpu:
            return 1  # timelines show a message as what it is: one
        return max(1, flat.nbytes // self.segment_bytes)

    def window(self, call, plan, flat, reduce):
        """Agree on `call`; then what `run` needs: post(step), take(part, step), finish(step) and close()."""
        raise NotImplementedError

    def close(self):
        """Let go of memory and sockets."""


class EmulatedWire:
    """Delays messages as `Links` would, by sleeping: shows on one machine what a slow network does."""

    def __init__(self, rank, links):
        self.rank, self.links = rank, links
        self._in_free_s = 0.0

    def hold(self, src, size_bytes, queued_bytes, ready_s):
        """Sleep until a message would have arrived that rank `src` could send from `ready_s` on.

        `queued_bytes` leave `src` up to the end of this message; the way in takes one message after the other.
        """
        latency_s, bandwidth_Bps = self.links.between(src, self.rank)
        arrive_s = ready_s + latency_s + queued_bytes / bandwidth_Bps
        arrive_s = self._in_free_s = max(arrive_s, self._in_free_s + size_bytes / bandwidth_Bps)
        if (pause_s := arrive_s - now_s()) > 0:
            time.sleep(pause_s)


def describe(tensor):
    """A tensor in words, for agreement and errors."""
    return _described(tensor.dtype, tensor.shape)


@lru_cache(maxsize=256)
def _described(dtype, shape):
    return brief(f"{str(dtype).removeprefix('torch.')}, shape {tuple(shape)}")


def brief(text, limit=100):
    """`text` on one line of at most `limit` bytes; what was cut off still counts, as a checksum."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    data = " ".join(text.split()).encode(errors="replace")
    if len(data) <= limit:
        return data.decode()
    return data[: limit - 12].decode(errors="ignore") + f"... {zlib.crc32(data):08x}"
