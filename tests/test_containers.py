"""Small machines and containers: little or no /dev/shm, one core, a limit on memory; and several launchers at once."""

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time

import cloudpickle
import psutil
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401
from rerun import ROOT
from test_devices import V1, V2, write

from lessons_lib import RankFailed, devices, launch
from lessons_lib.comm import check
from lessons_lib.launch import processes
from lessons_lib.losses import cross_entropy
from lessons_lib.models import mlp
from lessons_lib.optim import Adam
from lessons_lib.parallel import DataParallel

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ("shared_memory", "torch")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


def run_script(text, *before, timeout=120):
    """What a script of its own process prints; `before` is a command that starts it."""
    command = [*before, sys.executable, "-c", textwrap.dedent(text)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- shared memory ----------------------------------------------------------------------------------------------------

USE_EVERYTHING = """
    import os, torch
    from lessons_lib import launch
    from lessons_lib.parallel import DataParallel

    def fn(comm):
        x = torch.full((9_000_000,), comm.rank + 1.0)
        comm.all_reduce(x)
        buffer = comm.buffer(9_000_000)
        buffer.fill_(comm.rank + 1)
        comm.all_reduce(buffer)
        if comm.rank:
            comm.send(x, 0)
        else:
            comm.recv(x, 1)
        model = DataParallel(torch.nn.Linear(3, 3), comm)
        model(torch.ones(2, 3)).sum().backward()
        return x[0].item(), buffer[-1].item()

    print(os.path.isdir("/dev/shm") and os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize)
    print(launch(fn, world_size=2) + launch(fn, world_size=2, transport="torch"))
    """
FOLDERS = {
    "64 MB": "mount -t tmpfs -o size=64m none /dev/shm",
    "absent": """
        mount -t tmpfs none /mnt
        for name in null zero random urandom; do touch /mnt/$name; mount --bind /dev/$name /mnt/$name; done
        mount --rbind /mnt /dev
        """,
}


@linux
@pytest.mark.parametrize(("folder", "size"), [("64 MB", 64 << 20), ("absent", False)])
def test_nothing_needs_dev_shm(folder, size):
    """36 MB twice on each of two ranks, in a mount namespace of its own, where the system lets users make one."""
    unshare = [shutil.which("unshare") or "unshare", "--mount", "--map-root-user", "sh", "-ec"]
    steps = FOLDERS[folder]
    if subprocess.run([*unshare, steps], capture_output=True).returncode:
        pytest.skip("no mount namespaces for this user")
    assert run_script(USE_EVERYTHING, *unshare, f'{steps}\nexec "$@"', "sh") == f"{size}\n{[(3.0, 3.0)] * 4}\n"


# --- one core ---------------------------------------------------------------------------------------------------------

ON_ONE_CORE = """
    import os, time, torch
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from lessons_lib import launch
    from lessons_lib.devices import usable_cores

    def fn(comm):
        x = torch.ones(1000)
        comm.barrier()
        start_s = time.perf_counter()
        for _ in range(100):
            comm.all_reduce(x, op="mean")
        for _ in range(20):
            if comm.rank % 2:
                comm.send(x, comm.rank - 1)
            else:
                comm.recv(x, comm.rank + 1)
        assert x.unique().tolist() == [1.0]
        return time.perf_counter() - start_s, len(os.sched_getaffinity(0)), torch.get_num_threads()

    assert usable_cores() == 1
    for transport in ("shared_memory", "torch"):
        for algorithm in ("ring", "direct"):
            for took_s, cores, threads in launch(fn, world_size=4, transport=transport, algorithm=algorithm):
                assert (cores, threads) == (1, 1)
                print(took_s)
    """


@linux
def test_four_ranks_on_one_core_do_not_stall():
    """A rank that spins while it waits keeps the core for a slice of time: milliseconds for each of 700 messages."""
    took_s = [float(line) for line in run_script(ON_ONE_CORE).split()]
    assert len(took_s) == 16 and max(took_s) < 5


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "left"),
    [
        (V2, 10**15),
        ({**V2, "sys/fs/cgroup/a/memory.max": "max\n", "sys/fs/cgroup/a/memory.current": "5\n"}, 10**15),
        ({**V2, "sys/fs/cgroup/a/memory.max": "900\n", "sys/fs/cgroup/a/memory.current": "300\n"}, 600),
        ({**V2, "sys/fs/cgroup/a/memory.max": "900\n", "sys/fs/cgroup/a/memory.current": "950\n"}, 0),
        (
            {
                **V2,
                "sys/fs/cgroup/a/memory.max": "900\n",
                "sys/fs/cgroup/a/memory.current": "300\n",
                "sys/fs/cgroup/a/memory.stat": "anon 100\ninactive_file 50\nactive_file 7\n",
            },
            650,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "900\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "300\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
            },
            650,
        ),
    ],
)
def test_memory_that_is_left(tmp_path, monkeypatch, files, left):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**15}))
    assert devices.memory_left(write(tmp_path, files)) == left


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        (V2, None),
        ({**V2, "sys/fs/cgroup/a/b/memory.events": "oom 4\noom_kill 3\noom_group_kill 0\n"}, 3),
        ({**V1, "sys/fs/cgroup/memory/docker/x/memory.oom_control": "under_oom 0\noom_kill 2\n"}, 2),
    ],
)
def test_kills_for_memory_are_counted(tmp_path, files, kills):
    assert devices.out_of_memory_kills(write(tmp_path, files)) == kills


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_buffer_beyond_all_memory_is_refused_before_it_is_touched(transport):
    says = r"a buffer of 2 ranks × 40000 GB = 80000 GB does not fit into memory: \d.* are free"
    with pytest.raises(RankFailed, match=says):
        launch(lambda comm: comm.buffer(10**13), world_size=2, transport=transport)


