"""Start ranks from a cell or a script, and connect to the ranks that `torchrun` started (lesson 00)."""

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import types
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection

import cloudpickle
import torch
import torch.distributed as dist

from .collectives import (
    CollectiveMismatch,
    Communicator,
    InvalidSchedule,
    Links,
    RankFailed,
    Schedule,
    TorchTransport,
    Trace,
)
from .collectives.choose import check_algorithm
from .collectives.communicator import check_schedule
from .collectives.memory import HAS_MEMFD, Block
from .collectives.shared_memory import board_bytes
from .devices import usable_cores
from .rank import Setup, main

TRANSPORTS = ("shared_memory", "torch")
# How long a failure waits for what the other ranks have to say about it, and texts for those of ranks before them.
GRACE_S, ORDER_S = 0.3, 0.05


class Results(list):
    """What the ranks returned, in rank order.

    Attributes:
        ledgers: a `Ledger` for each rank: what it moved.
        trace: the `Trace` of all ranks, if `trace=True` was asked for, else None.
    """

    def __init__(self, results, ledgers, trace):
        super().__init__(results)
        self.ledgers, self.trace = ledgers, trace


def launch(
    fn,
    *args,
    world_size,
    transport="shared_memory",
    algorithm="auto",
    links=None,
    timeout_s=60.0,
    trace=False,
    **kwargs,
):
    """Run `fn(comm, *args, **kwargs)` in `world_size` fresh processes of this machine; a list of what they return.

    Args:
        fn: any function whose first argument is a `Communicator`, also one typed into a notebook cell.
        world_size: how many ranks.
        transport: "shared_memory", or "torch" for `torch.distributed` with gloo over the loopback interface.
        algorithm: of collectives: "auto", "star", "tree", "ring", "direct", "halving_doubling", "hierarchical", a
            `Schedule`, or with transport="torch" also "torch".
        links: `Links` to emulate, by delaying every message.
        timeout_s: how long a rank waits for another one before it gives up, in seconds.
        trace: record what every rank did and when.

    Returns:
        `Results`: a list, one result a rank, with `.ledgers` and `.trace`.

    Raises:
        RankFailed: a rank raised, exited, was killed, or was waited for longer than timeout_s.
        CollectiveMismatch: the ranks disagree on what they do together.
        TypeError, ValueError: bad arguments.

    No process, shared memory or file is left behind, however it ends.
    """
    _check(fn, world_size, transport, algorithm, links, timeout_s)
    work = _pickled(fn, args, kwargs)
    board = Block(board_bytes(world_size) if transport == "shared_memory" else 8)
    package = Block(len(work))
    package.view[: len(work)] = work
    with _meeting_place(board, transport) as meeting_place:
        threads = max(1, usable_cores() // world_size)
        setup = Setup(
            world_size,
            transport,
            algorithm,
            links,
            timeout_s,
            trace,
            threads,
            meeting_place,
            package.name,
            len(work),
        )
        ranks = Ranks(setup)
        try:
            return ranks.run()
        finally:
            ranks.kill()
            board.end()
            package.end()


def warm_up():
    """Start, in the background, the server that ranks are forked from, so that the first `launch` is fast as well."""
    if _start_method() == "forkserver":
        _context()
        multiprocessing.forkserver.ensure_running()


def connect(*, algorithm="auto", links=None, timeout_s=60.0, trace=False, device=None):
    """The `Communicator` of a process that `torchrun` started, or that has joined a process group already.

    Use it as `with connect() as comm:`, or call `comm.close()` last.

    Args:
        algorithm, links, timeout_s, trace: as for `launch`.
        device: of this rank; by default the accelerator with number LOCAL_RANK if there is one, else the CPU.

    Raises:
        RuntimeError: there is neither a process group nor torchrun's environment.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        device = f"{accelerator.type}:{local_rank % torch.accelerator.device_count()}" if accelerator else "cpu"
    own_group = not dist.is_initialized()
    if own_group:
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            raise RuntimeError(
                "connect() found no process group and no ranks to join. Start this file with "
                "`torchrun --nproc-per-node=4 FILE`, or call launch(fn, world_size=4) instead."
            )
        backend = "gloo"
        if torch.device(device).type != "cpu":
            backend = f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator.type)}"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    return Communicator(TorchTransport(timeout_s, links, own_group=own_group), algorithm, device, trace)


def _check(fn, world_size, transport, algorithm, links, timeout_s):
    if not callable(fn):
        raise TypeError(
            f"fn is a {type(fn).__name__}: a function of a communicator is needed, launch(fn, world_size=4)"
        )
    if not isinstance(world_size, int) or isinstance(world_size, bool) or not 1 <= world_size <= 128:
        raise ValueError(f"world_size={world_size!r}: a whole number from 1 to 128 is accepted")
    if transport not in TRANSPORTS:
        raise ValueError(f"transport={transport!r}: one of {', '.join(TRANSPORTS)} is accepted")
    if not isinstance(timeout_s, (int, float)) or not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s!r}: a number of seconds above 0 is needed")
    if links is not None and not isinstance(links, Links):
        raise TypeError(f"links is a {type(links).__name__}: a Links is needed, such as Links(latency_s=1e-3)")
    check_algorithm(algorithm)
    if algorithm == "torch" and transport != "torch":
        raise ValueError('algorithm="torch" needs transport="torch": torch.distributed is not started otherwise')
    if isinstance(algorithm, Schedule):
        if algorithm.collective != "all_reduce":
            raise InvalidSchedule(f"algorithm={algorithm.name} is a {algorithm.collective}: an all_reduce is needed")
        check_schedule(algorithm, world_size)


def _pickled(fn, args, kwargs):
    try:
        return cloudpickle.dumps((fn, args, kwargs))
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        name = getattr(fn, "__name__", type(fn).__name__)
        raise TypeError(f"{name} and its arguments cannot be sent to other processes: {error}") from error


@contextmanager
def _meeting_place(board, transport):
    """Where ranks find each other: memory, or a file that `FileStore` writes to (in memory, where the system can)."""
    if transport == "shared_memory" or HAS_MEMFD:
        yield board.name
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            yield os.path.join(folder, "store")


def _start_method():
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _context():
    context = multiprocessing.get_context(_start_method())
    if _start_method() == "forkserver":
        # An optimiser of torch imports torch._dynamo in its first step, which takes seconds: here it is loaded once.
        context.set_forkserver_preload(["lessons_lib.rank", "torch._dynamo"])
    return context


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

    def __init__(self, setup):
        self._world_size, self._timeout_s = setup.world_size, setup.timeout_s
        self._processes, self._pipes = [], {}
        self._reports, self._texts = {}, Texts()
        context = _context()
        with _main_module_hidden():
            for rank in range(setup.world_size):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=main, args=(rank, setup, sender), name=f"rank {rank}")
                process.start()
                sender.close()
                self._processes.append(process)
                self._pipes[receiver] = rank

    def run(self):
        """Wait for all results; raise what went wrong."""
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
        return Results(results, list(ledgers), Trace.merged(traces) if any(traces) else None)

    def kill(self):
        """End every rank, whatever it is doing."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
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
