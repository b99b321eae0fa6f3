"""A heartbeat of every rank, in files that anybody can read while the ranks train (lesson 21).

A rank beats when it has done a step, so a rank that lives but does nothing falls silent too. Nothing is sent: the
beats of a rank that has died can still be read, and nobody waits for them.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from .. import journal
from ..errors import check_whole
from ..parallel.wrapped import check_communicator

RECENT_S = 2.0  # throughput is that of so many seconds before the last beat
FILES = "beats-*.jsonl"


@dataclass(frozen=True)
class Beat:
    """What a rank said of itself.

    Attributes:
        rank: its number in the launch.
        time_s: when, in seconds since 1970.
        step, samples: how many steps and samples it had done.
        cpu: of how many cores it had the time since its beat before.
        memory_bytes: what it had in memory.
    """

    rank: int
    time_s: float
    step: int
    samples: int
    cpu: float
    memory_bytes: int


@dataclass(frozen=True)
class Pulse:
    """How a rank was lately: its last `beat`, how old that is, and samples per second (None after one beat)."""

    beat: Beat
    age_s: float
    samples_per_s: float | None


class Heart:
    """Writes the beats of this rank into a folder.

        heart = Heart("run/beats", comm)
        for step in range(num_steps):
            ...
            heart.beat(step + 1, samples=len(x))

    Args:
        folder: of this run alone, made if it is not there; of several machines, one that all see.
        comm: `Communicator`; the rank is called by its number in the launch.
        every_s: how far apart two beats are at least.

    Raises:
        TypeError, ValueError: an argument is not what is said above.

    Source: lesson 21.
    """

    def __init__(self, folder, comm, every_s=0.2):
        check_communicator(comm)
        if not isinstance(every_s, int | float) or not every_s >= 0:
            raise ValueError(f"every_s={every_s!r}: a number of seconds of at least 0 is needed")
        self.rank, self.every_s = comm.ranks[comm.rank], every_s
        self._path = Path(folder) / f"beats-{self.rank}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._process, self._samples, self._last_s = psutil.Process(), 0, 0.0
        self._process.cpu_percent()

    def beat(self, step, samples=0):
        """Say that `step` steps are done, the last with `samples` samples on this rank."""
        check_whole("step", step, 0)
        self._samples += samples
        now_s = time.time()
        if now_s - self._last_s < self.every_s:
            return
        self._last_s, cpu = now_s, self._process.cpu_percent() / 100
        memory_bytes = self._process.memory_info().rss
        journal.note(self._path, Beat(self.rank, now_s, int(step), self._samples, cpu, memory_bytes))


def beats(folder):
    """{rank: its `Beat`s, in order} of all that have beaten in `folder`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"folder={str(folder)!r}: there is no such folder")
    found = {}
    for path in Path(folder).glob(FILES):
        told = journal.notes(path, Beat)
        if told:
            found[told[0].rank] = told
    return dict(sorted(found.items()))


def pulses(folder, now_s=None):
    """The `Pulse` of each rank that has beaten in `folder`, by rank. `now_s`: seconds since 1970, by default now."""
    now_s = time.time() if now_s is None else now_s
    return [_pulse(told, now_s) for told in beats(folder).values()]


def _pulse(told, now_s):
    last = told[-1]
    recent = [beat for beat in told if last.time_s - beat.time_s <= RECENT_S] if len(told) > 2 else told
    first = (recent if len(recent) > 1 else told[-2:])[0]
    time_s = last.time_s - first.time_s
    # A process that came in the place of another one counts its samples from 0 again.
    rate = (last.samples - first.samples) / time_s if time_s > 0 and last.samples >= first.samples else None
    return Pulse(last, now_s - last.time_s, rate)


def report(folder, silent_after_s=5.0, now_s=None):
    """A line for each rank: its step, how old its last beat is, samples per second, cores, memory; a text.

    A rank is called silent if its last beat is older than `silent_after_s`, and slow if it has less than half of the
    median throughput.
    """
    told = pulses(folder, now_s)
    rates = [pulse.samples_per_s for pulse in told if pulse.samples_per_s is not None]
    usual = statistics.median(rates) if rates else 0.0
    lines = ["rank    step  last beat  samples/s  cores  memory"]
    for pulse in told:
        beat, rate = pulse.beat, pulse.samples_per_s
        is_slow = rate is not None and rate < usual / 2
        state = "  silent" if pulse.age_s > silent_after_s else "  slow" if is_slow else ""
        shown = "" if rate is None else f"{rate:,.0f}"
        memory = f"{beat.memory_bytes / 1e6:.0f} MB"
        lines.append(
            f"{beat.rank:4}  {beat.step:6}  {pulse.age_s:7.1f} s  {shown:>9}  {beat.cpu:5.2f}  {memory:>6}{state}"
        )
    return "\n".join(lines)