def in_a_small_container(monkeypatch):
    monkeypatch.setattr(check, "cgroup_limits", lambda: (None, 2_000_000_000))
    monkeypatch.setattr(check, "memory_left", lambda: 30_000_000)


def test_the_container_is_named_where_it_sets_the_limit(monkeypatch):
    in_a_small_container(monkeypatch)
    says = (
        "a buffer of 4 ranks × 8 MB = 32 MB does not fit into memory: 30 MB of the 2.0 GB that this container may use"
    )
    with pytest.raises(MemoryError, match=says):
        check.check_buffer(2_000_000, torch.float32, 4)
    check.check_buffer(1_800_000, torch.float32, 4)


def test_arguments_that_do_not_fit_once_a_rank_are_refused(monkeypatch):
    in_a_small_container(monkeypatch)
    array = torch.zeros(2_000_000)
    with pytest.raises(MemoryError, match=r"fn with its arguments of 4 ranks × 8 MB = 32 MB does not fit"):
        launch(lambda comm: array.sum(), world_size=4)
    assert launch(lambda comm: array.sum().item(), world_size=2) == [0.0, 0.0]


def test_memory_for_a_tensor_outside_of_buffers_is_counted_too():
    def fn(comm):
        in_a_small_container(patch)
        comm.all_reduce(torch.zeros(2_000_000), op="max")
        comm.all_reduce(torch.zeros(5_000_000))

    patch = pytest.MonkeyPatch()
    with pytest.raises(RankFailed, match=r"working memory of 2 ranks × 20 MB = 40 MB does not fit"):
        launch(fn, world_size=2)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (3, 4, "rank 1 was killed by SIGKILL because memory ran out: this container may use 2.0 GB"),
        (3, 3, "rank 1 was killed by SIGKILL"),
        (None, None, "rank 1 was killed by SIGKILL (the system may have run out of memory)"),
    ],
)
def test_a_rank_killed_for_its_memory_is_told_from_others(monkeypatch, before, after, says):
    counts = iter([before, after])
    monkeypatch.setattr(processes, "out_of_memory_kills", lambda: next(counts))
    monkeypatch.setattr(processes, "cgroup_limits", lambda: (None, 2_000_000_000))
    with pytest.raises(RankFailed) as caught:
        launch(lambda comm: os.kill(os.getpid(), 9) if comm.rank == 1 else comm.barrier(), world_size=2)
    assert caught.value.reason == says


def memory_of_a_step(comm):
    model = DataParallel(mlp([64, 128, 10]), comm)
    optimizer = Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(torch.randn(32, 64)), torch.randint(0, 10, (32,))).backward()
        optimizer.step()
    comm.barrier()
    return psutil.Process().memory_full_info().pss


@linux
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_four_ranks_train_within_half_of_a_container_of_2_gb(transport):
    """What a process has to itself and its share of what it has in common with others, added up over the ranks."""
    assert sum(launch(memory_of_a_step, world_size=4, transport=transport)) < 1e9


# --- large and odd ----------------------------------------------------------------------------------------------------


