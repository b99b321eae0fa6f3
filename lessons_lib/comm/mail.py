"""Messages between two ranks of one machine: through mailboxes in memory that both see, piece by piece."""

from collections import deque
from contextlib import suppress

import torch

from ..errors import CollectiveMismatch
from ..trace import now_s
from .board import Board
from .call import Call
from .line import IDLE, RECV, SEND, TEXT_BYTES

# A mailbox for each ordered pair of ranks: messages put in, bytes put in and taken out, when; what the message is, in
# words; then the bytes.
POSTED, WRITTEN, READ, STAMP, TEXT_SIZE = range(5)
TEXT_AT_BYTES = 64  # a line of the cache for the numbers alone
BOX_HEADER_BYTES = TEXT_AT_BYTES + TEXT_BYTES
BOX_BYTES = 1 << 18  # a quarter of it goes in at a time: both ranks work at once, and all of it stays in the cache


def boxes_bytes(world_size):
    """Size of the mailboxes of all ranks."""
    return world_size**2 * (BOX_HEADER_BYTES + BOX_BYTES)


class Mail:
    """All messages of one rank, sent and received. Those between two ranks keep their order; others overtake.

    A message is a generator, which yields what it waits for: so many can be under way at once. They go on in every wait
    of this rank, whatever it waits for; what fits into the mailbox is gone at once.

    Args:
        board: the `Board`; the mailboxes lie behind its lines.
        wire: the `EmulatedWire` that delays messages, or None.
    """

    def __init__(self, board, wire):
        self._board, self.wire = board, wire
        size_bytes = Board.size_bytes(board.world_size, boxes_bytes(board.world_size))
        self._memory, self._text = board.block.tensor(torch.uint8, size_bytes), memoryview(board.block.view)
        self._sent, self._taken = [0] * board.world_size, [0] * board.world_size
        self._under_way = {}  # (peer, SEND or RECV) -> Parcels, in order

    def start_send(self, tensor, dst):
        """Begin to give a contiguous tensor to rank `dst`; the `Parcel`."""
        text = str(Call("send", tensor, f"dst={dst}"))
        return self._start(Parcel(SEND, dst, text, self._sending(tensor, dst, text)))

    def start_recv(self, tensor, src):
        """Begin to fill a contiguous tensor from rank `src`; the `Parcel`."""
        text = str(Call("recv", tensor, f"src={src}"))
        return self._start(Parcel(RECV, src, text, self._receiving(tensor, src, text)))

    def _start(self, parcel):
        self._under_way.setdefault((parcel.peer, parcel.kind), deque()).append(parcel)
        self.go_on()
        return parcel

    def go_on(self):
        """Let every message go on as far as it can."""
        ints = self._board.ints
        for key, parcels in list(self._under_way.items()):
            while parcels and parcels[0].go_on(ints):
                parcels.popleft()
            if not parcels:
                self._under_way.pop(key, None)
        can_go_on = self._under_way and any(parcels[0].error is None for parcels in self._under_way.values())
        self._board.meanwhile = self.go_on if can_go_on else None

    def is_over(self, parcel):
        """Whether `wait(parcel)` would not wait."""
        if self._board.mismatch is None:
            self.go_on()
        return parcel.is_done or (self._board.mismatch or self._failure_before(parcel)) is not None

    def _failure_before(self, parcel):
        """What went wrong with the message that comes next where `parcel` waits for its turn."""
        return self._under_way[parcel.peer, parcel.kind][0].error

    def clear(self):
        """Empty the mailboxes; what is under way has failed. All ranks do it together."""
        for parcels in self._under_way.values():
            for parcel in parcels:
                parcel.is_done, parcel.error = True, self._board.mismatch
        self._under_way, self._board.meanwhile = {}, None
        rank, ints = self._board.rank, self._board.ints
        for other in range(self._board.world_size):
            sent, taken = self._box(rank, other)[0], self._box(other, rank)[0]
            ints[sent + POSTED] = ints[sent + WRITTEN] = ints[taken + READ] = 0
            self._sent[other] = self._taken[other] = 0

    def wait(self, parcel):
        """Wait until it has arrived; when the other rank was ready to send it (s). Raises what went wrong with it."""
        board, parcels = self._board, self._under_way.get((parcel.peer, parcel.kind))
        board.set_doing(parcel.kind, parcel.peer, parcel.text)
        while not parcel.is_done:
            if (error := board.mismatch or self._failure_before(parcel)) is not None:
                board.lose(error)
            index, value = parcels[0].waits_for
            if len(self._under_way) == 1:
                board.meanwhile = None  # nothing else can go on: the wait is for that rank alone
            board.wait(index, value, parcel.peer)
            self.go_on()
        board.set_doing(IDLE)
        if parcel.error is not None:
            raise parcel.error
        return parcel.posted_s

    def wait_for_any(self, tensor):
        """Wait until some rank has begun to send to this one; which, in turn where several have."""
        board = self._board
        board.set_doing(RECV, board.rank, str(Call("recv", tensor, "src=None")))
        found = board.wait_until(self._first_sender, "any rank to send")
        board.set_doing(IDLE)
        return found

    def _first_sender(self):
        self.go_on()
        board, others = self._board, [rank for rank in range(self._board.world_size) if rank != self._board.rank]
        # If all others wait in a collective, with no message under way, none will come. Look at them before looking for
        # a message: one may have come just before.
        are_ahead = all(board.is_ahead(other) for other in others)
        if (found := self._sender()) is None and are_ahead:
            board.disagree(range(board.world_size))
        return found

    def _sender(self):
        """A rank whose message is there and not spoken for, or None; not the same first each time."""
        size, rank, turn = self._board.world_size, self._board.rank, sum(self._taken)
        for src in ((turn + k) % size for k in range(size)):
            is_free = src != rank and (src, RECV) not in self._under_way
            if is_free and self._board.ints[self._box(src, rank)[0] + POSTED] > self._taken[src]:
                return src
        return None

    # --- one message -------------------------------------------------------------------------------------------------

    def _box(self, src, dst):
        """(index of the mailbox's first whole number, where its bytes start)."""
        before = src * self._board.world_size + dst
        at = Board.size_bytes(self._board.world_size, before * (BOX_HEADER_BYTES + BOX_BYTES))
        return at // 8, at + BOX_HEADER_BYTES

    def _sending(self, tensor, dst, text):
        board, data = self._board, tensor.view(-1).view(torch.uint8)
        box, at = self._box(board.rank, dst)
        room, first, posted_s = self._memory[at : at + BOX_BYTES], board.ints[box + WRITTEN], now_s()
        words = text.encode()[:TEXT_BYTES]
        self._text[at - TEXT_BYTES : at - TEXT_BYTES + len(words)] = words
        board.ints[box + TEXT_SIZE], board.ints[box + STAMP] = len(words), int(posted_s * 1e9)
        self._sent[dst] += 1
        board.tell(box + POSTED, self._sent[dst])
        for start, stop, where in _pieces(data.numel(), first):
            yield box + READ, first + stop - BOX_BYTES
            room[where : where + stop - start].copy_(data[start:stop])
            board.tell(box + WRITTEN, first + stop)
        # One more than the bytes: an empty message, too, has to be taken before the sender goes on.
        yield box + READ, first + data.numel() + 1
        board.tell(box + WRITTEN, first + data.numel() + 1)
        return posted_s

    def _receiving(self, tensor, src, text):
        board, data = self._board, tensor.view(-1).view(torch.uint8)
        box, at = self._box(src, board.rank)
        room, first = self._memory[at : at + BOX_BYTES], board.ints[box + READ]
        self._taken[src] += 1
        yield box + POSTED, self._taken[src]
        theirs = bytes(self._text[at - TEXT_BYTES :][: board.ints[box + TEXT_SIZE]]).decode(errors="replace")
        if theirs != str(Call("send", tensor, f"dst={board.rank}")):
            raise CollectiveMismatch({board.rank: text, src: theirs})
        posted_s = board.ints[box + STAMP] / 1e9
        if self.wire:
            self.wire.hold(src, data.numel(), data.numel(), posted_s)
        for start, stop, where in _pieces(data.numel(), first):
            yield box + WRITTEN, first + stop
            data[start:stop].copy_(room[where : where + stop - start])
            board.tell(box + READ, first + stop)
        board.tell(box + READ, first + data.numel() + 1)
        return posted_s


