"""Ranks from a function: what comes back, what is said when one fails, and that nothing stays behind."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import cloudpickle
import psutil
import pytest
import torch
from jupyter_client.manager import KernelManager
from left_behind import left_behind, nothing_is_left_behind, wait_until  # noqa: F401

from lessons_lib import CollectiveMismatch, Links, RankFailed, connect, launch
from lessons_lib.comm import block
from lessons_lib.schedules import ring

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ("shared_memory", "torch")


def hello(comm, *args, **kwargs):
    return comm.rank, comm.world_size, os.getpid(), args, kwargs


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_results_come_in_rank_order_from_fresh_processes(transport, world_size):
    results = launch(hello, "a", 2, world_size=world_size, transport=transport, word="b")
    assert [result[:2] for result in results] == [(rank, world_size) for rank in range(world_size)]
    assert len({result[2] for result in results} | {os.getpid()}) == world_size + 1
    assert all(result[3:] == (("a", 2), {"word": "b"}) for result in results)
    assert len(results.ledgers) == world_size and results.trace is None


def test_functions_may_close_over_anything_that_can_be_copied():
    class Own:
        def __init__(self, value):
            self.value = value

    own, large, scale = Own(3), torch.ones(2_000_000), 2

    def fn(comm):
        own.value += comm.rank
        rank = comm.rank
        return Own(own.value * scale), large.sum().item(), lambda x: x + rank

    results = launch(fn, world_size=2)
    assert [(r[0].value, r[1], r[2](10)) for r in results] == [(6, 2e6, 10), (8, 2e6, 11)]
    assert own.value == 3


def large_and_part(comm):
    buffer = comm.buffer(10_000_000)
    return torch.full((5_000_000,), float(comm.rank)), buffer[:3]


def test_large_results_arrive_and_parts_of_buffers_travel_alone():
    for rank, (large, part) in enumerate(launch(large_and_part, world_size=2)):
        assert large.unique().tolist() == [float(rank)]
        assert part.untyped_storage().nbytes() == 12


def prints(comm, count):
    for index in range(count):
        print(f"line {index}")
    print("no end", end="")
    print("to stderr", file=sys.stderr)


def test_prints_are_labelled_and_nothing_of_a_million_lines_is_lost(capsys):
    launch(prints, 3, world_size=3)
    out, err = capsys.readouterr()
    expected = [f"[rank {rank}] line {index}" for rank in range(3) for index in range(3)]
    assert [line for line in out.splitlines() if "line" in line] == expected
    assert sorted(line for line in out.splitlines() if "no end" in line) == [f"[rank {r}] no end" for r in range(3)]
    assert sorted(err.splitlines()) == [f"[rank {rank}] to stderr" for rank in range(3)]
    launch(prints, 500_000, world_size=2)
    lines = capsys.readouterr().out.splitlines()
    for rank in range(2):
        mine = [line for line in lines if line.startswith(f"[rank {rank}] line")]
        assert mine == [f"[rank {rank}] line {index}" for index in range(500_000)]


def test_prints_come_out_while_ranks_still_work(capsys):
    seen = []

    def fn(comm):
        print("early")
        release.wait(20)

    with multiprocessing.Manager() as manager:
        release = manager.Event()
        thread = threading.Thread(target=lambda: launch(fn, world_size=1))
        thread.start()
        assert wait_until(lambda: seen.append(capsys.readouterr().out) or "early" in "".join(seen), 20)
        assert thread.is_alive()
        release.set()
        thread.join(20)


def nested(comm):
    outer = comm.rank
    return list(launch(lambda inner: (outer, inner.rank), world_size=2))


def test_a_launch_inside_a_rank_works():
    assert launch(nested, world_size=2, timeout_s=60) == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]


def test_two_launches_at_once():
    results = {}

    def start(name):
        results[name] = launch(lambda comm: (name, comm.rank), world_size=2)

    threads = [threading.Thread(target=start, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {name: [(name, 0), (name, 1)] for name in "ab"}


# --- failures ---------------------------------------------------------------------------------------------------------


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(first)
        self.lock = threading.Lock()


def fail(comm, how):
    comm.barrier()
    if comm.rank == 1:
        if how == "raise":
            raise ValueError("no such file")
        if how == "odd exception":
            raise Unpicklable("odd", 2)
        if how == "sys.exit":
            sys.exit(4)
        if how == "os._exit":
            os._exit(5)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "unpicklable result":
            return threading.Lock()
    if how != "unpicklable result":
        comm.all_reduce(torch.ones(3))
    return None


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise", "rank 1 raised ValueError: no such file"),
        ("odd exception", "rank 1 raised Unpicklable: odd"),
        ("sys.exit", "rank 1 called sys.exit(4)"),
        ("os._exit", "rank 1 ended with exit code 5 before its function returned"),
        ("kill", "rank 1 was killed by SIGKILL"),
        ("stop", "rank 1 did not answer within timeout_s=1 s"),
        ("unpicklable result", "what rank 1 returned cannot be sent back"),
    ],
)
def test_a_failing_rank_is_named(transport, how, says):
    if how in ("kill", "stop") and os.name == "nt":
        pytest.skip("Windows has no such signals")
    with pytest.raises(RankFailed) as caught:
        launch(fail, how, world_size=3, transport=transport, timeout_s=1 if how == "stop" else 20)
    assert caught.value.rank == 1
    assert caught.value.reason.startswith(says), caught.value.reason
    if how == "raise":
        assert 'raise ValueError("no such file")' in caught.value.details


def train(comm, seed):
    torch.manual_seed(seed)
    x = comm.buffer(20_000)
    while True:
        x.fill_(comm.rank)
        with comm.compute("work"):
            torch.randn(50, 50) @ torch.randn(50, 50)
        comm.all_reduce(x)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("seed", range(6))
def test_a_rank_killed_at_a_random_moment_is_named(seed):
    draw, caught = random.Random(seed), []
    victim = draw.randrange(3)

    def start():
        try:
            launch(train, seed, world_size=3, transport=TRANSPORTS[seed % 2])
        except RankFailed as error:
            caught.append((error, time.monotonic()))

    before = {p.pid for p in left_behind()[0]}
    thread = threading.Thread(target=start)
    thread.start()
    assert wait_until(lambda: len([p for p in left_behind()[0] if p.pid not in before]) == 3, 30)
    pids = sorted(p.pid for p in left_behind()[0] if p.pid not in before)
    time.sleep(draw.random() * 0.3)
    os.kill(pids[victim], signal.SIGKILL)
    killed_s = time.monotonic()
    thread.join(20)
    error, ended_s = caught[0]
    assert (error.rank, "SIGKILL" in error.reason) == (victim, True)
    assert ended_s - killed_s < 5


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"world_size": 0}, ValueError, "world_size=0"),
        ({"world_size": 2.0}, ValueError, "world_size=2.0"),
        ({"world_size": True}, ValueError, "world_size=True"),
        ({"world_size": 1000}, ValueError, "world_size=1000"),
        ({"world_size": 2, "transport": "mpi"}, ValueError, "transport='mpi'"),
        ({"world_size": 2, "algorithm": "rign"}, ValueError, "algorithm='rign'"),
        ({"world_size": 2, "algorithm": "torch"}, ValueError, 'transport="torch"'),
        ({"world_size": 2, "algorithm": ring(3)}, ValueError, "made for 3 ranks"),
        ({"world_size": 2, "links": 0.1}, TypeError, "links is a float"),
        ({"world_size": 2, "timeout_s": 0}, ValueError, "timeout_s=0"),
        ({"world_size": 2, "timeout_s": "1"}, ValueError, "timeout_s='1'"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, says):
    with pytest.raises(error) as caught:
        launch(hello, **kwargs)
    assert says in str(caught.value)


def test_what_cannot_be_sent_is_named():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="cannot be sent to other processes"):
        launch(lambda comm: lock, world_size=2)
    with pytest.raises(RankFailed, match="a Communicator belongs to its own rank"):
        launch(lambda comm: comm, world_size=2)
    with pytest.raises(TypeError, match="fn is a int"):
        launch(3, world_size=2)


# --- platforms --------------------------------------------------------------------------------------------------------


def reduce_and_pass(comm):
    x = torch.ones(1003) * comm.rank
    comm.all_reduce(x)
    if comm.rank == 0:
        comm.send(x, 1)
    else:
        comm.recv(x, 0)
    return x.unique().tolist()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_without_forkserver_and_memfd(monkeypatch, transport):
    """As on Windows (spawn) and macOS (named shared memory)."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    monkeypatch.setattr(block, "HAS_MEMFD", False)

    def fn(comm):
        block.HAS_MEMFD = False
        return reduce_and_pass(comm)

    shared_before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert launch(fn, world_size=2, transport=transport, timeout_s=60) == [[1.0], [1.0]]
    if os.path.isdir("/dev/shm"):
        assert set(os.listdir("/dev/shm")) <= shared_before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's tables of sockets")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sockets_are_on_the_loopback_interface_only(transport):
    def fn(comm):
        comm.all_reduce(torch.ones(3))
        found = psutil.Process().net_connections("inet")
        comm.barrier()
        return [c.laddr.ip for c in found]

    addresses = {ip for result in launch(fn, world_size=2, transport=transport) for ip in result}
    assert addresses <= {"127.0.0.1", "::1"}


