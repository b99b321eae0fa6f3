"""What ranks find out that can never go on together, and how they go on after it."""

import time

from ..errors import CollectiveMismatch
from .line import CHANGES, CLEARED, COLLECTIVE, DOING, ENTERED, IDLE, INDEX, LOST, PEER, RECV, SEND, VALUE


class Disagreement:
    """The part of a `Board` that finds ranks in a circle, and ranks in other calls.

    After a mismatch no count fits those of the others any more. So a rank that raises one is lost: it takes part in
    nothing until all are, and then all count from 0 again. A rank that waits for a lost one becomes lost by that.
    """

    def is_ahead(self, rank):
        """Whether `rank` sends nothing: it is lost, or in a collective to come, and has no messages under way."""
        kind, entered, value = (self.ints[self._at(rank, number)] for number in (DOING, ENTERED, VALUE))
        return self._is_lost(rank) or (kind == COLLECTIVE and entered > self._num_calls and value >= 0)

    def _find_deadlock(self):
        """Follow who waits for whom; a circle that stays is a deadlock, and each rank in it says what it called."""
        before = self._changes()
        if self._circle(self.rank, [], set()):
            time.sleep(0.02)
            circle = self._circle(self.rank, [], set())
            if circle and self._changes() == before:
                self.disagree(circle)

    def _changes(self):
        return [self.ints[self._at(rank, CHANGES)] for rank in range(self.world_size)]

    def _circle(self, rank, path, seen):
        if rank in path:
            return path[path.index(rank) :]
        if rank in seen:
            return []
        seen.add(rank)
        circles = (self._circle(other, [*path, rank], seen) for other in self._waits_for(rank))
        return next(filter(None, circles), [])

    def _waits_for(self, rank):
        kind, peer, index, value = (self.ints[self._at(rank, number)] for number in (DOING, PEER, INDEX, VALUE))
        if self.ints[index] >= value or self._is_lost(rank):
            return []  # what it waited for has come, only the system has not let it go on yet; or it has given up
        if kind == COLLECTIVE:
            entered = self.ints[self._at(rank, ENTERED)]
            return [r for r in range(self.world_size) if self.ints[self._at(r, ENTERED)] < entered]
        if kind in (SEND, RECV):
            other_kind, other_peer = (self.ints[self._at(peer, number)] for number in (DOING, PEER))
            meets = other_peer == rank and {kind, other_kind} == {SEND, RECV}
            return [] if meets else [peer]
        return []

    # --- disagreement ------------------------------------------------------------------------------------------------

    def disagree(self, ranks):
        """Raise the `CollectiveMismatch` of what `ranks` are in, and tell the others that this rank is lost."""
        self.lose(CollectiveMismatch({rank: self.doing(rank) for rank in ranks}))

    def lose(self, mismatch):
        """Raise `mismatch`, and tell the others that this rank is lost."""
        if self.mismatch is None:
            self.mismatch = mismatch
            self.tell(self._line + LOST, self._num_lost + 1)
        raise mismatch

    def _is_lost(self, rank):
        return self.ints[self._at(rank, LOST)] > self._num_lost

    def _find_lost(self, index, value, peer):
        """Raise if `peer` is lost, and has not done before what this rank waits for."""
        if self.mismatch is None and self._is_lost(peer):
            self.fence()
            if self.ints[index] < value:
                self.disagree([self.rank, peer])

    def start_again(self, clear):
        """Wait until all ranks are lost; then `clear()` and count from 0, as all do. Nobody looks meanwhile."""
        self._wait_for_all(LOST)
        clear()
        self._num_calls = self.ints[self._line + ENTERED] = 0
        self.publish(0)
        self.set_doing(IDLE)
        self.tell(self._line + CLEARED, self._num_lost + 1)
        self._wait_for_all(CLEARED)
        self.mismatch, self._num_lost = None, self._num_lost + 1

    def _wait_for_all(self, number):
        for rank in range(self.world_size):
            self.wait(self._at(rank, number), self._num_lost + 1, rank)
