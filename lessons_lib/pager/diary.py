"""What each rank of a run on the pager writes down, in a file that outlives it (lesson 21)."""

import json
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

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
        self.clock = max((event.clock for event in _events(self._path)), default=0)

    def note(self, what, step, start_s=None):
        """Write down that `what` has ended now."""
        end_s = now_s()
        event = Event(what, self.rank, self.clock, step, end_s if start_s is None else start_s, end_s)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")

    @contextmanager
    def during(self, what, step):
        """Write down `what` and how long it took, if it has not failed."""
        start_s = now_s()
        yield
        self.note(what, step, start_s)


def read_diaries(folder):
    """The `Event`s of all ranks, by their start."""
    events = [event for path in Path(folder).glob("diary-*.jsonl") for event in _events(path)]
    return tuple(sorted(events, key=lambda event: event.start_s))


def _events(path):
    """Those of one rank; a line that its writer died in is no event."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [Event(**json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]
