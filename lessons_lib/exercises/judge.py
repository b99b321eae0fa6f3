"""Where a run of an answer falls short of a run of the reference: value, faults, arguments, settings, costs."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from lessons_lib.exercises.compare import Raised, difference
from lessons_lib.exercises.time_limit import in_time
from lessons_lib.exercises.words import kind_of

CHEAPER = 1.5  # a cost below that of the reference by more than this factor is no better way, but not counted in full
LONGEST_S = 10.0  # an answer's own `__eq__` may never end


@dataclass(frozen=True)
class Judge:
    """The rules of one exercise, as in `Exercise`. `parameters`: the names of the reference's parameters."""

    compare: Callable | None
    rtol: float
    atol: float
    slack: float
    may_be_cheaper: bool
    scratch: tuple
    ends_count: bool
    parameters: list

    def shortfall(self, expected, got):
        """Where the `Run` `got` falls short of `expected`, as the rest of a sentence that begins with the call.

        Returns:
            Words, or None if it does not fall short.
        """
        rules = self._faults, self._value, self._arguments, self._ends, self._settings, self._too_dear, self._too_cheap
        try:
            return in_time(lambda: next(filter(None, (rule(expected, got) for rule in rules)), None), LONGEST_S)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the answer's value is of a kind that nothing was made for
            return f": got {kind_of(got.outcome.value)}, which cannot be compared ({type(error).__name__})"

    def same(self, left, right):
        """Whether two runs cannot be told apart: then the hint for one is right for the other."""
        values = left.outcome.value, right.outcome.value
        if any(isinstance(value, Raised) for value in values):
            return _same_error(*values)
        told_apart = self._value, self._ends, self._settings
        try:
            return (
                left.outcome.faults == right.outcome.faults
                and left.changed.keys() == right.changed.keys()
                and difference(left.outcome.cost, right.outcome.cost) is None
                and not in_time(lambda: any(rule(left, right) for rule in told_apart), LONGEST_S)
            )
        except KeyboardInterrupt:
            raise
        except BaseException:  # as in `shortfall`
            return False

    def _faults(self, expected, got):
        new = [fault for fault in got.outcome.faults if fault not in expected.outcome.faults]
        return f" {new[0]}" if new else None

    def _value(self, expected, got):
        found = self._compared(expected.outcome.value, got.outcome.value)
        if found is None:
            return None
        path, words = found
        if got.outcome.value is None:
            words += " (is a `return` missing?)"
        join = " " if isinstance(got.outcome.value, Raised) else ": "
        return (f", {path}" if path else "") + join + words

    def _compared(self, expected, got):
        if self.compare is None or isinstance(expected, Raised) or isinstance(got, Raised):
            return difference(expected, got, self.rtol, self.atol)
        words = self.compare(expected, got)
        return None if words is None else ("", words)

    def _arguments(self, expected, got):
        for number, name in got.changed.items():
            if number not in expected.changed and not self._is_scratch(number):
                return f" changed its argument `{name}`: it must stay as it is"
        return None

    def _ends(self, expected, got):
        """What the reference changes in place must end as it ends there."""
        for number, name in expected.changed.items() if self.ends_count else ():
            found = difference(expected.ends[number], got.ends.get(number), self.rtol, self.atol)
            if found is not None and not self._is_scratch(number):
                path, words = found
                return f", argument `{name}` afterwards, {path}: {words}"
        return None

    def _is_scratch(self, number):
        return number < len(self.parameters) and self.parameters[number] in self.scratch

    def _settings(self, expected, got):
        new = [words for words in got.left if words not in expected.left]
        return f" left {new[0]}: put it back as it was" if new else None

    def _too_dear(self, expected, got):
        for name, best in expected.outcome.cost.items():
            paid = got.outcome.cost[name]
            if paid > best * self.slack * (1 + 1e-9):
                return (
                    f" gives the right values, but {name}: {amount(paid)}, where {amount(best * self.slack)} is enough"
                )
        return None

    def _too_cheap(self, expected, got):
        for name, best in expected.outcome.cost.items():
            paid = got.outcome.cost[name]
            if paid * CHEAPER < best and not self.may_be_cheaper:
                found = f"{name}: {amount(paid)}, where {amount(best)} is the least that is known to do"
                return f" gives the right values with {found}: something is done where it is not counted"
        return None


def _same_error(left, right):
    """Whether two values are the same error; which of the ranks that wait for each other are named is chance."""
    if getattr(left, "type_name", "") != "CollectiveMismatch" or not isinstance(right, Raised):
        return left == right
    return left.type_name == right.type_name and _first_call(left.message) == _first_call(right.message)


def _first_call(message):
    """What the first rank that waits is said to do, without numbers; a rank at its end is named by chance."""
    calls = re.sub(r"\d+|the ranks disagree: ", "", message).split("; ")
    return next((call for call in calls if not call.endswith("return from the function")), calls[0])


def amount(number):
    """A cost in digits that are easy to read."""
    return f"{number:,}" if isinstance(number, int) else f"{number:,.6g}"
