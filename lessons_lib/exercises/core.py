"""Exercises that explain themselves: a reference, the cases it is tried on, and the mistakes people make.

`check` runs the learner's function and the reference on the same cases and compares the outcomes. Where they differ,
the known mistakes are run too: the one with the same outcome as the answer has the hint that fits.
"""

import functools
import importlib
import inspect
import pkgutil
import textwrap

from lessons_lib.exercises.compare import Raised
from lessons_lib.exercises.judge import Judge, amount
from lessons_lib.exercises.mistakes import edit, read_mistakes
from lessons_lib.exercises.ranks import by_rank, on_ranks
from lessons_lib.exercises.running import Outcome, cases_of, run
from lessons_lib.exercises.stub import is_stub
from lessons_lib.exercises.verdict import Hint, Verdict
from lessons_lib.exercises.words import call_in_words

__all__ = ["Exercise", "Hint", "Outcome", "Verdict", "all_exercises", "by_rank", "edit", "on_ranks"]

QUICK_S = 0.2  # a case that takes less is run once more after the others, to see what an answer remembers


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
        may_be_cheaper: whether a cost far below that of the reference is right: it is suspicious where the reference is
            the best way known.
        scratch: the names of arguments that may end in any state. All others must end as they do after the reference:
            unchanged, or changed in place as there.
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
        may_be_cheaper=False,
        scratch=(),
        time_limit_s=20.0,
    ):
        if not inspect.isfunction(reference) and not inspect.isclass(reference):
            raise TypeError(f"reference={reference!r}: a function or a class is needed")
        self.reference, self._cases = reference, cases
        self._mistakes, self.hints = tuple(mistakes), tuple(hints)
        self.outcome, self.time_limit_s = outcome, time_limit_s
        parameters = list(inspect.signature(reference).parameters)
        self._judge = Judge(compare, rtol, atol, slack, may_be_cheaper, tuple(scratch), outcome is None, parameters)
        self.name, self.__doc__ = reference.__name__, reference.__doc__
        self._hints_given, self._expected_known, self._mistakes_known = 0, {}, {}

    @functools.cached_property
    def cases(self):
        cases = cases_of(self._cases)
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
        runs = []
        for i, case in enumerate(self.cases):
            expected = self._expected(i)
            runs.append(self._run(answer, case, quiet=False))
            if runs[-1].outcome.value is ...:
                return self._not_attempted()
            found = self._judge.shortfall(expected, runs[-1])
            if found is not None:
                return self._not_yet(case, found, self._hint_for(answer, runs))
        return self._remembered(answer, runs) or Verdict(self.name, "correct", self._price(expected, runs[-1]))

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

    def _not_yet(self, case, found, hint=""):
        names = list(inspect.signature(self.outcome or self.reference).parameters)[bool(self.outcome) :]
        call, sizes = call_in_words(self.name, names, case)
        more = "" if hint else f" `exercise.{self.name}.hint()` gives a nudge."
        return Verdict(self.name, "not yet", f"`{call}`{found}.{sizes}{more}", hint)

    def _run(self, fn, case, quiet=True):
        # The reference ends in any case, and the first ranks that a busy machine starts may take long.
        patience = 10 if fn is self.reference else 1
        return run(fn, case, self.outcome, patience * self.time_limit_s, quiet)

    def _expected(self, i):
        """The run of the reference in case i. It happens once: no answer can change what is compared with it later."""
        if i not in self._expected_known:
            self._expected_known[i] = self._run_reference(self.cases[i])
        return self._expected_known[i]

    def _run_reference(self, case):
        expected = self._run(self.reference, case)
        value = expected.outcome.value
        if isinstance(value, Raised) and value.type_name not in (self.__doc__ or ""):  # an error is asked for by name
            raise RuntimeError(f"the reference of {self.name} {value}")
        return expected

    def _remembered(self, answer, runs):
        """The verdict on an answer whose earlier calls change what it gives later; None if they do not."""
        for i, first in reversed(list(enumerate(runs))):
            if first.time_s < QUICK_S:
                case, expected = self.cases[i], self._expected(i)
                found = self._judge.shortfall(expected, first)
                if found is not None:
                    return self._not_yet(case, f", whose result later calls have changed{found}; it was right at first")
                found = self._judge.shortfall(expected, self._run(answer, case))
                if found is not None:
                    return self._not_yet(case, f", called once more after other calls{found}; it was right at first")
        return None

    def _hint_for(self, answer, runs):
        """The hint of the first mistake that has the same outcome as the answer in every case; "" if none has."""
        candidates = self.mistakes
        for i, case in enumerate(self.cases):
            if not candidates or getattr(runs[-1].outcome.value, "type_name", "") == "TimeoutError":
                return ""
            if i == len(runs):
                runs.append(self._run(answer, case))
            candidates = [m for m in candidates if self._judge.same(self._mistaken(m, i), runs[i])]
        return candidates[0].hint if candidates else ""

    def _mistaken(self, mistake, i):
        """The run of a mistake in case i. It is the same every time, so it happens once."""
        if (mistake, i) not in self._mistakes_known:
            self._mistakes_known[mistake, i] = self._run(mistake.fn, self.cases[i])
        return self._mistakes_known[mistake, i]

    def _price(self, expected, got):
        agrees = f"It agrees with the reference in {len(self.cases)} case{'s' * (len(self.cases) > 1)}"
        costs, best = got.outcome.cost, expected.outcome.cost
        prices = [f"{name}: {amount(costs[name])} (best known {amount(best[name])})" for name in best]
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
