"""Ranks of one machine, joined by memory they all see: no socket, no copy in between.

A rank reads each chunk straight out of its neighbour's buffer. All that they tell each other is how many steps each
has ended; which of these counts a rank waits for follows from the schedule (see `plan`).
"""

import zlib
from weakref import WeakValueDictionary

import numpy as np
import torch

from ..errors import RankLost
from .block import Block
from .board import Board
from .call import Call
from .check import check_memory
from .line import IDLE
from .mail import Mail, boxes_bytes
from .shared_window import DeliveryWindow, SharedWindow
from .transport import EmulatedWire, GroupWire, Transport


def board_bytes(world_size):
    """Size of the memory in which `world_size` ranks meet."""
    return Board.size_bytes(world_size, boxes_bytes(world_size))


class SharedMemoryTransport(Transport):
    """See the module.

    Args:
        rank, world_size: who this is, of how many.
        board: the name of a zeroed `Block` of `board_bytes(world_size)`, made by the launcher.
        timeout_s: how long any wait may last.
        links: `Links` to emulate, or None.
        elastic: of an elastic launch, its `Liveness` and the number of the `Generation` that meets; or None.
        ranks: the numbers in the launch of those that meet, as `links` knows them; None: all.
    """

    segment_bytes = 4 << 20  # what one round has written is still in the cache when the next round reads it

    def __init__(self, rank, world_size, board, timeout_s, links=None, elastic=None, ranks=None):
        super().__init__(rank, world_size, links)
        self._links, self._elastic = links, elastic or (None, 0)
        if links and ranks:
            self.wire = GroupWire(EmulatedWire(ranks[rank], links), ranks)
        self.board = Board(rank, world_size, board, boxes_bytes(world_size), timeout_s, *self._elastic)
        self.mail = Mail(self.board, self.wire)
        self._buffers, self._num_buffers, self._scratch = WeakValueDictionary(), 0, None  # by number

    def set_timeout(self, timeout_s):
        self.board.timeout_s = timeout_s

    def _in_step(self):
        """Before anything is begun: after a mismatch, all ranks start again."""
        if self.board.mismatch is not None:
            self.board.start_again(self.mail.clear)

    def agree(self, call, note=""):
        self._in_step()
        notes = self.board.enter(str(call), note, self.trace)
        self.board.set_doing(IDLE)
        return notes

    # --- messages ----------------------------------------------------------------------------------------------------

    def send(self, tensor, dst):
        self.mail.wait(self.isend(tensor, dst))

    def recv(self, tensor, src):
        return self.mail.wait(self.irecv(tensor, src))

    def isend(self, tensor, dst):
        self._in_step()
        return self.mail.start_send(tensor, dst)

    def irecv(self, tensor, src):
        self._in_step()
        return self.mail.start_recv(tensor, src)

    def wait_for(self, message):
        return self.mail.wait(message)

    def is_done(self, message):
        return self.mail.is_over(message)

    def first_sender(self, tensor):
        self._in_step()
        return self.mail.wait_for_any(tensor)

    # --- schedules ---------------------------------------------------------------------------------------------------

    def buffer(self, numel, dtype):
        shared = SharedBuffer(self, numel, dtype, self._num_buffers + 1)
        self._num_buffers += 1  # only now: where the ranks disagree, none of them has made one
        self._buffers[self._num_buffers] = shared
        return shared.tensor()

    def window(self, call, plan, flat, reduce, source=None):
        self._in_step()
        if source is not None:
            return self._delivery(call, plan, flat, reduce, source)
        shared, offset = self._find(flat)
        location = f"{shared.number}+{offset}" if shared else "elsewhere"
        self.board.publish(self.board.steps + 1)  # who lies in a buffer can be read from now on
        notes = self.board.enter(str(call), location, self.trace)
        if not shared or any(note != location for note in notes):
            scratch = self._scratch_for(flat.numel(), flat.dtype)
            return SharedWindow(self, plan, scratch).open(flat, reduce, in_place=False)
        if (plan, offset) not in shared.windows:
            views = [view[offset : offset + flat.numel()] for view in shared.views]
            shared.windows[plan, offset] = SharedWindow(self, plan, views)
        return shared.windows[plan, offset].open(flat, reduce)

    def _delivery(self, call, plan, target, reduce, source):
        """The window of a `Delivery`. What a rank gives need not lie where the others' lies, nor in a buffer at all."""
        held = dict(self._buffers)  # none of them goes meanwhile
        shared, offset = self._find(source)
        location = f"{shared.number}+{offset}" if shared else "elsewhere"
        first = self.board.steps + 2  # one step for the memory, one for what is in it
        if shared:
            self.board.publish(first)  # both are there
        note = f"{location} of {zlib.crc32(repr(sorted(held)).encode()):08x}"
        notes = self.board.enter(str(call), note, self.trace)
        locations, all_held = zip(*(note.split(" of ") for note in notes), strict=True)
        if len(set(all_held)) > 1:  # a rank may have let go of the buffer that another one gives from
            locations, shared, first = ["elsewhere"] * self.world_size, None, first + 1
        scratch = self._scratch_for(plan.most_given, source.dtype) if "elsewhere" in locations else None
        if not shared:
            scratch[self.rank][: source.numel()].copy_(source)
            self.board.publish(first)
        views = [self._given(*each, held, scratch) for each in enumerate(locations)]
        return DeliveryWindow(self, plan, views, target, reduce)

    @staticmethod
    def _given(rank, location, held, scratch):
        """What `rank` gives: a 1-D tensor that starts at `location`."""
        if location == "elsewhere":
            return scratch[rank]
        number, offset = map(int, location.split("+"))
        return held[number].views[rank][offset:]

    def _find(self, flat):
        """The shared buffer that `flat` lies in, and at which element; (None, 0) for ordinary memory."""
        for shared in list(self._buffers.values()):
            mine = shared.views[self.rank]
            offset = flat.data_ptr() - mine.data_ptr()
            if flat.dtype == mine.dtype and offset >= 0 and offset + flat.nbytes <= mine.nbytes:
                return shared, offset // flat.element_size()
        return None, 0

    def _scratch_for(self, numel, dtype):
        size_bytes = numel * dtype.itemsize
        if self._scratch is None or self._scratch.views[0].numel() < size_bytes:
            check_memory("working memory", self.world_size, size_bytes)
            self._scratch = SharedBuffer(self, max(1 << 16, 1 << (size_bytes - 1).bit_length()), torch.uint8)
        return [view[:size_bytes].view(dtype) for view in self._scratch.views]

    def make_group(self, members):
        is_first = bool(members) and members[0] == self.rank
        own = Block(board_bytes(len(members))) if is_first else None
        names = self.agree("making groups", own.name if own else "")
        made = None
        if members:
            made = SharedMemoryTransport(
                members.index(self.rank),
                len(members),
                names[members[0]],
                self.board.timeout_s,
                elastic=self._elastic,
            )
            made.wire = made.mail.wire = GroupWire(self.wire, members) if self.wire else None
        self.agree("groups are made")
        if own:
            own.end()
        return made

    @property
    def liveness(self):
        """The `Liveness` of an elastic launch, or None."""
        return self._elastic[0]

    def regroup(self, number, start_timeout_s=120.0):
        """Meet those that live after a death; the transport and their numbers in the launch. `number` is this rank's.

        Raises:
            RuntimeError: ranks of this launch may not die, or none has.
        """
        liveness, generation = self._elastic
        if liveness is None:
            raise RuntimeError("regroup() needs launch(..., elastic=True): otherwise all ranks end with one that fails")
        if liveness.number == generation:
            raise RuntimeError("regroup(): no rank has died since this communicator was made")
        while True:
            newest = liveness.read()
            place, elastic = newest.ranks.index(number), (liveness, newest.number)
            where = place, len(newest.ranks), newest.board, start_timeout_s
            made = SharedMemoryTransport(*where, self._links, elastic, newest.ranks)
            try:
                made.agree(f"regroup after {newest.number} failures")
            except RankLost:  # one more, before all had come
                continue
            made.set_timeout(self.board.timeout_s)
            return made, newest.ranks

    def close(self):
        self._scratch = None


