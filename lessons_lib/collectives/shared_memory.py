"""Ranks of one machine, joined by memory they all see: no socket, no copy in between.

A rank reads each chunk straight out of its neighbour's buffer. All that they tell each other is how many rounds each
has ended; which of these counts a rank waits for follows from the schedule (see `plan`).
"""

import time

import torch

from .errors import CollectiveMismatch, RankFailed
from .memory import Block, Fence, yield_core
from .trace import now_s
from .transport import Transport, describe

# A rank's line in the board: whole numbers first, then three texts. All are written by their own rank only.
LINE_BYTES, TEXT_BYTES = 2048, 512
TEXT_AT = (512, 1024, 1536)
ENTERED, ROUNDS, DOING, PEER, CHANGES, STAMPS = 0, 1, 2, 3, 4, 8
NUM_STAMPS = 16
IDLE, SEND, RECV, COLLECTIVE = range(4)
# A mailbox for each ordered pair of ranks: how many messages and bytes were put in and taken out, then the bytes.
POSTED, SIZE, DTYPE, WRITTEN, READ, STAMP = range(6)
BOX_HEADER_BYTES, BOX_BYTES = 64, 1 << 18
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
    *(torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128),
)


def board_bytes(world_size):
    """Size of the memory in which `world_size` ranks meet."""
    return world_size * LINE_BYTES + world_size**2 * (BOX_HEADER_BYTES + BOX_BYTES)