def run_script(tmp_path, text, *command):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, *command, str(script)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )


def test_a_script_needs_no_main_guard(tmp_path):
    done = run_script(
        tmp_path,
        """
        import torch
        from lessons_lib import launch

        class Own:
            value = 5

        def fn(comm):
            x = torch.ones(2) * Own.value
            comm.all_reduce(x)
            return x.tolist()

        print("once")
        print(launch(fn, world_size=2))
        """,
    )
    assert done.stdout == "once\n[[10.0, 10.0], [10.0, 10.0]]\n", done.stderr


def test_the_same_function_under_torchrun(tmp_path):
    done = run_script(
        tmp_path,
        """
        import torch
        from lessons_lib import connect

        def fn(comm):
            x = torch.full((5,), comm.rank + 1.0)
            comm.all_reduce(x)
            return x[0].item()

        with connect(algorithm="ring") as comm:
            result = fn(comm)
            comm.barrier()
            if comm.rank == 0:
                print(comm.world_size, result, comm.ledger.bytes_sent)
        """,
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    )
    assert done.stdout.strip() == "2 3.0 20", done.stderr


def joined(comm):
    with connect(algorithm="tree") as inner:
        x = torch.ones(2) * inner.rank
        inner.all_reduce(x)
        return inner.rank, x.tolist()


