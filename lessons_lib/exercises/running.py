"""Run a learner's function where it can do no harm: on copies, within a time limit, whatever it raises."""

import contextlib
import copy
import ctypes
import dis
import inspect
import io
import random
import re
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lessons_lib.exercises.compare import Raised

_MACHINE = re.compile(r" at 0x[0-9a-fA-F]+|\S*ipykernel_\d+\S*")


@dataclass(frozen=True)
class Outcome:
    """What came out when a function was run on one case.

    Attributes:
        value: what is compared.
        cost: named amounts, for instance {"bytes sent by a rank": 96}. None may exceed that of the reference.
    """

    value: Any
    cost: Mapping[str, float] = field(default_factory=dict)


def run(fn, case, measure, time_limit_s, quiet=False):
    """Run a function on copies of the arguments of one case.

    The random numbers of Python, NumPy and torch start from fixed seeds, and are put back afterwards.

    Args:
        fn: the function to run.
        case: a tuple of its arguments.
        measure: a function (fn, *case) that runs `fn` and may return an `Outcome`; None calls `fn(*case)`.
        time_limit_s: after so many seconds the function is stopped.
        quiet: whether what it prints is dropped.

    Returns:
        An `Outcome`. Its value is a `Raised` where the function raised or had no result in time.
    """
    arguments = copy.deepcopy(case)
    try:
        with _fixed_seeds(), _time_limit(time_limit_s), _silence() if quiet else contextlib.nullcontext():
            out = measure(fn, *arguments) if measure else fn(*arguments)
    except _TimeUp:
        return Outcome(Raised("TimeoutError", f"no result within {time_limit_s:g} s"))
    except (Exception, SystemExit) as error:
        words = next((line for line in str(error).splitlines() if line.strip()), "")
        return Outcome(Raised(type(error).__name__, _MACHINE.sub("", words).strip(), _line_of(error, fn)))
    return out if isinstance(out, Outcome) else Outcome(out)


def is_stub(fn):
    """Whether nobody has written `fn` yet: its body is `...`, `pass`, `return None` or raises NotImplementedError.

    A class is a stub when one of its public methods is a stub.
    """
    if fn is None or fn is ...:
        return True
    if inspect.isclass(fn):
        return any(is_stub(v) for k, v in vars(fn).items() if inspect.isfunction(v) and not k.startswith("_"))
    code = getattr(inspect.unwrap(fn), "__code__", None)
    if code is None:
        return False
    # What the compiler puts before the first statement, in any version of Python from 3.10 on.
    setup = {"RESUME", "NOP", "CACHE", "PRECALL", "PUSH_NULL", "MAKE_CELL", "COPY_FREE_VARS"}
    steps = [step for step in dis.get_instructions(code) if step.opname not in setup]
    if steps[0].argval == "NotImplementedError":
        return all(step.opname.startswith(("LOAD_", "CALL", "RAISE_")) for step in steps[1:])
    return len(steps) <= 2 and steps[-1].opname.startswith("RETURN") and steps[0].argval in (None, ...)


class _TimeUp(BaseException):
    """Raised inside a function that has used up its time; its own `except Exception` does not catch it."""


@contextlib.contextmanager
def _time_limit(seconds):
    """Raise `_TimeUp` in this thread, between two steps of Python, once the body has run for `seconds`."""
    # Only an exception raised from outside stops a loop of pure Python; a thread cannot be ended otherwise.
    thread, lock, done = ctypes.c_ulong(threading.get_ident()), threading.Lock(), threading.Event()
    raised = threading.Event()

    def watch():
        if not done.wait(seconds):
            with lock:
                if not done.is_set():
                    raised.set()
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_TimeUp))

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        with lock:
            done.set()
        if raised.is_set():  # it comes between two steps of Python: if it has not come yet, take it back
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)


@contextlib.contextmanager
def _fixed_seeds():
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@contextlib.contextmanager
def _silence():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _line_of(error, fn):
    """The line of the cell or file of `fn` that raised, such as "line 3: `x = y[9]`"; "" if none did."""
    functions = filter(inspect.isfunction, vars(fn).values()) if inspect.isclass(fn) else [inspect.unwrap(fn)]
    files = {f.__code__.co_filename for f in functions if hasattr(f, "__code__")}
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"line {own[-1].lineno}: `{own[-1].line}`" if own else ""
