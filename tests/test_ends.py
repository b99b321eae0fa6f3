"""How ranks end, and what they say until then: odd errors, interrupts, processes of their own, prints of every kind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from multiprocessing.process import BaseProcess

import cloudpickle
import kills
import psutil
import pytest
import torch
from left_behind import nothing_is_left_behind, wait_until  # noqa: F401

from lessons_lib import CollectiveMismatch, RankFailed, launch
from lessons_lib.launch import processes

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ("shared_memory", "torch")
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither such signals nor groups of processes")


# --- errors -----------------------------------------------------------------------------------------------------------


class Untold(Exception):
    def __str__(self):
        raise KeyError("no text")


def raise_odd(comm, kind):
    if comm.rank == 1:
        if kind == "without a text":
            raise Untold
        if kind == "own RankFailed":
            raise RankFailed(threading.Lock(), "not for the launcher")
        if kind == "lone surrogate":
            raise ValueError("\ud800")
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "inner launch":
            launch(lambda inner: 1 // inner.rank, world_size=2)
        if kind == "inner mismatch":
            launch(lambda inner: inner.all_reduce(torch.ones(inner.rank)), world_size=2)
    comm.barrier()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("without a text", "rank 1 raised Untold, whose text cannot be had: KeyError"),
        ("own RankFailed", "rank 1 raised RankFailed: not for the launcher"),
        ("lone surrogate", "rank 1 raised ValueError: \ud800"),
        ("interrupt", "rank 1 raised KeyboardInterrupt: "),
        ("inner launch", "rank 1 raised RankFailed: rank 0 raised ZeroDivisionError"),
        ("inner mismatch", "rank 1 raised CollectiveMismatch: the ranks disagree"),
    ],
)
def test_odd_errors_are_told_of_the_rank_that_raised_them(kind, says):
    with pytest.raises(RankFailed) as caught:
        launch(raise_odd, kind, world_size=2)
    assert caught.value.rank == 1
    assert caught.value.reason.startswith(says)
    assert "raise_odd" in caught.value.details


class Unreadable:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return _raise, (self.error,)


def _raise(error):
    raise error


@pytest.mark.parametrize("error", [ValueError("not here"), SystemExit(3)])
def test_a_result_that_cannot_be_read_is_named(error):
    with pytest.raises(RankFailed, match="what rank 0 returned cannot be read here"):
        launch(lambda comm: Unreadable(error), world_size=1)


def test_arguments_that_fail_to_be_copied_are_named():
    class Stubborn:
        def __reduce__(self):
            raise KeyError("stubborn")

    with pytest.raises(TypeError, match="cannot be sent to other processes"):
        launch(lambda comm, argument: None, Stubborn(), world_size=1)


# --- signals and processes --------------------------------------------------------------------------------------------


@posix
@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no signals without a name here")
def test_a_signal_without_a_name_is_told_by_its_number():
    number = signal.SIGRTMIN + 3
    with pytest.raises(RankFailed, match=f"rank 0 was killed by signal {number}"):
        launch(lambda comm: os.kill(os.getpid(), number), world_size=1)


@posix
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", kills.KINDS)
def test_ranks_that_fail_in_the_midst_of_training_are_named_and_leave_nothing(kind, transport):
    """One of the runs that `python tests/kills.py --runs 100` makes of each kind."""
    outcomes, times, left = kills.many_runs(kind, transport, runs=1)
    assert (dict(outcomes), dict(left)) == ({"named": 1}, {})
    assert max(times) < 2 + (kills.STOP_LIMIT_S if kind == "SIGSTOP" else 0)


@posix
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stopped_rank_is_named_also_where_nobody_waits_for_it(world_size):
    def fn(comm):
        if comm.rank == comm.world_size - 1:
            os.kill(os.getpid(), signal.SIGSTOP)

    with pytest.raises(RankFailed, match="did not answer within timeout_s=1 s") as caught:
        launch(fn, world_size=world_size, timeout_s=1)
    assert caught.value.rank == world_size - 1


def beget_and_die(comm, pids, how):
    if how == "fork":
        pid = os.fork()
        if pid == 0:
            threading.Event().wait()
    else:
        pid = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
    pids[comm.rank] = pid
    comm.barrier()
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()


@posix
@pytest.mark.parametrize("how", ["fork", "subprocess"])
def test_the_processes_of_a_rank_neither_hide_its_end_nor_outlive_it(how):
    with multiprocessing.Manager() as manager:
        pids = manager.dict()
        with pytest.raises(RankFailed, match="rank 1 was killed by SIGKILL"):
            launch(beget_and_die, pids, how, world_size=2, timeout_s=60)
        pids = list(pids.values())
    assert len(pids) == 2
    assert wait_until(lambda: not any(alive(pid) for pid in pids))


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@posix
def test_a_forked_process_of_a_rank_says_nothing_in_its_name(capsys):
    def fn(comm):
        pid = os.fork()
        if pid == 0:
            raise ValueError("in the fork")
        os.waitpid(pid, 0)
        print("still here")
        return comm.rank

    assert launch(fn, world_size=2) == [0, 1]
    assert sorted(capsys.readouterr().out.splitlines()) == ["[rank 0] still here", "[rank 1] still here"]


def test_ranks_see_the_environment_of_now(monkeypatch):
    launch(lambda comm: None, world_size=1)
    monkeypatch.setenv("LESSON", "12")
    assert launch(lambda comm: os.environ["LESSON"], world_size=1) == ["12"]


# --- interrupts -------------------------------------------------------------------------------------------------------


def interrupt():
    signal.raise_signal(signal.SIGINT)


@posix
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_interrupt_between_any_two_steps_of_starting_leaves_nothing(monkeypatch, transport):
    start = BaseProcess.start

    def impatient(process):
        interrupt()
        start(process)
        interrupt()

    monkeypatch.setattr(BaseProcess, "start", impatient)
    with pytest.raises(KeyboardInterrupt):
        launch(lambda comm: threading.Event().wait(), world_size=2, transport=transport)
    monkeypatch.undo()
    assert launch(lambda comm: comm.rank, world_size=2, transport=transport) == [0, 1]


@posix
def test_interrupts_while_ranks_are_ended_end_them_all_the_same(monkeypatch):
    kill = processes.Ranks.kill

    def impatient(ranks):
        interrupt()
        kill(ranks)
        interrupt()

    monkeypatch.setattr(processes.Ranks, "kill", impatient)
    with pytest.raises(RankFailed, match="division by zero"):
        launch(lambda comm: 1 / 0 if comm.rank else threading.Event().wait(), world_size=2)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        launch(lambda comm: None, world_size=2)
    assert signal.getsignal(signal.SIGINT) is before


@posix
def test_an_interrupt_while_the_server_loads_does_not_end_it():
    script = """
        import os, signal
        from lessons_lib import launch, warm_up

        warm_up()
        try:
            os.killpg(0, signal.SIGINT)
        except KeyboardInterrupt:
            print(launch(lambda comm: comm.rank, world_size=2))
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert (done.stdout, done.stderr) == ("[0, 1]\n", "")