def test_connect_joins_a_group_that_exists():
    assert launch(joined, world_size=2, transport="torch") == [(0, [1.0, 1.0]), (1, [1.0, 1.0])]


def test_connect_without_ranks_says_what_to_do(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="torchrun"):
        connect()


# --- kernels ----------------------------------------------------------------------------------------------------------

ENDLESS = """
from lessons_lib import launch
def fn(comm):
    print("running")
    while True:
        comm.barrier()
launch(fn, world_size=2)
"""


@pytest.fixture
def kernel():
    manager = KernelManager()
    manager.start_kernel(env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def start_endless(manager, client):
    """Run ranks without end in the kernel; the request, and all processes below the kernel."""
    request = client.execute(ENDLESS)
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["msg_type"] == "stream" and "running" in message["content"]["text"]:
            break
        assert message["msg_type"] != "error", message["content"]
    return request, psutil.Process(manager.provisioner.pid).children(recursive=True)


def reply_to(client, request):
    """What the kernel says to a request; replies to other requests may lie in the channel before it."""
    while True:
        reply = client.get_shell_msg(timeout=60)
        if reply["parent_header"]["msg_id"] == request:
            return reply["content"]


def all_gone(processes):
    return wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes), 20)


@pytest.mark.skipif(os.name == "nt", reason="uses signals")
@pytest.mark.parametrize("how", ["restart", "shutdown", "kill"])
def test_ending_a_kernel_leaves_no_process(kernel, how):
    manager, client = kernel
    _, processes = start_endless(manager, client)
    assert len(processes) >= 3
    if how == "restart":
        manager.restart_kernel(now=True)
    elif how == "shutdown":
        manager.shutdown_kernel(now=True)
    else:
        os.kill(manager.provisioner.pid, signal.SIGKILL)
    assert all_gone(processes)


@pytest.mark.skipif(os.name == "nt", reason="uses signals")
def test_after_an_interrupt_the_next_launch_works(kernel):
    manager, client = kernel
    request, processes = start_endless(manager, client)
    manager.interrupt_kernel()
    reply = reply_to(client, request)
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    ranks = [p for p in processes if p.is_running() and p.ppid() != manager.provisioner.pid]
    assert all_gone(ranks)
    status = "aborted"  # for a moment after an interrupt the kernel turns requests away
    while status == "aborted":
        request = client.execute("assert launch(lambda comm: comm.rank, world_size=2) == [0, 1]")
        status = reply_to(client, request)["status"]
    assert status == "ok"


def test_emulated_links_take_their_time():
    def fn(comm):
        comm.barrier()
        start_s = time.perf_counter()
        comm.all_reduce(torch.ones(1000))
        return time.perf_counter() - start_s

    for transport in TRANSPORTS:
        took_s = launch(fn, world_size=2, links=Links(0.02, 1e5), algorithm="ring", transport=transport)
        assert min(took_s) >= 2 * (0.02 + 2000 / 1e5)


def test_mismatch_survives_the_way_to_the_caller():
    with pytest.raises(CollectiveMismatch) as caught:
        launch(lambda comm: comm.all_reduce(torch.ones(comm.rank + 1)), world_size=2)
    assert "shape (1,)" in caught.value.calls[0] and "shape (2,)" in caught.value.calls[1]
