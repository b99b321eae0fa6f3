"""Exercises that explain themselves: a reference, the cases it is tried on, and the mistakes people make.

`check` runs the learner's function and the reference on the same cases and compares the outcomes. Where they differ,
the known mistakes are run too: the one with the same outcome as the answer has the hint that fits.
"""

import functools
import html
import importlib
import inspect
import pkgutil
import re
import textwrap
from dataclasses import dataclass

from lessons_lib.exercises.compare import Raised, difference, show_value
from lessons_lib.exercises.mistakes import edit, read_mistakes
from lessons_lib.exercises.ranks import by_rank, on_ranks
from lessons_lib.exercises.running import Outcome, is_stub, run

__all__ = ["Exercise", "Hint", "Outcome", "Verdict", "all_exercises", "by_rank", "edit", "on_ranks"]

_MARKS = {"not attempted": ("○", "#56B4E9"), "not yet": ("✗", "#D55E00"), "correct": ("✓", "#009E73")}


@dataclass(frozen=True)
class Verdict:
    """What a check says.

    Attributes:
        name: the name of the exercise.
        state: "not attempted", "not yet" or "correct".
        message: where the answer differs first, or what it costs.
        hint: a hint made for this mistake, or "".
    """

    name: str
    state: str
    message: str
    hint: str = ""

    def __repr__(self):
        text = f"{_MARKS[self.state][0]} {self.name}: {self.state}. {self.message}"
        return f"{text}\nHint: {self.hint}" if self.hint else text

    def _repr_html_(self):
        mark, colour = _MARKS[self.state]
        rows = [f"<b>{mark} {html.escape(self.name)}: {self.state}.</b> {_html(self.message)}"]
        if self.hint:
            rows.append(f"<b>Hint:</b> {_html(self.hint)}")
        style = f"border-left: 4px solid {colour}; padding: 0.4em 0.8em"
        return f'<div style="{style}">' + "<br>\n".join(rows) + "</div>"


class Hint(str):
    """A line of text that a notebook shows without quotes."""

    __repr__ = str.__str__