def all_bytes_of_a_kind(comm, numel):
    return torch.full((numel,), comm.rank, dtype=torch.uint8)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_200_mb_from_each_rank_arrive_in_seconds(transport):
    start_s = time.monotonic()
    results = launch(all_bytes_of_a_kind, 200_000_000, world_size=2, transport=transport)
    assert [(x.numel(), x.min().item(), x.max().item()) for x in results] == [(200_000_000, r, r) for r in range(2)]
    assert time.monotonic() - start_s < 20


def test_a_function_may_close_over_100_mb():
    array = torch.arange(12_500_000)
    assert launch(lambda comm: array[-1 - comm.rank].item(), world_size=2) == [12_499_999, 12_499_998]


class OfAnotherDevice:
    """Fails to be copied as a tensor does whose device cannot share its memory."""

    def __reduce__(self):
        raise RuntimeError("cannot pickle a tensor of this device")


def test_a_tensor_that_cannot_leave_its_device_is_named_before_ranks_start():
    tensor = OfAnotherDevice()
    with pytest.raises(
        TypeError, match=r"train and its arguments cannot be sent .*cannot pickle a tensor of this device"
    ):

        def train(comm):
            return tensor

        launch(train, world_size=2)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator here")
def test_a_function_may_close_over_a_tensor_on_an_accelerator():
    tensor = torch.arange(3.0, device=torch.accelerator.current_accelerator())
    assert (
        launch(lambda comm: (tensor.sum().item(), tensor.device.type), world_size=2) == [(3.0, tensor.device.type)] * 2
    )


def test_two_processes_launch_at_once():
    script = """
        import sys, torch
        from lessons_lib import launch

        def fn(comm, number):
            x = torch.full((1000,), number)
            for _ in range(200):
                comm.all_reduce(x, op="max")
            return x.unique().item()

        for transport in ("shared_memory", "torch"):
            print(launch(fn, int(sys.argv[1]), world_size=2, transport=transport))
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    both = [subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True) for number in (7, 8)]
    answers = [process.communicate(timeout=120)[0] for process in both]
    assert answers == [f"[{number}, {number}]\n" * 2 for number in (7, 8)]


# --- files ------------------------------------------------------------------------------------------------------------

LOADERS = {"load", "loads", "read_pickle", "Unpickler", "open_memmap"}
OUR_OWN = ("checkpoints.load", "checkpoints().load", "copies.load", "keeper.load")  # of lessons_lib.checkpoint
OWN_FILES = {"26-serving.ipynb": {"torch.export.load"}}  # what the lesson has just written, and it says what may happen
OWN_PIPES = {  # from the launch's own processes
    "launch/travel.py": {"_Unpickler(io.BytesIO(pickled)).load"},
    "parallel/objects.py": {"cloudpickle.loads"},
    "tasks/progress.py": {"cloudpickle.loads"},
}


def loading(source):
    """The calls in Python `source` that load something in a way that may execute what is loaded."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    for call in calls:
        name = ast.unparse(call.func)
        if name.rpartition(".")[2] not in LOADERS or name.split(".")[0] in ("json", "tomllib", "safetensors"):
            continue
        if name.endswith(OUR_OWN):
            continue
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name.startswith("torch.") and options.get("weights_only") == "True":
            continue
        if name.startswith(("np.", "numpy.")) and "allow_pickle" not in options:
            continue
        yield name


def test_files_are_loaded_without_executing_what_they_hold():
    for path in sorted((ROOT / "lessons_lib").rglob("*.py")):
        allowed = OWN_PIPES.get(f"{path.parent.name}/{path.name}", set())
        assert set(loading(path.read_text(encoding="utf-8"))) <= allowed, path
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                found = [name for name in loading("".join(cell["source"])) if not name.endswith(".loads")]  # of files
                assert set(found) <= OWN_FILES.get(path.name, set()), (path, cell["source"])


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.load(f)", ["torch.load"]),
        ("torch.load(f, weights_only=False)", ["torch.load"]),
        ("torch.load(f, weights_only=True)", []),
        ("np.load(f)", []),
        ("np.load(f, allow_pickle=True)", ["np.load"]),
        ("pickle.load(f)", ["pickle.load"]),
        ("json.load(f)", []),
        ("safetensors.torch.load(data)", []),
        ("self._checkpoints().load(state)", []),
    ],
)
def test_loading_that_may_execute_is_seen(source, found):
    assert list(loading(source)) == found
