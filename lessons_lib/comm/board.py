"""Where ranks of one machine tell each other what they do: a line of shared memory for each, written by it alone."""

import time

from ..errors import CollectiveMismatch, RankFailed
from ..trace import now_s
from .bell import Bell
from .block import Block, Fence, yield_core
from .disagreement import Disagreement
from .line import (
    ASLEEP,
    CHANGES,
    COLLECTIVE,
    DOING,
    ENTERED,
    IDLE,
    INDEX,
    LINE_BYTES,
    MESSAGE_TEXT,
    NUM_STAMPS,
    PEER,
    STAMPS,
    STEPS,
    TEXT_AT,
    TEXT_BYTES,
    VALUE,
)

SPINS = 200  # about 10 µs: a rank that is only a little behind comes in less, and giving the core away costs as much
# Among ranks alone, yielding the core is the quickest way to wait, for so long. A single yield that takes longer shows
# that other work wants the cores: then the next so many waits sleep at once, and come back when they are rung for.
YIELD_S, SLEEPS = 1e-3, 200
NAP_S = 1e-3  # so long at most a rank sleeps that nobody will wake
LOOK_S = 0.1  # so often a rank that waits looks whether the ranks wait for each other


class Board(Disagreement):
    """The lines of all ranks, and behind them `extra_bytes` for other uses.

    Args:
        rank, world_size: who writes here, of how many.
        name: of a zeroed `Block` of `Board.size_bytes(world_size, extra_bytes)`, made by the launcher.
        timeout_s: how long a wait lasts before `RankFailed` names who did not come.
        liveness: the `Liveness` of an elastic launch, or None.
        generation: the number of the `Generation` that meets here.
    """

    def __init__(self, rank, world_size, name, extra_bytes, timeout_s, liveness=None, generation=0):
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s
        self.liveness, self.generation = liveness, generation
        self.block = Block(self.size_bytes(world_size, extra_bytes), name)
        self._bytes = memoryview(self.block.view)
        self.ints = self._bytes.cast("B").cast("q")
        self.fence, self._bell = Fence(), Bell(self.block.view)
        self._line, self._num_calls, self.steps = self._at(rank, 0), 0, 0
        self.mismatch, self._num_lost = None, 0  # raised, and not left behind; how many are left behind
        self._sleeps_left = 0  # how many more waits do not yield, because other work wants the cores
        self.meanwhile = None  # what else goes on while this rank waits
        self._others_asleep = [self._at(other, ASLEEP) for other in range(world_size) if other != rank]

    @staticmethod
    def size_bytes(world_size, extra_bytes):
        return world_size * LINE_BYTES + extra_bytes

    @staticmethod
    def _at(rank, number):
        return rank * (LINE_BYTES // 8) + number

    def _write(self, slot, text):
        data = text.encode()[: TEXT_BYTES - 8]
        at = self.rank * LINE_BYTES + TEXT_AT[slot]
        self.ints[at // 8] = len(data)
        self._bytes[at + 8 : at + 8 + len(data)] = data

    def _raw(self, rank, slot):
        at = rank * LINE_BYTES + TEXT_AT[slot]
        return self._bytes[at + 8 : at + 8 + self.ints[at // 8]]

    def read(self, rank, slot):
        """The text in one of `rank`'s slots."""
        return bytes(self._raw(rank, slot)).decode(errors="replace")

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait(self, index, value, peer):
        """Wait until the whole number at `index` has reached `value`: spin a little, yield a while, then sleep."""
        ints = self.ints
        for _ in range(SPINS):
            if ints[index] >= value:
                return
        start_s = looked_s = now_s()
        self._sleeps_left = max(0, self._sleeps_left - 1)
        # A rank whose messages go on meanwhile is no part of a deadlock: what others wait for may be among them.
        ints[self._line + VALUE], ints[self._line + INDEX] = (-1 if self.meanwhile else value), index
        while ints[index] < value:
            waited_s = now_s() - start_s
            self._check_all_live()
            if self.meanwhile:
                self.meanwhile()
            self._give_way(index, value, waited_s)
            if now_s() - looked_s > LOOK_S:
                self._find_deadlock()
                looked_s = now_s()
            self._find_lost(index, value, peer)
            if waited_s > self.timeout_s:
                raise RankFailed(
                    peer,
                    f"rank {peer} did not answer within timeout_s={self.timeout_s:g} s: rank {self.rank} was waiting "
                    f"for it in {self.doing(self.rank)}; rank {peer} was in {self.doing(peer)}",
                )

    def _check_all_live(self):
        if self.liveness is not None:
            self.liveness.check(self.generation)

    def _give_way(self, index, value, waited_s):
        """Yield the core, or sleep until somebody writes at `index`; without a bell, nap a little in a long wait."""
        if (not self._sleeps_left and waited_s < YIELD_S) or not self._bell.works:
            start_s = now_s()
            yield_core()
            if now_s() - start_s > YIELD_S:
                self._sleeps_left = SLEEPS
            if waited_s > YIELD_S:
                time.sleep(min(waited_s / 20, NAP_S))
            return
        self.ints[self._line + ASLEEP] = 1
        self.fence()  # whoever writes from here on sees that this rank sleeps, or this rank sees what was written
        if (seen := self.ints[index]) < value:
            self._bell.sleep(index, seen, NAP_S if self.meanwhile else LOOK_S)
        self.ints[self._line + ASLEEP] = 0

    def wait_until(self, condition, what):
        """Wait until `condition()` is not None, and return it. `what` is awaited of any rank, in words."""
        start_s = now_s()
        while (found := condition()) is None:
            self._check_all_live()
            yield_core()
            if (waited_s := now_s() - start_s) > NAP_S:
                time.sleep(min(waited_s / 20, NAP_S))
            if waited_s > self.timeout_s:
                reason = (
                    f"no rank did so within timeout_s={self.timeout_s:g} s: rank {self.rank} was waiting for {what}"
                )
                raise RankFailed(None, f"{reason} in {self.doing(self.rank)}")
        return found

    def tell(self, index, value):
        """Write `value` at `index`, after all that was written before, and wake those who wait for it."""
        ints = self.ints
        self.fence()  # who sees the new count must see what was written before it
        ints[index] = value
        if self._bell.works:
            self.fence()
            for other in self._others_asleep:
                if ints[other]:
                    self._bell.ring(index)
                    return

    def set_doing(self, kind, peer=0, text=None):
        """Tell the others what this rank is in: IDLE, a COLLECTIVE, or a SEND or RECV with `peer`."""
        if text is not None:
            self._write(MESSAGE_TEXT, text)
        self.ints[self._line + PEER] = peer
        self.ints[self._line + DOING] = kind
        self.ints[self._line + CHANGES] += 1

    def doing(self, rank):
        """What `rank` is in, in words."""
        kind = self.ints[self._at(rank, DOING)]
        if kind == IDLE:
            return "its own code"
        slot = self.ints[self._at(rank, ENTERED)] % 2 if kind == COLLECTIVE else MESSAGE_TEXT
        return self.read(rank, slot).partition("\n")[0]

    # --- steps and calls ---------------------------------------------------------------------------------------------

    def publish(self, steps):
        """Tell the others how many steps this rank has ended, and when."""
        self.steps = steps
        self.ints[self._line + STAMPS + steps % NUM_STAMPS] = int(now_s() * 1e9)
        self.tell(self._line + STEPS, steps)

    def wait_steps(self, rank, steps):
        """Wait until `rank` has ended that many steps; the time at which it did (s)."""
        self.wait(self._at(rank, STEPS), steps, rank)
        return self.ints[self._at(rank, STAMPS + steps % NUM_STAMPS)] / 1e9

    def enter(self, call, note, trace=None):
        """Wait until all ranks have come to `call`; their notes. This rank is in the call until `set_doing(IDLE)`.

        `trace` records who came late, if it is not None.
        """
        # A rank that is one call ahead has written its other slot, so two slots are enough. The text comes first, the
        # count that says it is there last.
        self._check_all_live()
        self._num_calls += 1
        slot = self._num_calls % 2
        self._write(slot, f"{call}\n{note}")
        self.ints[self._line + VALUE] = -1  # it waits for nothing yet
        self.tell(self._line + ENTERED, self._num_calls)
        self.set_doing(COLLECTIVE)
        notes, mine = [], self._raw(self.rank, slot)
        for rank in range(self.world_size):
            self._wait_to_enter(rank, call, trace)
            if self._raw(rank, slot) == mine:
                notes.append(note)
                continue
            theirs, _, their_note = self.read(rank, slot).partition("\n")
            if theirs != call:
                self.lose(CollectiveMismatch({self.rank: call, rank: theirs}))
            notes.append(their_note)
        return notes

    def _wait_to_enter(self, rank, call, trace):
        index = self._at(rank, ENTERED)
        if trace is None or self.ints[index] >= self._num_calls:
            self.wait(index, self._num_calls, rank)
            return
        start_s = now_s()
        self.wait(index, self._num_calls, rank)
        trace.came_late(self.rank, rank, start_s, call)
