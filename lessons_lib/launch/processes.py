"""The processes of a launch: starting them, listening to them, ending them."""

import os
import signal
import time
from contextlib import suppress
from multiprocessing import connection

import psutil

from ..devices import cgroup_limits, gigabytes, out_of_memory_kills
from ..errors import RankFailed
from ..trace import Trace
from .cause import Report, cause
from .prints import Texts
from .rank import main
from .server import context, main_module_hidden, unlink_semaphores
from .travel import unpacked

# After a failure, wait GRACE_S for the other ranks' reports; hold prints for ORDER_S to sort them by rank.
GRACE_S, ORDER_S = 0.3, 0.05
END_S = 1.5  # how long a busy system may take to end a process whose pipe it has closed
LOOK_S = 0.5  # how often to look for stopped processes, which say nothing: rare enough to cost nothing


class Ranks:
    """The processes of one launch.

    Args:
        world_size: how many.
        timeout_s: how long a process may be stopped from outside before it counts as failed.
    """

    def __init__(self, world_size, timeout_s):
        self._world_size, self._timeout_s = world_size, timeout_s
        self._processes, self._pipes = {}, {}  # by rank; the rank of each pipe
        self._reports, self._texts = {}, Texts()
        self._looked_s, self._stopped_s = time.monotonic(), {}
        self._kills_before = out_of_memory_kills()
        self._have_returned, self._semaphore_prefix = False, None
        self.failures = []  # those that others survive: here none

    def start(self, setup):
        """Start all ranks; `setup` is what each is told."""
        self._semaphore_prefix = setup.semaphore_prefix
        for rank in range(self._world_size):
            self._start(rank, setup)

    def _start(self, rank, setup):
        made = context()
        receiver, sender = made.Pipe(duplex=False)
        self._pipes[receiver] = rank
        self._processes[rank] = made.Process(target=main, args=(rank, setup, sender), name=f"rank {rank}")
        with main_module_hidden():
            self._processes[rank].start()
        sender.close()

    def results(self, let_interrupts_through):
        """Wait for all ranks: (results, ledgers, the trace of all or None). Raises what went wrong."""
        failed_s = None
        while len(self._reports) < self._world_size:
            if failed_s is None and self._has_failed():
                failed_s = time.monotonic()
            if failed_s is not None and time.monotonic() - failed_s > GRACE_S:
                break
            let_interrupts_through()
            self._listen()
            self._look_for_stopped()
        self._texts.show()
        if self._has_failed():
            self._say_how_processes_ended()
            self._say_which_are_stopped()
            raise cause(self._reports)
        return self._ended()

    def _ended(self):
        """(results, ledgers, the trace of all or None), when no rank has anything more to say."""
        self._texts.show()
        self._have_returned = True
        reports = [self._reports[rank] for rank in range(self._world_size)]
        for process in self._processes.values():
            process.join(GRACE_S)
        traces = [report.trace for report in reports]
        results, ledgers = [report.result for report in reports], [report.ledger for report in reports]
        return results, ledgers, Trace.merged(traces) if any(traces) else None

    def kill(self):
        """End every rank, whatever it is doing; unless all have returned, also the programs that they have started."""
        for rank in self._processes:
            self._end(rank)
        for pipe in self._pipes:
            pipe.close()
        if self._semaphore_prefix is not None:
            unlink_semaphores(self._semaphore_prefix)

    def _end(self, rank):
        """End the process of `rank`, and the programs that it has started if not all have returned."""
        process = self._processes[rank]
        if process.pid is None:
            return
        if not self._have_returned and hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()

    def _listen(self):
        """Take in what ranks send. A rank has ended when its process has: others may have inherited its pipe."""
        silent = {pipe: rank for pipe, rank in self._pipes.items() if rank not in self._reports}
        ends = {self._processes[rank].sentinel: pipe for pipe, rank in silent.items()}
        ready = connection.wait([*silent, *ends], timeout=ORDER_S)
        for pipe in dict.fromkeys(ends.get(each, each) for each in ready):
            self._take(silent[pipe], pipe)
        self._texts.show(older_than_s=ORDER_S)

    def _take(self, rank, pipe):
        try:
            kind, data = pipe.recv() if pipe.poll() else ("ended", None)
        except (EOFError, OSError):
            kind, data = "ended", None
        if kind == "text":
            self._texts.add(rank, data)
        else:
            self._reports[rank] = Report("ended") if kind == "ended" else _unpickled(rank, data)

    def _has_failed(self):
        return any(report.kind != "result" for report in self._reports.values())

    def _say_how_processes_ended(self):
        """Last, and not as soon as a pipe closes: its process may take END_S more until its exit code is known."""
        for rank, report in self._reports.items():
            if report.kind == "ended":
                self._processes[rank].join(END_S)
                report.error = _how_it_ended(self._processes[rank].exitcode, self._kills_before)

    def _look_for_stopped(self):
        """A process that was stopped from outside says nothing, and nobody may be waiting for it."""
        if time.monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = time.monotonic()
        stopped = self._stopped()
        self._stopped_s = {rank: self._stopped_s.get(rank, self._looked_s) for rank in stopped}
        for rank, since_s in self._stopped_s.items():
            if self._looked_s - since_s > self._timeout_s:
                raise self._is_stopped(rank)

    def _say_which_are_stopped(self):
        """Who waited for a stopped rank in vain may not be able to tell which it was."""
        for rank in self._stopped():
            self._reports[rank] = Report("error", error=self._is_stopped(rank))

    def _stopped(self):
        """The ranks that have not reported and whose process is stopped."""
        stopped = []
        for rank, process in self._processes.items():
            with suppress(psutil.Error):
                if rank not in self._reports and psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
                    stopped.append(rank)
        return stopped

    def _is_stopped(self, rank):
        return RankFailed(rank, f"rank {rank} did not answer within timeout_s={self._timeout_s:g} s: it is stopped")


def _unpickled(rank, data):
    try:
        return unpacked(*data)
    except (Exception, SystemExit) as error:
        raise RankFailed(
            rank, f"what rank {rank} returned cannot be read here: {type(error).__name__}: {error}"
        ) from error


def _how_it_ended(exitcode, kills_before):
    """In words. `kills_before`: how often memory had run out when the ranks started, None where nobody counts."""
    if exitcode is None:
        return "closed its pipe to the launcher before its function returned"
    if exitcode < 0:
        name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else f"signal {-exitcode}"
        hint, limit = "", cgroup_limits()[1]
        if name == "SIGKILL" and kills_before is None:
            hint = " (the system may have run out of memory)"
        elif name == "SIGKILL" and out_of_memory_kills() > kills_before:
            hint = f" because memory ran out{f': this container may use {gigabytes(limit)}' if limit else ''}"
        return f"was killed by {name}{hint}"
    return f"ended with exit code {exitcode} before its function returned"
