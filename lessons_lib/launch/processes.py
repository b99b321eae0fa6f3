"""The processes of a launch: starting them, listening to them, saying what went wrong, ending them."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker

import psutil

from ..devices import cgroup_limits, gigabytes, out_of_memory_kills
from ..errors import CollectiveMismatch, RankFailed
from ..trace import Trace
from .prints import Texts
from .rank import main
from .travel import unpacked

# How long a failure waits for what the other ranks have to say about it, and texts for those of ranks before them.
GRACE_S, ORDER_S = 0.3, 0.05
END_S = 1.5  # how long a busy system may take to end a process whose pipe it has closed


def start_method():
    """How rank processes are made: forked from a server that has torch loaded, or spawned where there is none."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def context():
    """The multiprocessing context of `start_method`; the server of ranks is on its way."""
    made = multiprocessing.get_context(start_method())
    if start_method() == "forkserver":
        # An optimiser of torch imports torch._dynamo in its first step, which takes seconds: here it is loaded once.
        made.set_forkserver_preload(["lessons_lib.launch.rank", "torch._dynamo"])
        # An interrupt meant for the launcher reaches its whole process group, and would end a server that is loading.
        resource_tracker.ensure_running()  # which ends by letting interrupts in again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return made


@contextmanager
def interrupts_put_off():
    """Hold back interrupts (Ctrl-C, a kernel's stop button), so that none comes between starting and ending ranks.

    Yields a function that lets those that came so far take effect.
    """
    before, noted = signal.getsignal(signal.SIGINT), []

    def let_through():
        while noted:
            before(*noted.pop())

    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield let_through
        return
    signal.signal(signal.SIGINT, lambda *args: noted.append(args))
    try:
        yield let_through
    finally:
        signal.signal(signal.SIGINT, before)
    let_through()


_main_module_lock = threading.Lock()


@contextmanager
def _main_module_hidden():
    """Keep ranks from running the caller's script again: what they need of it travels by value."""
    with _main_module_lock:
        real = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = real


class Ranks:
    """The processes of one launch.

    Args:
        world_size: how many.
        timeout_s: how long a process may be stopped from outside before it counts as failed.
    """

    def __init__(self, world_size, timeout_s):
        self._world_size, self._timeout_s = world_size, timeout_s
        self._processes, self._pipes = [], {}
        self._reports, self._texts = {}, Texts()
        self._looked_s, self._stopped_s = time.monotonic(), {}
        self._kills_before = out_of_memory_kills()

    def start(self, setup):
        """Start all ranks; `setup` is what each is told."""
        made = context()
        with _main_module_hidden():
            for rank in range(self._world_size):
                receiver, sender = made.Pipe(duplex=False)
                self._pipes[receiver] = rank
                process = made.Process(target=main, args=(rank, setup, sender), name=f"rank {rank}")
                self._processes.append(process)
                process.start()
                sender.close()

    def results(self, let_interrupts_through):
        """Wait for all ranks: (results, ledgers, the trace of all or None). Raises what went wrong."""
        failed_s = None
        while len(self._reports) < self._world_size:
            if failed_s is None and any(kind != "result" for kind, _ in self._reports.values()):
                failed_s = time.monotonic()
            if failed_s is not None and time.monotonic() - failed_s > GRACE_S:
                break
            let_interrupts_through()
            self._listen()
            self._look_for_stopped()
        self._texts.show()
        if len(self._reports) < self._world_size or any(kind != "result" for kind, _ in self._reports.values()):
            self._raise()
        results, ledgers, traces = zip(*(self._reports[rank][1] for rank in range(self._world_size)), strict=True)
        for process in self._processes:
            process.join(GRACE_S)
        return results, list(ledgers), Trace.merged(traces) if any(traces) else None

    def kill(self):
        """End every rank, whatever it is doing, and the processes that it has started."""
        started = [process for process in self._processes if process.pid is not None]
        for process in started:
            if process.exitcode != 0 and hasattr(os, "killpg"):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        for process in started:
            process.join()
        for pipe in self._pipes:
            pipe.close()

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
            self._reports[rank] = (kind, data if kind == "ended" else _unpickled(rank, data))

    def _look_for_stopped(self):
        """A process that was stopped from outside says nothing, and nobody may be waiting for it."""
        if time.monotonic() - self._looked_s < 0.5:
            return
        self._looked_s = time.monotonic()
        for rank, process in enumerate(self._processes):
            with suppress(psutil.Error):
                if rank in self._reports or psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                    self._stopped_s.pop(rank, None)
                elif self._looked_s - self._stopped_s.setdefault(rank, self._looked_s) > self._timeout_s:
                    reason = f"rank {rank} did not answer within timeout_s={self._timeout_s:g} s: it is stopped"
                    raise RankFailed(rank, reason)

    def _raise(self):
        """Raise the cause: a process that ended, an error of the function, a disagreement, or a wait in vain."""
        trace = Trace.merged([data[-1] for kind, data in self._reports.values() if kind != "ended" and data[-1]])
        for rank, (kind, _) in sorted(self._reports.items()):
            if kind == "ended":
                self._processes[rank].join(END_S)
                how = _how_it_ended(self._processes[rank].exitcode, self._kills_before)
                raise RankFailed(rank, f"rank {rank} {how}", trace=trace)
        errors = {rank: data for rank, (kind, data) in sorted(self._reports.items()) if kind == "error"}
        for rank, (error, details, _) in errors.items():
            if isinstance(error, str):
                raise RankFailed(rank, f"rank {rank} {error}", details, trace)
        mismatches = [error for error, *_ in errors.values() if isinstance(error, CollectiveMismatch)]
        if mismatches:
            raise CollectiveMismatch({rank: call for error in mismatches for rank, call in error.calls.items()}, trace)
        waited_for = {rank: error.rank for rank, (error, *_) in errors.items()}
        last, path = next(iter(waited_for)), []
        while waited_for.get(last) in waited_for and last not in path:  # who waits for one that waits is not the cause
            path.append(last)
            last = waited_for[last]
        error, details, _ = errors[last]
        others = "".join(f"; {other.reason}" for rank, (other, *_) in errors.items() if rank != last)
        raise RankFailed(error.rank, error.reason + others, details, trace)


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
