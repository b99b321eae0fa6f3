"""What can go wrong between ranks, and the check that every floor needs."""

from numbers import Integral


class RankFailed(RuntimeError):
    """A rank raised, exited, was killed, or did not answer within the time limit.

    Attributes:
        rank: the rank that failed, or None where it is not known.
        reason: one line: what happened to it, and what it was doing.
        details: the rank's own traceback, or "".
        trace: the `Trace` of what the ranks recorded until then, or None.
    """

    def __init__(self, rank, reason, details="", trace=None):
        super().__init__(rank, reason, details, trace)
        self.rank, self.reason, self.details, self.trace = rank, reason, details, trace

    def __str__(self):
        return self.reason + (f"\n\n{self.details.rstrip()}" if self.details else "")


class RankLost(RankFailed):
    """A rank of an elastic launch has died: what was begun with it cannot end, and `comm.regroup()` goes on without it.

    Whatever a rank does with a communicator from before raises this, until it has regrouped.
    """


class CollectiveMismatch(RuntimeError):
    """Ranks disagree on what they do together: another operation, shape, dtype, order, or one has returned.

    Over shared memory all ranks hear of it, and can go on when all have caught it: messages under way are given up, and
    whatever a rank begins next waits until all ranks begin something. Over torch.distributed nothing can follow:
    whatever a rank begins after it raises it again, which ends the launch.

    Attributes:
        calls: rank -> what it called, for the ranks that disagree.
        trace: the `Trace` of what the ranks recorded until then, or None.
    """

    def __init__(self, calls, trace=None):
        super().__init__(calls, trace)
        self.calls, self.trace = dict(calls), trace

    def __str__(self):
        return "the ranks disagree: " + "; ".join(f"rank {r}: {call}" for r, call in sorted(self.calls.items()))


class InvalidSchedule(ValueError):
    """A schedule that does not compute what it promises; names the `round`, `rank` and `chunk`."""

    def __init__(self, problem, round=None, rank=None, chunk=None):
        super().__init__(problem, round, rank, chunk)
        self.problem, self.round, self.rank, self.chunk = problem, round, rank, chunk

    def __str__(self):
        return _placed(self.problem, round=self.round, rank=self.rank, chunk=self.chunk)


class InvalidProgram(ValueError):
    """A program that does not compute what it promises; names the `rank`, the number of its `step`, and the `block`."""

    def __init__(self, problem, rank=None, step=None, block=None):
        super().__init__(problem, rank, step, block)
        self.problem, self.rank, self.step, self.block = problem, rank, step, block

    def __str__(self):
        block = None if self.block is None else " ".join(map(str, self.block))
        return _placed(self.problem, rank=self.rank, step=self.step, block=block)


def _placed(problem, **place):
    """A problem behind the names and values of its place, those that are known: "rank 3, step 3, block 3 0: …"."""
    known = [f"{name} {value}" for name, value in place.items() if value is not None]
    return f"{', '.join(known)}: {problem}" if known else problem


def check_whole(name, value, least):
    """Refuse a `value` of the argument `name` that is no whole number of at least `least`, in the words of the project.

    Raises:
        ValueError: `value` is smaller, of another type, or a bool.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: a whole number of at least {least} is needed")


def check_sizes(**sizes):
    """Refuse a size that is no whole number of at least 1: a `ValueError` that names it."""
    for name, size in sizes.items():
        check_whole(name, size, 1)
