"""What ranks and launchers have to do with other processes, and with names that these see: of files and sockets."""

import functools
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from contextlib import suppress
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import cloudpickle
import psutil
import pytest
import torch
from left_behind import nothing_is_left_behind, wait_until  # noqa: F401
from rerun import ROOT
from torch.utils.data import DataLoader, Dataset

from lessons_lib import RankFailed, launch
from lessons_lib.comm.block import Block
from lessons_lib.launch import processes, server

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ("shared_memory", "torch")
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither such signals nor groups of processes")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


def total(comm):
    x = torch.full((3,), comm.rank + 1.0)
    comm.all_reduce(x)
    return x.sum().item()


def run_script(text, environment=(), timeout=120):
    """What a script of its own process prints, as in a notebook: what it defines cannot be imported."""
    command = [sys.executable, "-c", textwrap.dedent(text)]
    environment = {**os.environ, **dict(environment)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- programs that ranks start ----------------------------------------------------------------------------------------


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_program(comm, pids, then):
    command = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    pids[comm.rank] = subprocess.Popen(command).pid
    comm.barrier()
    if then == "fail":
        raise ValueError("after the program")
    if then == "interrupt" and comm.rank == 0:
        os.kill(pids["launcher"], signal.SIGINT)
        threading.Event().wait()
    if then == "end late":
        threading.Thread(target=threading.Event().wait).start()  # holds the rank's process, which has returned


@posix
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("then", ["return", "end late", "fail", "interrupt"])
def test_a_program_outlives_the_rank_that_returned_and_no_other(then, transport, tmp_path):
    errors = {"fail": RankFailed, "interrupt": KeyboardInterrupt}
    with multiprocessing.Manager() as manager:
        pids = manager.dict(launcher=os.getpid())
        if then in errors:
            with pytest.raises(errors[then]):
                launch(start_program, pids, then, world_size=2, transport=transport)
        else:
            launch(start_program, pids, then, world_size=2, transport=transport)
        pids = [pids[rank] for rank in range(2)]
    try:
        if then in errors:
            assert wait_until(lambda: not any(alive(pid) for pid in pids))
        else:
            assert all(alive(pid) for pid in pids)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@posix
def test_a_worker_process_ends_with_its_rank():
    def fn(comm):
        worker = multiprocessing.get_context("fork").Process(target=threading.Event().wait)
        worker.start()
        return worker.pid

    pids = launch(fn, world_size=2)
    assert wait_until(lambda: not any(alive(pid) for pid in pids))


# --- launchers that are forks -----------------------------------------------------------------------------------------

FORKS = """
    import multiprocessing, os
    from lessons_lib import launch

    def fn(comm):
        return os.getpid(), comm.rank

    def say(name):
        for transport in ("shared_memory", "torch"):
            (a, first), (b, second) = launch(fn, world_size=2, transport=transport)
            print(name, first, second, len({a, b, os.getpid()}), flush=True)

    def forked(name, then=lambda: None):
        pid = os.fork()
        if pid == 0:
            try:
                say(name)
                then()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    say("before")
    forked("fork", then=lambda: forked("fork of a fork"))
    process = multiprocessing.get_context("fork").Process(target=say, args=("multiprocessing",))
    process.start()
    process.join()
    say("after")
    """


@posix
def test_a_fork_of_a_process_that_has_launched_can_launch():
    names = "before", "fork", "fork of a fork", "multiprocessing", "after"
    assert run_script(FORKS) == "".join(f"{name} 0 1 3\n" * 2 for name in names)


# --- workers that load data -------------------------------------------------------------------------------------------


class Squares(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor(index**2)


def load(comm, how, persistent):
    options = {"num_workers": 1, "multiprocessing_context": how, "persistent_workers": persistent}
    loader = DataLoader(Squares(), batch_size=4, collate_fn=lambda rows: torch.stack(rows) + comm_rank, **options)
    return [[batch.tolist() for batch in loader] for _ in range(2)]


comm_rank = 0  # what a collate function of a cell looks up among the cell's names


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("how", [how for how in multiprocessing.get_all_start_methods() if how != "spawn"] + [None])
def test_a_dataset_of_a_cell_reaches_the_workers_of_a_loader(how, persistent, transport):
    epoch = [[0, 1, 4, 9], [16, 25, 36, 49]]
    assert launch(load, how, persistent, world_size=2, transport=transport) == [[epoch] * 2] * 2


IN_A_CELL = """
    import torch
    from torch.utils.data import DataLoader, Dataset
    from lessons_lib import launch

    class Twice(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return twice(index)

    def twice(x):
        return 2 * x

    def fn(comm, how):
        loader = DataLoader(Twice(), num_workers=1, multiprocessing_context=how)
        return sum(batch.item() for batch in loader)

    for how in (None, "spawn"):
        print(launch(fn, how, world_size=2))
    """


def test_a_dataset_that_cannot_be_imported_reaches_workers_that_are_started_afresh():
    assert run_script(IN_A_CELL) == "[12, 12]\n[12, 12]\n"


# --- functions with a memory ------------------------------------------------------------------------------------------


@functools.cache
def fibonacci(n):
    """Calls itself through its cache."""
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@functools.lru_cache(maxsize=3, typed=True)
def last_few(x):
    return x


class Sizes:
    def __init__(self, side):
        self.side, self.computed = side, 0

    @functools.cached_property
    def area(self):
        self.computed += 1
        return self.side**2

    @functools.cache  # noqa: B019 - as learners do
    def scaled(self, by):
        return self.side * by

    @staticmethod
    @functools.cache
    def twice(x):
        return 2 * x

    @classmethod
    @functools.lru_cache
    def unit(cls):
        return cls(1).side


@functools.singledispatch
def kind(x):
    return "object"


@kind.register
def _(x: int):
    return "int"


@functools.cache
def rank_of(comm):
    return comm.rank


def area_twice(sizes):
    return sizes.area, sizes.area, sizes.computed


SQUARE = Sizes(3)


@pytest.mark.parametrize(
    "fn",
    [
        lambda comm: (fibonacci(60), fibonacci.cache_info().misses, fibonacci.__doc__),
        lambda comm: (last_few(1), last_few(1.0), last_few.cache_parameters()),
        lambda comm: area_twice(Sizes(3)),
        lambda comm: area_twice(SQUARE),
        lambda comm: (SQUARE.scaled(2), Sizes.twice(4), Sizes.unit()),
        lambda comm: (kind(1), kind("a"), kind(True)),
    ],
)
def test_functions_with_a_memory_do_on_a_rank_what_they_do_here(fn):
    for cached in (fibonacci, last_few):
        cached.cache_clear()
    results = launch(fn, world_size=2)
    SQUARE.__dict__.update(computed=0)
    SQUARE.__dict__.pop("area", None)
    assert results == [fn(None)] * 2


def test_a_cached_function_may_be_what_is_launched_and_what_comes_back():
    assert launch(rank_of, world_size=2) == [0, 1]
    assert [back(30) for back in launch(lambda comm: fibonacci, world_size=2)] == [832040, 832040]
    assert launch(lambda comm: functools.cache, world_size=1) == [functools.cache]


# --- names ------------------------------------------------------------------------------------------------------------

WITHOUT = """
    import os
    from lessons_lib import launch
    import torch

    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    if {refused}:
        os.memfd_create = refuse

    def fn(comm):
        if {refused}:
            os.memfd_create = refuse
        x = torch.full((3,), comm.rank + 1.0)
        comm.all_reduce(x)
        y = comm.buffer(4)
        y.fill_(1)
        comm.all_reduce(y)
        return x[0].item(), y[0].item()

    for transport in ("shared_memory", "torch"):
        print(launch(fn, world_size=2, transport=transport), launch(fn, world_size=2, transport=transport))
    """


@posix
@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("length", [20, 120])
def test_no_name_depends_on_a_short_temporary_folder(length, refused, tmp_path):
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    shared_before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    out = run_script(WITHOUT.format(refused=refused), {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": "/nowhere"})
    assert out == f"{[(3.0, 2.0)] * 2} {[(3.0, 2.0)] * 2}\n" * 2
    assert [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor")] == []
    if os.path.isdir("/dev/shm"):
        assert {name for name in os.listdir("/dev/shm") if name.startswith("psm_")} <= shared_before


# --- what may stay ----------------------------------------------------------------------------------------------------


def footprint():
    """Names in the folders of shared memory and of temporary files, and how many files this process has open."""
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    mine = {name for name in shared if name.startswith(f"sem.{server.semaphore_prefix().rpartition('-')[0][1:]}-")}
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return mine, {path.name for path in Path(tempfile.gettempdir()).iterdir()}, files


class Injected(Exception):
    pass


def raising(function, at_call):
    """`function`, but its call number `at_call` raises, before or after it has done its work."""
    count, (number, when) = [0], at_call

    @functools.wraps(function)
    def faulty(*args, **kwargs):
        count[0] += 1
        if count[0] == number and when == "before":
            raise Injected
        result = function(*args, **kwargs)
        if count[0] == number:
            raise Injected
        return result

    return faulty


STEPS = [
    (Block, "__init__", 1, "before"),
    (Block, "__init__", 2, "before"),
    *((mmap, "mmap", number, "before") for number in (1, 2)),
    *(
        (owner, name, number, when)
        for owner, name, number in [
            (processes.Ranks, "__init__", 1),
            (processes.Ranks, "start", 1),
            (processes.Ranks, "results", 1),
            (processes.Ranks, "_listen", 1),
            (BaseProcess, "start", 1),
            (BaseProcess, "start", 2),
            (BaseContext, "Pipe", 2),
        ]
        for when in ("before", "after")
    ),
]


@posix
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("owner", "step", "number", "when"), STEPS)
def test_a_launch_that_fails_at_any_step_leaves_nothing(monkeypatch, owner, step, number, when, transport):
    launch(total, world_size=1, transport=transport)  # starts the server, which stays
    before = footprint()
    with monkeypatch.context() as patch, pytest.raises(Injected):
        patch.setattr(owner, step, raising(getattr(owner, step), (number, when)))
        launch(total, world_size=2, transport=transport)
    assert footprint() == before
    assert launch(total, world_size=2, transport=transport) == [9.0, 9.0]


@linux
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("how", ["raise", "kill", "exit"])
def test_semaphores_of_ranks_that_failed_are_taken_away(how, transport, capfd):
    def fn(comm):
        made = multiprocessing.get_context("spawn")
        kept = made.Lock(), made.Event(), made.Queue(maxsize=3)
        comm.barrier()
        if how == "raise":
            raise ValueError(len(kept))
        if comm.rank == 1:
            os._exit(5) if how == "exit" else os.kill(os.getpid(), signal.SIGKILL)
        comm.barrier()

    before = footprint()
    with pytest.raises(RankFailed):
        launch(fn, world_size=2, transport=transport)
    assert footprint()[:2] == before[:2]
