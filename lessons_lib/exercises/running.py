"""Run a learner's function where it can do no harm: on copies, within a time limit, whatever it raises."""

import contextlib
import copy
import inspect
import io
import random
import re
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lessons_lib.errors import RankFailed
from lessons_lib.exercises.compare import Raised
from lessons_lib.exercises.settings import settings_kept
from lessons_lib.exercises.time_limit import TimeUp, in_time
from lessons_lib.exercises.watching import Watched

_MACHINE = re.compile(r" at 0x[0-9a-fA-F]+|\S*ipykernel_\d+\S*")
_FRAME = re.compile(r'File "(?P<file>[^"]*)", line (?P<number>\d+), in .*\n *(?P<text>.*)')
MOST_PRINTED = 20_000  # characters: what a page of a notebook can bear


@dataclass(frozen=True)
class Outcome:
    """What came out when a function was run on one case.

    Attributes:
        value: what is compared.
        cost: named amounts, for instance {"bytes sent by a rank": 96}. None may exceed that of the reference.
        faults: what the function should not have done, each as the rest of a sentence that begins with its name, such
            as "breaks a rule: rank 3 is in two pairs of round 1". The first one is what the verdict says.
    """

    value: Any
    cost: Mapping[str, float] = field(default_factory=dict)
    faults: tuple = ()


@dataclass(frozen=True)
class Run:
    """An outcome, and what the function did beside it.

    Attributes:
        outcome: the `Outcome`.
        changed: the arguments that it changed: {number of the argument: its name}.
        ends: the state of all arguments of its last call: {number of the argument: state}.
        left: settings of the interpreter that it left changed, in words.
        time_s: how long it took.
    """

    outcome: Outcome
    changed: dict
    ends: dict
    left: list
    time_s: float


def run(fn, case, measure, time_limit_s, quiet=False):
    """Run a function on copies of the arguments of one case.

    The random numbers of Python, NumPy and torch start from fixed seeds, and are put back afterwards, as are the
    settings of the interpreter.

    Args:
        fn: the function to run.
        case: a tuple of its arguments.
        measure: a function (fn, *case) that runs `fn` and may return an `Outcome`; None calls `fn(*case)`.
        time_limit_s: after so many seconds the function is stopped.
        quiet: whether what it prints is dropped.

    Returns:
        A `Run`. The value of its outcome is a `Raised` where the function raised or had no result in time.
    """
    arguments, left = copy.deepcopy(case), []
    watched = fn if inspect.isclass(fn) else _watched(fn)

    def body():
        with settings_kept(left):
            return measure(watched, *arguments) if measure else watched(*arguments)

    start_s = time.perf_counter()
    # Once more round the thread: one that is left behind puts nothing back.
    with _fixed_seeds(), settings_kept(), contextlib.redirect_stdout(_Page(sys.stdout, quiet)), _silent_errors(quiet):
        out = _result(fn, body, time_limit_s)
    outcome = out if isinstance(out, Outcome) else Outcome(out)
    changed, ends = ({}, {}) if watched is fn else (dict(watched.changed), dict(watched.ends))
    return Run(outcome, changed, ends, left, time.perf_counter() - start_s)


def _watched(fn):
    try:
        return Watched(fn)
    except Exception:  # an object that can be called, and fails when it is asked for its name
        return fn


def cases_of(cases):
    """The list of cases that an exercise was given or a function makes, under the settings that answers start with."""
    with settings_kept():
        return in_time(lambda: list(cases() if callable(cases) else cases))


def _result(fn, body, time_limit_s):
    try:
        return in_time(body, time_limit_s)
    except TimeUp as error:
        return Raised("TimeoutError", f"no result within {time_limit_s:g} s" + f", {error}" * bool(str(error)))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Raised(type(error).__name__, _first_line(error), _line_of(error, fn))


class _Page(io.TextIOBase):
    """Takes what is printed, and passes on its first `MOST_PRINTED` characters, or nothing if it is to be quiet."""

    def __init__(self, target, quiet):
        self.target, self.left = target, 0 if quiet else MOST_PRINTED

    def write(self, text):
        if self.left > 0:
            self.target.write(text[: self.left])
            self.left -= len(text)
            if self.left <= 0:
                self.target.write("\n… (and more, which is not shown)\n")
        return len(text)

    def flush(self):
        self.target.flush()


def _silent_errors(quiet):
    return contextlib.redirect_stderr(io.StringIO()) if quiet else contextlib.nullcontext()


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


def _first_line(error):
    try:
        lines = str(error).splitlines()
    except Exception:  # the answer's own exception, whose text fails
        return ""
    return _MACHINE.sub("", next((line for line in lines if line.strip()), "")).strip()


def _line_of(error, fn):
    """The line of the cell or file of `fn` that raised, such as "line 3: `x = y[9]`"; "" if none did."""
    try:
        functions = filter(inspect.isfunction, vars(fn).values()) if inspect.isclass(fn) else [inspect.unwrap(fn)]
    except Exception:  # as in `_watched`
        return ""
    files = {f.__code__.co_filename for f in functions if hasattr(f, "__code__")}
    frames = [(frame.filename, frame.lineno, frame.line) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, RankFailed):
        frames += [found.group("file", "number", "text") for found in _FRAME.finditer(error.details)]
    own = [f"line {number}: `{line}`" for file, number, line in frames if file in files]
    return own[-1] if own else ""
