"""A check never raises and never hangs, whatever the answer does, and says in words what it saw."""

import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from lessons_lib.exercises import Exercise, on_ranks


def total(x):
    """The sum of a tensor."""
    return x.sum().item()


def cell(source):
    """The last function of a source, as a notebook cell would define it."""
    names = {"torch": torch, "threading": threading}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), names)
    return list(names.values())[-1]


def task(**changes):
    cases = [(torch.tensor([1.0, 2.0, 6.0]),), (torch.arange(1.0, 12.0),)]
    return Exercise(**{"reference": total, "cases": cases, "time_limit_s": 0.3} | changes)


ENDLESS = {
    "bare except": "while True:\n        try:\n            pass\n        except:\n            pass",
    "except in a function": "def g():\n        try:\n            while True: pass\n        except: g()\n    g()",
    "an endless generator": "return sum(1 for _ in iter(int, 1))",
    "a lock taken twice": "lock = threading.Lock()\n    lock.acquire()\n    lock.acquire()",
    "waiting for an event": "threading.Event().wait()",
}


@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_never_ends_is_a_verdict(body):
    verdict = task().check(cell(f"def f(x):\n    {body}"))
    assert (verdict.state, "no result within 0.3 s" in verdict.message) == ("not yet", True), verdict


def test_an_answer_that_nothing_stops_is_said_to_go_on():
    end = threading.Event()
    verdict = task().check(lambda x: end.wait())
    end.set()
    assert "TimeoutError: no result within 0.3 s, and nothing stops it: restart the kernel" in verdict.message


STRANGE = {
    "a text that fails": "class E(Exception):\n        def __str__(self): raise ValueError\n    raise E",
    "SystemExit": "raise SystemExit(3)",
    "GeneratorExit": "raise GeneratorExit",
    "StopIteration": "raise StopIteration",
    "endless recursion": "return f(x)",
    "a base of its own": "class E(BaseException): pass\n    raise E('no')",
    "a huge integer": "return 10**400",
    "more digits than Python prints": "return 10**5000",
    "a nested tensor": "return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])",
    "nan": "return float('nan')",
    "an infinite generator": "return iter(int, 1)",
    "a list that holds itself": "a = []\n    a.append(a)\n    return a",
    "a list like the expected one": "a = [1]\n    a[0] = a\n    return {'a': a}",
    "a tensor on meta": "return torch.ones((), device='meta')",
    "a sparse tensor": "return torch.eye(3).to_sparse()",
    "an equality that fails": "class V:\n        def __eq__(self, other): raise ValueError\n    return V()",
    "a text of itself that fails": "class V:\n        def __repr__(self): raise ValueError\n    return V()",
    "a text of itself that exits": "class V:\n        def __repr__(self): raise SystemExit\n    return V()",
    "a length that fails": "class V(list):\n        def __len__(self): raise ValueError\n    return V([1])",
    "a class without a name": "return type('', (), {})()",
    "a type": "return int",
    "a number that fails": "class V(float):\n        def __eq__(self, o): raise ValueError\n    return V(1)",
}


@pytest.mark.parametrize("body", STRANGE.values(), ids=STRANGE.keys())
def test_whatever_comes_back_is_a_verdict_in_words(body):
    verdict = task().check(cell(f"def f(x):\n    {body}"))
    assert verdict.state == "not yet" and verdict.message and repr(verdict) and verdict._repr_html_()


def pair(n):
    """A list and a dictionary."""
    return [n, {"n": [n]}]


@pytest.mark.parametrize("body", STRANGE.values(), ids=STRANGE.keys())
def test_whatever_comes_back_inside_a_list_is_a_verdict_in_words(body):
    inside = cell(f"def f(x):\n    {body}")
    verdict = Exercise(pair, [(1,)], time_limit_s=0.3).check(lambda n: [n, {"n": inside(n)}])
    assert verdict.state == "not yet" and verdict.message and repr(verdict)


class Strange:
    def __getattr__(self, name):
        raise RuntimeError(name)

    def __call__(self, x):
        return 1


@pytest.mark.parametrize("answer", [Strange, int, print, len, torch.relu, lambda *a, **k: 1, 3, "text", float("nan")])
def test_whatever_is_handed_in_is_a_verdict(answer):
    answer = Strange() if answer is Strange else answer
    assert task().check(answer).state in ("not yet", "not attempted")


def test_a_comparison_that_never_ends_is_a_verdict(monkeypatch):
    monkeypatch.setattr("lessons_lib.exercises.judge.LONGEST_S", 0.2)
    endless = cell("class V(list):\n    def __iter__(self):\n        while True: pass\ndef f(n):\n    return V([n, 1])")
    assert "cannot be compared (TimeUp)" in Exercise(pair, [(1,)]).check(endless).message


def test_what_an_answer_prints_is_cut_short(capsys):
    verdict = task().check(cell("def f(x):\n    for _ in range(10_000): print('x' * 100)\n    return x.sum().item()"))
    printed = capsys.readouterr().out
    assert verdict.state == "correct"
    assert len(printed) < 50_000 and "and more, which is not shown" in printed


def test_an_interrupt_of_the_person_ends_the_answer_too():
    """The kernel's stop button raises in the main thread, which waits for the answer."""
    script = """
        import os, signal, threading
        from lessons_lib.exercises import Exercise

        ended = threading.Event()

        def one(x):
            return 1

        def answer(x):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                while True: pass
            finally:
                ended.set()

        try:
            Exercise(one, [(1,)]).check(answer)
        except KeyboardInterrupt:
            print("interrupted", ended.is_set())
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "interrupted True\n", done.stderr


def test_an_error_on_a_rank_carries_the_line_of_the_answer():
    def inside(comm, fn, n):
        return fn(comm, n)

    def half(comm, n):
        """Half of n."""
        return n / 2

    halves = Exercise(half, [(2,)], outcome=lambda fn, n: on_ranks(inside, fn, n, world_size=2))
    message = halves.check(cell("def f(comm, n):\n    m = 0\n    return n / m")).message
    assert "RankFailed: rank 0 raised ZeroDivisionError" in message and "(line 3" in message