class Exercise:
    """A function (or class) to write, compared with `reference` on every case.

    Args:
        reference: the right answer; its name and docstring are those of the exercise.
        cases: a list of tuples of arguments, or a function that returns it and is called when they are first needed.
        mistakes: the wrong answers that people give, at least three: functions whose docstring is the hint, or edits of
            the reference (see `edit`).
        hints: texts, from a nudge to nearly the answer.
        outcome: a function (fn, *case) that runs `fn` and returns what is compared, or an `Outcome` with costs. The
            default calls `fn(*case)`.
        compare: a function (expected, got) that returns the difference in words, or None. By default values are
            compared with `difference`.
        rtol, atol: relative and absolute tolerance of `difference`.
        slack: a cost may be this many times the cost of the reference.
        time_limit_s: how long one case may take.

    Raises:
        TypeError: `reference` is neither a function nor a class.
    """

    def __init__(
        self,
        reference,
        cases,
        mistakes=(),
        hints=(),
        *,
        outcome=None,
        compare=None,
        rtol=1e-5,
        atol=1e-6,
        slack=1.0,
        time_limit_s=20.0,
    ):
        if not inspect.isfunction(reference) and not inspect.isclass(reference):
            raise TypeError(f"reference={reference!r}: a function or a class is needed")
        self.reference, self._cases = reference, cases
        self._mistakes, self.hints = tuple(mistakes), tuple(hints)
        self.outcome, self.compare = outcome, compare
        self.rtol, self.atol, self.slack, self.time_limit_s = rtol, atol, slack, time_limit_s
        self.name, self.__doc__ = reference.__name__, reference.__doc__
        self._hints_given, self._mistakes_known = 0, {}

    @functools.cached_property
    def cases(self):
        cases = list(self._cases() if callable(self._cases) else self._cases)
        wrong = [case for case in cases if not isinstance(case, tuple)]
        if wrong or not cases:
            raise TypeError(f"cases of {self.name} must be at least one tuple of arguments, got {(wrong or cases)!r}")
        return cases

    @functools.cached_property
    def mistakes(self):
        return read_mistakes(self.reference, self._mistakes)  # not before the whole module of the exercise is there

    def __repr__(self):
        return f"Exercise {self.name}: .check({self.name}), .hint(), .solution()"

    def check(self, answer):
        """Say whether the learner's function is right, and if not, where it differs first. It may do anything.

        Args:
            answer: the function or class that the learner wrote.

        Returns:
            A `Verdict`.

        Raises:
            RuntimeError: the reference itself failed on this machine. Nothing that the answer does raises here.
        """
        if is_stub(answer):
            return self._not_attempted()
        if not callable(answer):
            message = f"`check` takes the function itself, without brackets: `exercise.{self.name}.check({self.name})`."
            return Verdict(self.name, "not attempted", message)
        outcomes = []
        for case in self.cases:
            expected = self._run(self.reference, case)
            if isinstance(expected.value, Raised) and expected.value.type_name not in ("ValueError", "TypeError"):
                raise RuntimeError(f"the reference of {self.name} {expected.value}")
            outcomes.append(self._run(answer, case, quiet=False))
            if outcomes[-1].value is ...:
                return self._not_attempted()
            found = self._difference(expected, outcomes[-1])
            if found is not None:
                hint = self._hint_for(answer, outcomes)
                more = "" if hint else f" `exercise.{self.name}.hint()` gives a nudge."
                return Verdict(self.name, "not yet", f"`{self._call(case)}`{found}.{more}", hint)
        return Verdict(self.name, "correct", self._price(expected, outcomes[-1]))

    def hint(self):
        """Return the next hint. After the last one comes a word about `solution()`, and then the first again."""
        given, self._hints_given = self._hints_given, (self._hints_given + 1) % (len(self.hints) + 1)
        if given == len(self.hints):
            return Hint(f"No more hints: `exercise.{self.name}.solution()` shows a way to write {self.name}.")
        return Hint(f"Hint {given + 1} of {len(self.hints)}: {self.hints[given]}")

    def source(self):
        """The source of the reference: the function that the tests run."""
        return textwrap.dedent(inspect.getsource(self.reference)).rstrip() + "\n"

    def solution(self):
        """Print the reference."""
        print(self.source(), end="")

    def _not_attempted(self):
        nudge = f"`exercise.{self.name}.hint()` gives a nudge."
        message = f"Write `{self.name}` above, run its cell, then run this one. {nudge}"
        return Verdict(self.name, "not attempted", message)

    def _run(self, fn, case, quiet=True):
        return run(fn, case, self.outcome, self.time_limit_s, quiet)

    def _difference(self, expected, got):
        """Where `got` falls short of the outcome of the reference, as the rest of a sentence; None if it does not."""
        found = self._compare(expected.value, got.value)
        if found is not None:
            path, words = found
            if got.value is None:
                words += " (is a `return` missing?)"
            join = " " if isinstance(got.value, Raised) else ": "
            return (f", {path}" if path else "") + join + words
        for name, best in expected.cost.items():
            if got.cost[name] > best * self.slack * (1 + 1e-9):
                paid, enough = _amount(got.cost[name]), _amount(best * self.slack)
                return f" gives the right values, but {name}: {paid}, where {enough} is enough"
        return None

    def _compare(self, expected, got):
        if self.compare is None or isinstance(expected, Raised) or isinstance(got, Raised):
            return difference(expected, got, self.rtol, self.atol)
        try:
            words = self.compare(expected, got)
        except Exception as error:  # the answer's value is of a kind that `compare` was not made for
            words = f"got {show_value(got)}, which cannot be compared ({type(error).__name__})"
        return None if words is None else ("", words)

    def _hint_for(self, answer, outcomes):
        """The hint of the mistake that has the same outcome as the answer in every case; "" if none has."""
        candidates = self.mistakes
        for i, case in enumerate(self.cases):
            if not candidates or getattr(outcomes[-1].value, "type_name", "") == "TimeoutError":
                return ""
            if i == len(outcomes):
                outcomes.append(self._run(answer, case))
            candidates = [m for m in candidates if self._same(self._mistaken(m, i), outcomes[i])]
        return candidates[0].hint if candidates else ""

    def _mistaken(self, mistake, i):
        """The outcome of a mistake in case i. It is the same every time, so it is computed once."""
        if (mistake, i) not in self._mistakes_known:
            self._mistakes_known[mistake, i] = self._run(mistake.fn, self.cases[i])
        return self._mistakes_known[mistake, i]

    def _same(self, left, right):
        if isinstance(left.value, Raised) or isinstance(right.value, Raised):
            return left.value == right.value
        return self._compare(left.value, right.value) is None and difference(left.cost, right.cost) is None

    def _call(self, case):
        """The case as a call with named arguments, such as `ring(world_size=4)`."""
        names = list(inspect.signature(self.outcome or self.reference).parameters)[bool(self.outcome) :]
        pairs = zip(names, case, strict=False)
        return f"{self.name}({', '.join(f'{name}={show_value(value, width=60)}' for name, value in pairs)})"

    def _price(self, expected, got):
        agrees = f"It agrees with the reference in {len(self.cases)} case{'s' * (len(self.cases) > 1)}"
        prices = [
            f"{name}: {_amount(got.cost[name])} (best known {_amount(best)})" for name, best in expected.cost.items()
        ]
        return f"{agrees}; in the last one, {', '.join(prices)}." if prices else f"{agrees}."


def all_exercises():
    """Find every exercise of the package: {module name: {exercise name: Exercise}}."""
    package = importlib.import_module(__package__)
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = vars(importlib.import_module(f"{__package__}.{info.name}"))
        exercises = {name: value for name, value in module.items() if isinstance(value, Exercise)}
        if exercises:
            found[info.name] = exercises
    return found


def _amount(number):
    return f"{number:,}" if isinstance(number, int) else f"{number:,.6g}"


def _html(text):
    """`text` as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text)).replace("\n", "<br>")
