"""The seam between algorithms and wires: what every transport can do, whichever way its messages take."""

import time

from ..trace import now_s


class Transport:
    """Moves tensors between ranks. Subclasses: `SharedMemoryTransport` and `TorchTransport`.

    Args:
        rank, world_size: who this is, of how many.
        links: `Links` to emulate by delaying every message, or None.

    Attributes:
        wire: the `EmulatedWire` that delays every message, or None for the real one.
        trace: a `Trace` to record messages in, or None.
        segment_bytes: the size of the pieces in which large tensors go through the rounds of a schedule.
        has_own_collectives: whether `all_reduce` and `broadcast` of the transport do a whole collective, so that no
            schedule is needed.
    """

    has_own_collectives = False

    def __init__(self, rank, world_size, links=None):
        self.rank, self.world_size = rank, world_size
        self.wire = EmulatedWire(rank, links) if links else None
        self.trace = None

    def is_better_at(self, tensor, op, is_agreed):
        """Whether the transport's own collective is faster on `tensor` than a schedule, and comes to the same.

        Args:
            tensor: of the same shape and dtype on all ranks.
            op: of an all-reduce; None for a broadcast.
            is_agreed: whether the ranks need not agree before it.
        """
        return False

    @property
    def waits_on_wire(self):
        """Whether a message spends time under way in which this rank's core is free to compute."""
        return self.wire is not None

    @property
    def source(self):
        """What a figure of this transport's trace must say: "measured" or "emulated links"."""
        return "emulated links" if self.wire else "measured"

    def set_timeout(self, timeout_s):
        """Set how long any wait lasts before `RankFailed` names who did not come."""
        raise NotImplementedError

    def agree(self, call, note=""):
        """Wait until all ranks have come to this call; a list of their notes. `CollectiveMismatch` if calls differ.

        Args:
            call: a `Call`, or what the ranks do together in words.
            note: a short text for the other ranks, which may differ from theirs.
        """
        raise NotImplementedError

    def send(self, tensor, dst):
        """Give a contiguous tensor to rank `dst`; returns when it has been taken."""
        raise NotImplementedError

    def recv(self, tensor, src):
        """Fill a contiguous tensor from rank `src`; the time at which that rank was ready to send (s)."""
        raise NotImplementedError

    def isend(self, tensor, dst):
        """Begin to give a contiguous tensor to rank `dst`; the message, for `wait_for` and `is_done`."""
        raise NotImplementedError

    def irecv(self, tensor, src):
        """Begin to fill a contiguous tensor from rank `src`; the message."""
        raise NotImplementedError

    def wait_for(self, message):
        """Wait until it has arrived; the time at which the sender was ready (s)."""
        raise NotImplementedError

    def is_done(self, message):
        """Whether `wait_for` would not wait."""
        raise NotImplementedError

    def first_sender(self, tensor):
        """Wait until some rank sends to this one; which. `tensor` is what will be filled."""
        raise NotImplementedError

    def buffer(self, numel, dtype):
        """A 1-D tensor that `window` uses in place. All ranks call it together."""
        raise NotImplementedError

    def num_segments(self, flat):
        """Into how many pieces to cut the chunks of a tensor, to take one piece after the other through the rounds."""
        if self.wire or self.trace is not None or not flat.is_cpu:
            return 1  # timelines show a message as what it is: one
        return max(1, flat.nbytes // self.segment_bytes)

    def window(self, call, plan, flat, reduce, source=None):
        """Agree on `call`; then what `run` needs: post(step), take(part, step), finish(step) and close().

        `source` is the tensor that parts are given from, if it is not `flat`: then `plan` is a `Delivery`.
        """
        raise NotImplementedError

    def make_group(self, members):
        """Make the transports of groups. All ranks call it together.

        Args:
            members: the ranks of this rank's group, in the order of the group; None for a rank in no group.

        Returns:
            The transport of the group, or None.
        """
        raise NotImplementedError

    def regroup(self, number):
        """Meet those that live after a death; the transport and their numbers in the launch. `number` is this rank's.

        Raises:
            RuntimeError: ranks of this launch may not die, or none has.
        """
        raise RuntimeError("regroup() needs launch(..., elastic=True), which is for ranks of one machine")

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


class GroupWire:
    """The emulated wire of a group: the same links of the same rank, under the group's numbers."""

    def __init__(self, wire, members):
        self._wire, self._members = wire, members

    def hold(self, src, *message):
        """As `EmulatedWire.hold`; `src` is a rank of the group."""
        self._wire.hold(self._members[src], *message)