class Parcel:
    """A message under way.

    Attributes:
        kind, peer, text: SEND or RECV, the other rank, and the call in words.
        waits_for: (index, value): it goes on when the whole number at the index has reached the value.
        is_done: whether it has arrived, or is given up.
        error: what went wrong. The messages after it then do not go on.
        posted_s: when the sender was ready.
    """

    def __init__(self, kind, peer, text, steps):
        self.kind, self.peer, self.text, self._steps = kind, peer, text, steps
        self.waits_for, self.is_done, self.error, self.posted_s = (0, -1), False, None, None

    def go_on(self, ints):
        """Go on as far as can be; whether it is done."""
        with suppress(StopIteration):
            while not self.is_done and self.error is None and ints[self.waits_for[0]] >= self.waits_for[1]:
                self._step()
        return self.is_done

    def _step(self):
        try:
            self.waits_for = next(self._steps)
        except StopIteration as end:
            self.is_done, self.posted_s = True, end.value
        except CollectiveMismatch as error:  # it is for whoever waits for this message
            self.error = error


def _pieces(numel, first):
    """Cut a message into (start, stop, index in the mailbox) so that no piece passes the mailbox's end."""
    start = 0
    while start < numel:
        at = (first + start) % BOX_BYTES
        stop = min(numel, start + BOX_BYTES // 4, start + BOX_BYTES - at)
        yield start, stop, at
        start = stop
