"""The processes of a launch: starting them, listening to them, saying what went wrong, ending them."""

import multiprocessing
import pickle
import signal
import sys
import threading
import time
import types
from contextlib import contextmanager
from multiprocessing import connection

from .collectives import CollectiveMismatch, RankFailed, Trace
from .rank import main

# How long a failure waits for what the other ranks have to say about it, and texts for those of ranks before them.
GRACE_S, ORDER_S = 0.3, 0.05


def start_method():
    """How rank processes are made: forked from a server that has torch loaded, or spawned where there is none."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def context():
    """The multiprocessing context of `start_method`, with what the server is to load."""
    made = multiprocessing.get_context(start_method())
    if start_method() == "forkserver":
        # An optimiser of torch imports torch._dynamo in its first step, which takes seconds: here it is loaded once.
        made.set_forkserver_preload(["lessons_lib.rank", "torch._dynamo"])
    return made


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
    """The processes of one launch."""

    def __init__(self, world_size):
        self._world_size = world_size
        self._processes, self._pipes = [], {}
        self._reports, self._texts = {}, Texts()

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

    def results(self):
        """Wait for all ranks: (results, ledgers, the trace of all or None). Raises what went wrong."""
        failed_s = None
        while len(self._reports) < self._world_size:
            if failed_s is None and any(kind != "result" for kind, _ in self._reports.values()):
                failed_s = time.monotonic()
            if failed_s is not None and time.monotonic() - failed_s > GRACE_S:
                break
            self._listen()
        self._texts.show()
        if len(self._reports) < self._world_size or any(kind != "result" for kind, _ in self._reports.values()):
            self._raise()
        results, ledgers, traces = zip(*(self._reports[rank][1] for rank in range(self._world_size)), strict=True)
        for process in self._processes:
            process.join(GRACE_S)
        return results, list(ledgers), Trace.merged(traces) if any(traces) else None

    def kill(self):
        """End every rank, whatever it is doing."""
        started = [process for process in self._processes if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def _listen(self):
        open_pipes = [pipe for pipe, rank in self._pipes.items() if rank not in self._reports]
        for pipe in connection.wait(open_pipes, timeout=ORDER_S):
            rank = self._pipes[pipe]
            try:
                kind, data = pipe.recv()
            except (EOFError, OSError):
                self._reports[rank] = ("ended", None)
                continue
            if kind == "text":
                self._texts.add(rank, data)
            else:
                self._reports[rank] = (kind, _unpickled(rank, data))
        self._texts.show(older_than_s=ORDER_S)

    def _raise(self):
        """Raise the cause: a process that ended, an error of the function, a disagreement, or a wait in vain."""
        trace = Trace.merged([data[-1] for kind, data in self._reports.values() if kind != "ended" and data[-1]])
        for rank, (kind, _) in sorted(self._reports.items()):
            if kind == "ended":
                self._processes[rank].join(GRACE_S)
                raise RankFailed(rank, f"rank {rank} {_how_it_ended(self._processes[rank].exitcode)}", trace=trace)
        errors = [(rank, *data) for rank, (kind, data) in sorted(self._reports.items()) if kind == "error"]
        for rank, error, details, _ in errors:
            if isinstance(error, str):
                raise RankFailed(rank, f"rank {rank} {error}", details, trace)
        mismatches = [error for _, error, _, _ in errors if isinstance(error, CollectiveMismatch)]
        if mismatches:
            raise CollectiveMismatch({rank: call for error in mismatches for rank, call in error.calls.items()}, trace)
        _, error, details, _ = errors[0]
        raise RankFailed(error.rank, error.reason, details, trace)


def _unpickled(rank, data):
    try:
        return pickle.loads(data)
    except Exception as error:
        raise RankFailed(
            rank, f"what rank {rank} returned cannot be read here: {type(error).__name__}: {error}"
        ) from error


def _how_it_ended(exitcode):
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (the system may have run out of memory)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"
    return f"ended with exit code {exitcode} before its function returned"


class Texts:
    """What ranks print: shown live, whole lines, each with its rank; lines of the same moment in rank order."""

    def __init__(self):
        self._held, self._since_s, self._unfinished = [], 0.0, {}

    def add(self, rank, texts):
        if not self._held:
            self._since_s = time.monotonic()
        self._held += [(rank, stream, text) for stream, text in texts]

    def show(self, older_than_s=None):
        """Show what is held, if it has been held for `older_than_s`; without that, all of it, and end its lines."""
        if older_than_s is not None and (not self._held or time.monotonic() - self._since_s < older_than_s):
            return
        for rank, stream, text in sorted(self._held, key=lambda held: held[0]):
            text = self._unfinished.pop((rank, stream), "") + text
            *lines, rest = text.split("\n")
            self._write(stream, "".join(f"{_labelled(rank, line)}\n" for line in lines))
            if "\r" in rest:
                self._write(stream, _labelled(rank, rest))
            elif rest:
                self._unfinished[rank, stream] = rest
        self._held = []
        if older_than_s is None:
            for (rank, stream), rest in sorted(self._unfinished.items()):
                self._write(stream, f"{_labelled(rank, rest)}\n")
            self._unfinished = {}

    @staticmethod
    def _write(stream, text):
        if text:
            getattr(sys, stream).write(text)
            getattr(sys, stream).flush()


def _labelled(rank, line):
    """`line` with its rank before it; of a line that was written over (a progress bar), what is seen of it."""
    if "\r" not in line:
        return f"[rank {rank}] {line}"
    seen = line.rpartition("\r")[2]
    return f"\r[rank {rank}] {seen}" if seen.strip() else "\r" + " " * 100 + "\r"