class SharedMemoryTransport(Transport):
    """See the module. `board` is the name of a zeroed `Block` of `board_bytes(world_size)`, made by the launcher."""

    def __init__(self, rank, world_size, board, timeout_s, links=None, spins=200):
        super().__init__(rank, world_size, timeout_s, links)
        self._board = Block(board_bytes(world_size), board)
        self._bytes = memoryview(self._board.view)
        self._ints = self._bytes.cast("B").cast("q")
        self._spins, self._fence = spins, Fence()
        self._calls = self.rounds = 0
        self._sent, self._taken = [0] * world_size, [0] * world_size
        self._buffers, self._scratch = [], None

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _at(self, rank, place):
        return rank * (LINE_BYTES // 8) + place

    def wait(self, place, value, peer):
        """Wait until the whole number at `place` has reached `value`: spin a little, then give way, then sleep."""
        ints = self._ints
        for _ in range(self._spins):
            if ints[place] >= value:
                return
        start_s = looked_s = now_s()
        while ints[place] < value:
            yield_core()
            waited_s = now_s() - start_s
            if waited_s > 1e-3:
                time.sleep(min(waited_s / 20, 1e-3))
            if now_s() - looked_s > 0.1:
                self._find_deadlock()
                looked_s = now_s()
            if waited_s > self.timeout_s:
                raise RankFailed(
                    peer,
                    f"rank {peer} did not answer within timeout_s={self.timeout_s:g} s: rank {self.rank} was waiting "
                    f"for it in {self._doing(self.rank)}; rank {peer} was in {self._doing(peer)}",
                )

    def _set_doing(self, kind, peer=0, text=None):
        line = self._at(self.rank, 0)
        if text is not None:
            self._write(self.rank, 2, text)
        self._ints[line + PEER] = peer
        self._ints[line + DOING] = kind
        self._ints[line + CHANGES] += 1

    def _doing(self, rank):
        kind = self._ints[self._at(rank, DOING)]
        if kind == IDLE:
            return "its own code"
        slot = self._ints[self._at(rank, ENTERED)] % 2 if kind == COLLECTIVE else 2
        return self._read(rank, slot).partition("\n")[0]

    def _find_deadlock(self):
        """Follow who waits for whom; a circle that stays is a deadlock, and each rank in it says what it called."""
        before = self._changes()
        circle = self._circle(self.rank, [])
        if not circle:
            return
        time.sleep(0.02)
        if self._changes() == before:
            raise CollectiveMismatch({rank: self._doing(rank) for rank in circle})

    def _changes(self):
        return [self._ints[self._at(rank, CHANGES)] for rank in range(self.world_size)]

    def _circle(self, rank, path):
        if rank in path:
            return path[path.index(rank) :]
        for other in self._waits_for(rank):
            if circle := self._circle(other, [*path, rank]):
                return circle
        return []

    def _waits_for(self, rank):
        kind, peer = (self._ints[self._at(rank, place)] for place in (DOING, PEER))
        if kind == COLLECTIVE:
            entered = self._ints[self._at(rank, ENTERED)]
            return [r for r in range(self.world_size) if self._ints[self._at(r, ENTERED)] < entered]
        if kind in (SEND, RECV):
            other_kind, other_peer = (self._ints[self._at(peer, place)] for place in (DOING, PEER))
            meets = other_peer == rank and {kind, other_kind} == {SEND, RECV}
            return [] if meets else [peer]
        return []

    def publish(self, rounds):
        """Tell the others how many rounds this rank has ended, and when."""
        self.rounds = rounds
        line = self._at(self.rank, 0)
        self._ints[line + STAMPS + rounds % NUM_STAMPS] = int(now_s() * 1e9)
        self._fence()
        self._ints[line + ROUNDS] = rounds

    def wait_rounds(self, rank, rounds):
        """Wait until `rank` has ended that many rounds; the time at which it did (s)."""
        self.wait(self._at(rank, ROUNDS), rounds, rank)
        return self._ints[self._at(rank, STAMPS + rounds % NUM_STAMPS)] / 1e9

    # --- agreement ---------------------------------------------------------------------------------------------------

    def _write(self, rank, slot, text):
        data = text.encode()[: TEXT_BYTES - 8]
        at = rank * LINE_BYTES + TEXT_AT[slot]
        self._ints[at // 8] = len(data)
        self._bytes[at + 8 : at + 8 + len(data)] = data

    def _read(self, rank, slot):
        at = rank * LINE_BYTES + TEXT_AT[slot]
        return bytes(self._bytes[at + 8 : at + 8 + self._ints[at // 8]]).decode(errors="replace")

    def agree(self, call, note=""):
        # A rank that is one call ahead has written its other slot, so two slots are enough.
        self._calls += 1
        slot = self._calls % 2
        mine = f"{call}\n{note}"
        self._write(self.rank, slot, mine)
        self._fence()
        self._ints[self._at(self.rank, ENTERED)] = self._calls
        self._set_doing(COLLECTIVE)
        notes = []
        for rank in range(self.world_size):
            self.wait(self._at(rank, ENTERED), self._calls, rank)
            theirs, _, note = self._read(rank, slot).partition("\n")
            if theirs != call:
                raise CollectiveMismatch({self.rank: call, rank: theirs})
            notes.append(note)
        self._set_doing(IDLE)
        return notes

    # --- messages ----------------------------------------------------------------------------------------------------

    def _box(self, src, dst):
        """(index of the mailbox's first whole number, its bytes)."""
        at = self.world_size * LINE_BYTES + (src * self.world_size + dst) * (BOX_HEADER_BYTES + BOX_BYTES)
        return at // 8, self._bytes[at + BOX_HEADER_BYTES : at + BOX_HEADER_BYTES + BOX_BYTES]

    def send(self, tensor, dst):
        data = torch.as_tensor(tensor).view(-1).view(torch.uint8)
        box, room = self._box(self.rank, dst)
        call = f"send({describe(tensor)}, dst={dst})"
        self._set_doing(SEND, dst, call)
        first = self._ints[box + WRITTEN]
        self._ints[box + SIZE], self._ints[box + DTYPE] = data.numel(), DTYPES.index(tensor.dtype)
        self._ints[box + STAMP] = int(now_s() * 1e9)
        self._fence()
        self._sent[dst] += 1
        self._ints[box + POSTED] = self._sent[dst]
        for start, stop, at in _pieces(data.numel(), first):
            self.wait(box + READ, first + stop - BOX_BYTES, dst)
            torch.frombuffer(room, dtype=torch.uint8)[at : at + stop - start].copy_(data[start:stop])
            self._fence()
            self._ints[box + WRITTEN] = first + stop
        self.wait(box + READ, first + data.numel() + 1, dst)
        self._ints[box + WRITTEN] = first + data.numel() + 1
        self._set_doing(IDLE)

    def recv(self, tensor, src):
        data = tensor.view(-1).view(torch.uint8)
        box, room = self._box(src, self.rank)
        call = f"recv({describe(tensor)}, src={src})"
        self._set_doing(RECV, src, call)
        first = self._ints[box + READ]
        self._taken[src] += 1
        self.wait(box + POSTED, self._taken[src], src)
        if (self._ints[box + SIZE], DTYPES[self._ints[box + DTYPE]]) != (data.numel(), tensor.dtype):
            raise CollectiveMismatch({self.rank: call, src: self._read(src, 2)})
        posted_s = self._ints[box + STAMP] / 1e9
        if self.wire:
            self.wire.hold(src, data.numel(), data.numel(), posted_s)
        for start, stop, at in _pieces(data.numel(), first):
            self.wait(box + WRITTEN, first + stop, src)
            data[start:stop].copy_(torch.frombuffer(room, dtype=torch.uint8)[at : at + stop - start])
            self._fence()
            self._ints[box + READ] = first + stop
        # One more than the bytes: an empty message, too, has to be taken before the sender goes on.
        self._ints[box + READ] = first + data.numel() + 1
        self._set_doing(IDLE)
        return posted_s

    # --- schedules ---------------------------------------------------------------------------------------------------

    def buffer(self, numel, dtype):
        shared = SharedBuffer(self, numel, dtype)
        self._buffers.append(shared)
        return shared.views[self.rank]

    def window(self, call, plan, flat, reduce):
        shared, offset = self._find(flat)
        place = f"{self._buffers.index(shared)}+{offset}" if shared else "elsewhere"
        notes = self.agree(call, place)
        if shared and all(note == place for note in notes):
            return Window(self, plan, flat, reduce, shared.views, offset)
        return Window(self, plan, flat, reduce, self._scratch_for(flat), 0)

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
        self.views = [
            torch.frombuffer(block.view, dtype=dtype, count=numel) if numel else _empty(dtype) for block in blocks
        ]


class Window:
    """One collective on memory all ranks see: in place if the tensor lies in a shared buffer, else in scratch."""

    def __init__(self, transport, plan, flat, reduce, views, offset):
        self._transport, self._plan, self._reduce, self._flat = transport, plan, reduce, flat
        self._views = [view[offset : offset + flat.numel()] for view in views]
        self._mine = self._views[transport.rank]
        self._in_place = self._mine.data_ptr() == flat.data_ptr()
        if not self._in_place:
            self._mine.copy_(flat)
        self._first = transport.rounds + 1
        transport.publish(self._first)

    def post(self, step):
        for reader, rounds in step.readers.items():
            self._transport.wait_rounds(reader, self._first + rounds)

    def take(self, part, step):
        transport, size = self._transport, part.numel * self._mine.element_size()
        wait_s = now_s()
        ready_s = transport.wait_rounds(part.peer, self._first + step.number)
        if transport.wire:
            queued_bytes = part.queued_numel * self._mine.element_size()
            transport.wire.hold(part.peer, size, queued_bytes, ready_s)
        start_s = now_s()
        for start, stop in part.slices:
            mine, theirs = self._mine[start:stop], self._views[part.peer][start:stop]
            self._reduce(mine, theirs) if part.op == "add" else mine.copy_(theirs)
        if transport.trace is not None:
            transport.trace.message(transport.rank, part, size, wait_s, ready_s, start_s)

    def finish(self, step):
        self._transport.publish(self._first + step.number + 1)

    def close(self):
        for reader, rounds in self._plan.readers.items():
            self._transport.wait_rounds(reader, self._first + rounds)
        if not self._in_place:
            self._flat.copy_(self._mine)


def _pieces(numel, first):
    """Cut a message into (start, stop, place in the mailbox) so that no piece passes the mailbox's end."""
    start = 0
    while start < numel:
        at = (first + start) % BOX_BYTES
        stop = min(numel, start + BOX_BYTES // 4, start + BOX_BYTES - at)
        yield start, stop, at
        start = stop


def _empty(dtype):
    return torch.empty(0, dtype=dtype)