# --- prints -----------------------------------------------------------------------------------------------------------


def test_bytes_and_letters_of_every_kind_come_out(capsys):
    def fn(comm):
        sys.stdout.buffer.write("λ".encode()[:1])
        sys.stdout.buffer.write("λ".encode()[1:] + b" \xff\n")
        print("\ud800 →")
        with pytest.raises(TypeError):
            sys.stdout.write(b"bytes")
        return sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.fileno(), sys.stderr.fileno()

    assert launch(fn, world_size=1) == [(False, "utf-8", 1, 2)]
    assert capsys.readouterr().out == "[rank 0] λ \ufffd\n[rank 0] \\ud800 →\n"


class Console:
    """One that knows few letters, as on Windows."""

    encoding = "ascii"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text.encode(self.encoding).decode()

    def flush(self):
        pass


def test_a_console_that_lacks_letters_does_not_end_a_launch(monkeypatch):
    monkeypatch.setattr(sys, "stdout", console := Console())
    launch(lambda comm: print("α → β"), world_size=1)
    assert console.text == "[rank 0] \\u03b1 \\u2192 \\u03b2\n"


def screen(text):
    """The lines that a terminal shows of `text`, without the labels of rank 0."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.removeprefix("[rank 0] ").rstrip())
    return "\n".join(lines).rstrip("\n")


SNIPPETS = {
    "several values": "print(1, 'two', 3.0, sep='-')",
    "parts of a line": "print('a', end=''); print('b', end=' '); print('c')",
    "no end": "print('a', end='')",
    "empty lines": "print(); print('a\\n\\nb')",
    "tabs and spaces": "print('\\ta  b')",
    "letters": "print('λ → 漢字 🙂')",
    "write": "import sys; sys.stdout.write('a\\n'); sys.stdout.writelines(['b', 'c\\n'])",
    "bytes": "import sys; sys.stdout.buffer.write(b'bytes\\n'); sys.stdout.buffer.flush()",
    "flush": "print('a', end='', flush=True); print('b', flush=True)",
    "other systems' ends of lines": "print('a', end='\\r\\n'); print('b', end='\\r\\n')",
    "bar, return first": "for i in range(5): print(f'\\r{i * 25}%', end='')\nprint()",
    "bar, return last": "for i in range(5): print(f'{i * 25}%', end='\\r', flush=True)\nprint()",
    "bar, and a line over it": "for i in range(5): print(f'{i * 25}% of all', end='\\r')\nprint('done')",
    "bar that shrinks": "for i in range(5): print('\\r' + 'x' * (5 - i), end='')\nprint()",
    "bar that is wiped": "print('working', end=''); print('\\r       \\r', end=''); print('done')",
    "bar that stays": "for i in range(5): print(f'\\r{i * 25}%', end='')",
    "slow bar": "import time\nfor i in range(4):\n  print(f'{i}/3', end='\\r'); time.sleep(0.1)\nprint('end')",
    "long line": "print('x' * 1_000_000)",
    "many lines": "print('\\n'.join(map(str, range(3000))))",
    "pprint": "import pprint; pprint.pprint({i: 'x' * 20 for i in range(9)})",
    "redirected": "import contextlib as c, sys\nwith c.redirect_stdout(sys.stderr): print('elsewhere')\nprint('here')",
    "print to a stream": "import sys; print('a', file=sys.stdout); print('b', file=sys.stderr)",
    "warning": "import warnings; warnings.warn('careful'); warnings.warn('again')",
    "logging": "import logging; logging.warning('careful'); logging.info('no'); logging.getLogger('a').error('bad')",
    "configured logging": "import logging; logging.basicConfig(level='INFO'); logging.info('yes')",
    "traceback": "import traceback\ntry: 1 / 0\nexcept ZeroDivisionError: traceback.print_exc(limit=0)",
    "thread": "import threading; t = threading.Thread(target=print, args=('a',)); t.start(); t.join()",
    "tensor": "import torch; torch.set_printoptions(precision=2); print(torch.arange(6.).reshape(2, 3) / 7)",
}


@pytest.mark.parametrize("code", SNIPPETS.values(), ids=SNIPPETS)
def test_what_a_rank_prints_looks_as_in_one_process(code, capsys):
    run = f"exec(compile({code!r}, 'cell', 'exec'), {{'__name__': 'cell'}})"
    here = subprocess.run([sys.executable, "-X", "utf8", "-c", run], capture_output=True, timeout=60)
    launch(lambda comm: exec(run), world_size=1)
    there = capsys.readouterr()
    assert (screen(there.out), screen(there.err)) == (screen(here.stdout.decode()), screen(here.stderr.decode()))


@pytest.mark.parametrize("ask", [lambda: input("name? "), lambda: breakpoint(), lambda: sys.stdin.read()])
def test_a_rank_that_asks_is_refused_in_words(ask):
    with pytest.raises(RankFailed, match="a rank has no keyboard: ask before launch, and give the answer to it"):
        launch(lambda comm: ask(), world_size=2)


class PrintsAtItsEnd:
    def __init__(self):
        self.me = self

    def __del__(self):
        print("deleted")


def print_from_finalisers(comm, count):
    import gc

    gc.set_threshold(5)
    for index in range(count):
        PrintsAtItsEnd()
        print("line", index)
    gc.collect()


def test_finalisers_may_print_at_any_moment(capsys):
    launch(print_from_finalisers, 3000, world_size=2)
    lines = capsys.readouterr().out.splitlines()
    for rank in range(2):
        mine = "".join(line.removeprefix(f"[rank {rank}] ") for line in lines if line.startswith(f"[rank {rank}]"))
        assert (mine.count("line"), mine.count("deleted")) == (3000, 3000)


def test_a_mismatch_made_by_hand_is_refused():
    with pytest.raises(ValueError):
        CollectiveMismatch("not a dict")
