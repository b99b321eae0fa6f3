"""A whole collective of `torch.distributed` under way, before which the ranks have told each other nothing."""

from datetime import timedelta

from ..trace import now_s

LOOK = timedelta(seconds=0.25)  # after so long a wait it is worth to see what the others are in
# A rank that is done may be in its next call while the last bytes are on their way to this one: so look several times.
NUM_LOOKS = 4


class TorchWork:
    """A handle to wait for `work`, which is this rank's part in `call`.

    Attributes:
        is_waited_for: whether `wait` has been called.
        count: called with the time at which a wait began, when it ends.
    """

    def __init__(self, transport, call, work):
        self._transport, self._call, self._work = transport, call, work
        self.is_waited_for, self.count = False, None

    def wait(self):
        """Return when it is done.

        Raises:
            CollectiveMismatch: another rank is in another call.
            RankFailed: it does not end within the time limit, or a connection broke.
        """
        self.is_waited_for, start_s = True, now_s()
        try:
            self._wait()
        finally:
            self.count(start_s)

    def _wait(self):
        end_s, num_elsewhere, is_over = now_s() + self._transport.timeout_s, 0, False
        while True:
            try:
                self._work.wait(LOOK)
                return
            except RuntimeError as error:
                if is_over or now_s() > end_s:
                    raise self._transport.failed(None, error, self._call) from error
                is_over = self._work.is_completed()  # if so, the next wait says how it ended
            others = self._heard()
            num_elsewhere = num_elsewhere + 1 if others else 0
            if num_elsewhere == NUM_LOOKS:
                self._transport.disagree({self._transport.rank: str(self._call), **others})

    def is_completed(self):
        return self._work.is_completed()

    def _heard(self):
        """What ranks say that are in another call: none tells anything before this one. Messages may wait for later."""
        told = {
            rank: self._transport.heard_so_far(rank)
            for rank in range(self._transport.world_size)
            if rank != self._transport.rank
        }
        return {rank: text for rank, text in told.items() if text and not text.startswith("send(")}
