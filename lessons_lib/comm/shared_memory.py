"""Ranks of one machine, joined by memory they all see: no socket, no copy in between.

A rank reads each chunk straight out of its neighbour's buffer. All that they tell each other is how many rounds each
has ended; which of these counts a rank waits for follows from the schedule (see `plan`).
"""

import torch

from ..errors import CollectiveMismatch
from ..trace import now_s
from .block import Block
from .board import IDLE, MESSAGE_TEXT, RECV, SEND, Board
from .check import check_memory
from .transport import Transport, describe

# A mailbox for each ordered pair of ranks: messages put in, bytes put in and taken out, when; then the bytes.
POSTED, WRITTEN, READ, STAMP = range(4)
BOX_HEADER_BYTES, BOX_BYTES = 64, 1 << 18


def board_bytes(world_size):
    """Size of the memory in which `world_size` ranks meet."""
    return Board.size_bytes(world_size, _boxes_bytes(world_size))


def _boxes_bytes(world_size):
    return world_size**2 * (BOX_HEADER_BYTES + BOX_BYTES)


class SharedMemoryTransport(Transport):
    """See the module. `board` is the name of a zeroed `Block` of `board_bytes(world_size)`, made by the launcher."""

    segment_bytes = 4 << 20  # stays in the cache

    def __init__(self, rank, world_size, board, timeout_s, links=None):
        super().__init__(rank, world_size, links)
        self.board = Board(rank, world_size, board, _boxes_bytes(world_size), timeout_s)
        self._memory = self.board.block.tensor(torch.uint8, board_bytes(world_size))
        self._sent, self._taken = [0] * world_size, [0] * world_size
        self._buffers, self._windows, self._scratch = [], {}, None

    def set_timeout(self, timeout_s):
        self.board.timeout_s = timeout_s

    def agree(self, call, note=""):
        notes = self.board.enter(call, note)
        self.board.set_doing(IDLE)
        return notes

    # --- messages ----------------------------------------------------------------------------------------------------

    def _box(self, src, dst):
        """(index of the mailbox's first whole number, its bytes)."""
        before = src * self.world_size + dst
        at = Board.size_bytes(self.world_size, before * (BOX_HEADER_BYTES + BOX_BYTES))
        return at // 8, self._memory[at + BOX_HEADER_BYTES : at + BOX_HEADER_BYTES + BOX_BYTES]

    def send(self, tensor, dst):
        board, data = self.board, tensor.view(-1).view(torch.uint8)
        box, room = self._box(self.rank, dst)
        board.set_doing(SEND, dst, f"send({describe(tensor)}, dst={dst})")
        first = board.ints[box + WRITTEN]
        board.ints[box + STAMP] = int(now_s() * 1e9)
        board.fence()
        self._sent[dst] += 1
        board.ints[box + POSTED] = self._sent[dst]
        for start, stop, at in _pieces(data.numel(), first):
            board.wait(box + READ, first + stop - BOX_BYTES, dst)
            room[at : at + stop - start].copy_(data[start:stop])
            board.fence()
            board.ints[box + WRITTEN] = first + stop
        board.wait(box + READ, first + data.numel() + 1, dst)
        board.ints[box + WRITTEN] = first + data.numel() + 1
        board.set_doing(IDLE)

    def recv(self, tensor, src):
        board, data = self.board, tensor.view(-1).view(torch.uint8)
        box, room = self._box(src, self.rank)
        call = f"recv({describe(tensor)}, src={src})"
        board.set_doing(RECV, src, call)
        first = board.ints[box + READ]
        self._taken[src] += 1
        board.wait(box + POSTED, self._taken[src], src)
        if (theirs := board.read(src, MESSAGE_TEXT)) != f"send({describe(tensor)}, dst={self.rank})":
            raise CollectiveMismatch({self.rank: call, src: theirs})
        posted_s = board.ints[box + STAMP] / 1e9
        if self.wire:
            self.wire.hold(src, data.numel(), data.numel(), posted_s)
        for start, stop, at in _pieces(data.numel(), first):
            board.wait(box + WRITTEN, first + stop, src)
            data[start:stop].copy_(room[at : at + stop - start])
            board.fence()
            board.ints[box + READ] = first + stop
        # One more than the bytes: an empty message, too, has to be taken before the sender goes on.
        board.ints[box + READ] = first + data.numel() + 1
        board.set_doing(IDLE)
        return posted_s

    # --- schedules ---------------------------------------------------------------------------------------------------

    def buffer(self, numel, dtype):
        shared = SharedBuffer(self, numel, dtype)
        self._buffers.append(shared)
        return shared.views[self.rank]

    def window(self, call, plan, flat, reduce):
        shared, offset = self._find(flat)
        place = f"{self._buffers.index(shared)}+{offset}" if shared else "elsewhere"
        self.board.publish(self.board.rounds + 1)  # who lies in a buffer can be read from now on
        notes = self.board.enter(call, place)
        if not shared or any(note != place for note in notes):
            return Window(self, plan, self._scratch_for(flat)).open(flat, reduce, in_place=False)
        if (id(plan), place) not in self._windows:
            views = [view[offset : offset + flat.numel()] for view in shared.views]
            self._windows[id(plan), place] = Window(self, plan, views)
        return self._windows[id(plan), place].open(flat, reduce)

    def _find(self, flat):
        """The shared buffer that `flat` lies in, and at which element; (None, 0) for ordinary memory."""
        for shared in self._buffers:
            mine = shared.views[self.rank]
            offset = flat.data_ptr() - mine.data_ptr()
            if flat.dtype == mine.dtype and offset >= 0 and offset + flat.nbytes <= mine.nbytes:
                return shared, offset // flat.element_size()
        return None, 0

    def _scratch_for(self, flat):
        if self._scratch is None or self._scratch.views[0].numel() < flat.nbytes:
            check_memory("working memory", self.world_size, flat.nbytes)
            if self._scratch is not None:
                self._scratch.own.end()
            self._scratch = SharedBuffer(self, max(1 << 16, 1 << (flat.nbytes - 1).bit_length()), torch.uint8)
        return [view[: flat.nbytes].view(flat.dtype) for view in self._scratch.views]

    def close(self):
        for shared in [*self._buffers, *([self._scratch] if self._scratch else [])]:
            shared.own.end()