class SharedBuffer:
    """A block of each rank, seen by all. What `tensor` gives holds it: with the last view of that, all of it goes.

    Attributes:
        number: the same on all ranks, so that they can say which buffer a tensor lies in; 0 for scratch.
        views: `views[rank]` is that rank's 1-D tensor.
        windows: those made for a part of it, by plan and first element.
    """

    def __init__(self, transport, numel, dtype, number=0):
        self.number, self.windows, size_bytes = number, {}, numel * dtype.itemsize
        own = Block(size_bytes)
        self._blocks, self._rank, self._dtype = [own], transport.rank, dtype
        names = transport.agree(Call("buffer", None, numel, dtype), own.name)
        self._blocks = [own if r == transport.rank else Block(size_bytes, name) for r, name in enumerate(names)]
        transport.agree(f"{Call('buffer', None, numel, dtype)} attached")
        own.forget_name()
        self.views = [block.tensor(dtype, numel) for block in self._blocks]

    @property
    def __array_interface__(self):
        """This rank's memory for NumPy, whose array of it then holds this object."""
        mine = self.views[self._rank]
        return {"version": 3, "data": (mine.data_ptr(), False), "shape": (mine.nbytes,), "typestr": "|u1"}

    @torch.inference_mode(False)
    def tensor(self):
        """This rank's view, as a tensor that holds the buffer."""
        mine = self.views[self._rank]  # no memory at all if it is empty, and nothing that must be held
        return torch.from_numpy(np.asarray(self)).view(self._dtype) if mine.numel() else mine

    def __del__(self):
        self.windows, self.views = {}, []
        for block in self._blocks:
            block.end()
