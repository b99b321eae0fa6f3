"""Shares of every batch in proportion to the speed of each rank, measured while it trains (lesson 20)."""

import statistics
import time
from contextlib import contextmanager

from ...errors import check_sizes
from ..wrapped import check_communicator
from .shares import slowest_s, split_by_speed

SLOW = 0.8  # of the median speed: below it a rank counts as slow
CHRONIC = 3  # so many steps in a row


class Balancer:
    """Deals the samples of each batch to the ranks so that all need the same time.

    Every rank times its own work, without what it spends in operations of `comm`; the ranks tell each other, and all
    come to the same shares. Gradients that count samples alike, as `DataParallel` makes them, are those of one process
    whatever the shares are: only the time of a step depends on them.

        balancer = Balancer(net.comm, batch_size=64)
        for batch in batches:                        # the same rows on every rank
            with balancer.work():
                rows = balancer.own(batch)
                loss_fn(net(x[rows]), y[rows]).backward()
            optimizer.step()

    Args:
        comm: `Communicator`, that of the `DataParallel`.
        batch_size: samples of a step, over all ranks together; at least one per rank.
        smoothing: 0 to 1: how much a new measurement counts beside all before it.
        gain: the shares change when the step would be faster by more than this part of its time, 0.1 for 10 %: those
            that follow every measurement would never rest.

    Attributes:
        shares: how many samples each rank gets, in rank order; each at least one, so that its speed is seen.
        speeds: samples per second of each rank, smoothed; None before the first step.
        changes: in which steps the shares have changed, counted from 0.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
        CollectiveMismatch: the ranks do not all end a step.

    Communication: two numbers per rank and step, which are no payload.

    Source: the best that unequal speeds v allow is W/Σv seconds for W samples; lesson 20.
    """

    def __init__(self, comm, batch_size, smoothing=0.5, gain=0.1):
        check_communicator(comm)
        check_sizes(batch_size=batch_size)
        if batch_size < comm.world_size:
            raise ValueError(f"batch_size={batch_size}: at least one sample for each of {comm.world_size} ranks")
        if not 0 < smoothing <= 1:
            raise ValueError(f"smoothing={smoothing!r}: more than 0 and at most 1 is needed")
        if not gain >= 0:
            raise ValueError(f"gain={gain!r}: a number of at least 0 is needed")
        self.comm, self.batch_size, self._smoothing, self._gain = comm, batch_size, smoothing, gain
        self.shares = split_by_speed(batch_size, [1.0] * comm.world_size)
        self.speeds, self.changes, self._num_steps = None, [], 0
        self._slow_for = [0] * comm.world_size

    def own(self, batch):
        """This rank's part of a batch: `batch[start:stop]` of anything with `batch_size` rows."""
        if len(batch) != self.batch_size:
            raise ValueError(f"batch of {len(batch)} rows: {self.batch_size} are needed, as batch_size says")
        start = sum(self.shares[: self.comm.rank])
        return batch[start : start + self.shares[self.comm.rank]]

    @contextmanager
    def work(self):
        """The rank's own work of one step: forward and backward. At its end all ranks tell each other their times."""
        start_s, spent_s = time.perf_counter(), self.comm.spent_s
        yield
        own_s = time.perf_counter() - start_s - (self.comm.spent_s - spent_s)
        self._end_step(own_s)

    def slow(self):
        """{rank: "once" or "chronic"} of those that were slow in the last step: below 0.8 of the median speed, and
        chronic if so in three steps in a row."""
        return {
            rank: "chronic" if steps >= CHRONIC else "once" for rank, steps in enumerate(self._slow_for) if steps > 0
        }

    def _end_step(self, own_s):
        own_ns = max(1, round(own_s * 1e9))
        table = self.comm.tell(f"step {self._num_steps} of a Balancer", [self.shares[self.comm.rank], own_ns])
        measured = [samples / own_ns * 1e9 for samples, own_ns in table]
        limit = SLOW * statistics.median(measured)
        self._slow_for = [
            steps + 1 if speed < limit else 0 for steps, speed in zip(self._slow_for, measured, strict=True)
        ]
        new, before = self._smoothing, self.speeds or measured
        self.speeds = [new * speed + (1 - new) * old for speed, old in zip(measured, before, strict=True)]
        better = split_by_speed(self.batch_size, self.speeds)
        if slowest_s(self.shares, self.speeds) > (1 + self._gain) * slowest_s(better, self.speeds):
            self.shares = better
            self.changes.append(self._num_steps)
        self._num_steps += 1
