"""One collective over memory that all ranks see: each rank reads what it takes straight from the other's."""

from ..trace import now_s
from .line import IDLE


class SharedWindow:
    """One rank's `plan` on memory all ranks see: in place if the tensor lies in a shared buffer, else in scratch.

    `views[rank]` is rank's 1-D tensor.
    """

    def __init__(self, transport, plan, views):
        self._transport, self._board, self._plan, self._mine = transport, transport.board, plan, views[transport.rank]
        self._pairs = {
            part: [(self._mine[start:stop], views[part.peer][start:stop]) for start, stop in part.slices]
            for step in plan.steps
            for part in step.incoming
        }

    def open(self, flat, reduce, in_place=True):
        """Begin a collective on `flat`; the window."""
        if not in_place:
            self._mine.copy_(flat)
            self._board.publish(self._board.steps + 1)
        self._flat = None if in_place else flat  # a buffer keeps its windows: they must not keep the buffer
        self._reduce, self._first = reduce, self._board.steps
        return self

    def post(self, step):
        for reader, steps in step.readers.items():
            self._board.wait_steps(reader, self._first + steps)

    def take(self, part, step):
        transport, size = self._transport, part.numel * self._mine.element_size()
        wait_s = now_s()
        # A wire sends one round after the other; memory can be read as soon as the part is there.
        num_steps = step.number if transport.wire else part.ready
        ready_s = self._board.wait_steps(part.peer, self._first + num_steps)
        if transport.wire:
            queued_bytes = part.queued_numel * self._mine.element_size()
            transport.wire.hold(part.peer, size, queued_bytes, ready_s)
        start_s = now_s()
        for mine, theirs in self._pairs[part]:
            self._reduce(mine, theirs) if part.op == "add" else mine.copy_(theirs)
        if transport.trace is not None:
            transport.trace.message(transport.rank, part, size, wait_s, ready_s, start_s)

    def finish(self, step):
        self._board.publish(self._first + step.number + 1)

    def close(self):
        for reader, steps in self._plan.readers.items():
            self._board.wait_steps(reader, self._first + steps)
        if self._flat is not None:
            self._flat.copy_(self._mine)
        self._board.set_doing(IDLE)


class DeliveryWindow(SharedWindow):
    """One rank's part in a `Delivery`: it takes from memory that others see into memory of its own.

    `views[rank]` is the 1-D tensor that rank gives from, `target` the one that this rank takes into.
    """

    def __init__(self, transport, plan, views, target, reduce):
        self._transport, self._board, self._plan, self._mine = transport, transport.board, plan, target
        self._flat, self._reduce, self._first = None, reduce, transport.board.steps
        self._pairs = {
            part: [
                (target[start:stop], views[part.peer][first:last])
                for (start, stop), (first, last) in zip(part.slices, part.source_slices, strict=True)
            ]
            for part in plan.steps[0].incoming
        }