class SharedBuffer:
    """A block of each rank, seen by all: `views[rank]` is rank's 1-D tensor."""

    def __init__(self, transport, numel, dtype):
        size_bytes = numel * dtype.itemsize
        self.own = Block(size_bytes)
        names = transport.agree(f"buffer({numel}, {dtype})", self.own.name)
        blocks = [self.own if r == transport.rank else Block(size_bytes, name) for r, name in enumerate(names)]
        transport.agree(f"buffer({numel}, {dtype}) attached")
        self.own.forget_name()
        self._blocks = blocks
        self.views = [block.tensor(dtype, numel) for block in blocks]


class Window:
    """One rank's `plan` on memory all ranks see: in place if the tensor lies in a shared buffer, else in scratch.

    `views[rank]` is rank's 1-D tensor.
    """

    def __init__(self, transport, plan, views):
        self._transport, self._board, self._plan, self._mine = transport, transport.board, plan, views[transport.rank]
        self._pairs = {
            id(part): [(self._mine[start:stop], views[part.peer][start:stop]) for start, stop in part.slices]
            for step in plan.steps
            for part in step.incoming
        }

    def open(self, flat, reduce, in_place=True):
        """Begin a collective on `flat`; the window."""
        if not in_place:
            self._mine.copy_(flat)
            self._board.publish(self._board.rounds + 1)
        self._flat, self._reduce, self._in_place, self._first = flat, reduce, in_place, self._board.rounds
        return self

    def post(self, step):
        for reader, rounds in step.readers.items():
            self._board.wait_rounds(reader, self._first + rounds)

    def take(self, part, step):
        transport, size = self._transport, part.numel * self._mine.element_size()
        wait_s = now_s()
        # A wire sends one round after the other; memory can be read as soon as the part is there.
        num_steps = step.number if transport.wire else part.ready
        ready_s = self._board.wait_rounds(part.peer, self._first + num_steps)
        if transport.wire:
            queued_bytes = part.queued_numel * self._mine.element_size()
            transport.wire.hold(part.peer, size, queued_bytes, ready_s)
        start_s = now_s()
        for mine, theirs in self._pairs[id(part)]:
            self._reduce(mine, theirs) if part.op == "add" else mine.copy_(theirs)
        if transport.trace is not None:
            transport.trace.message(transport.rank, part, size, wait_s, ready_s, start_s)

    def finish(self, step):
        self._board.publish(self._first + step.number + 1)

    def close(self):
        for reader, rounds in self._plan.readers.items():
            self._board.wait_rounds(reader, self._first + rounds)
        if not self._in_place:
            self._flat.copy_(self._mine)
        self._board.set_doing(IDLE)


def _pieces(numel, first):
    """Cut a message into (start, stop, place in the mailbox) so that no piece passes the mailbox's end."""
    start = 0
    while start < numel:
        at = (first + start) % BOX_BYTES
        stop = min(numel, start + BOX_BYTES // 4, start + BOX_BYTES - at)
        yield start, stop, at
        start = stop
