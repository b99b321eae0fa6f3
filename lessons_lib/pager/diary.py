"""What each rank of a run on the pager writes down, in a file that outlives it (lesson 21)."""

from contextlib import contextmanager
from pathlib import Path

from .. import journal
from ..trace import now_s
from .score import Event


class Diary:
    """Events of one rank, by its number in the launch; a process that comes in its place goes on with them.

    Args:
        folder: that of the run.
        rank: the number.

    Attributes:
        clock: how many steps the rank, and those whose place it took, have begun.
    """

    def __init__(self, folder, rank):
        self.rank, self._path = rank, Path(folder) / f"diary-{rank}.jsonl"
        self.clock = max((event.clock for event in journal.notes(self._path, Event)), default=0)

    def note(self, what, step, start_s=None):
        """Write down that `what` has ended now."""
        end_s = now_s()
        start_s = end_s if start_s is None else start_s
        journal.note(self._path, Event(what, self.rank, self.clock, step, start_s, end_s))

    @contextmanager
    def during(self, what, step):
        """Write down `what` and how long it took, if it has not failed."""
        start_s = now_s()
        yield
        self.note(what, step, start_s)


def read_diaries(folder):
    """The `Event`s of all ranks, by their start."""
    events = [event for path in Path(folder).glob("diary-*.jsonl") for event in journal.notes(path, Event)]
    return tuple(sorted(events, key=lambda event: event.start_s))
