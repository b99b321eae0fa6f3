"""The mistakes people make, each with its hint: a function whose docstring is the hint, or an edit of the reference."""

import ast
import inspect
import itertools
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that people give, as a function, and the hint that helps whoever gave it."""

    fn: Callable
    hint: str


@dataclass(frozen=True)
class Edit:
    """Pieces of the reference's code, what stands there instead in a wrong answer, and the hint."""

    replacements: tuple[tuple[str, str], ...]
    hint: str


def edit(*texts):
    """Describe a mistake as an edit of the reference: `edit("old code", "new code", "hint")`.

    Args:
        texts: old code, new code, further pairs of them where one replacement is not enough, and at last the hint.

    Returns:
        An `Edit`, for the list of mistakes of an `Exercise`.

    Raises:
        TypeError: the texts are not pairs and a hint.
    """
    if len(texts) < 3 or len(texts) % 2 == 0:
        raise TypeError(f"edit got {len(texts)} texts: old and new code in pairs and a hint are needed")
    *code, hint = texts
    return Edit(tuple(zip(code[::2], code[1::2], strict=True)), hint)


def read_mistakes(reference, mistakes):
    """Make a `Mistake` of each entry of the list of an exercise.

    Args:
        reference: the right answer, a function or a class.
        mistakes: functions with their hint as docstring, and `Edit`s of the reference.

    Returns:
        A tuple of `Mistake`.

    Raises:
        TypeError: an entry is neither a function with a docstring nor an edit.
        ValueError: what an edit replaces does not stand exactly once in the reference.
    """
    return tuple(_edited(reference, each) if isinstance(each, Edit) else _with_its_hint(each) for each in mistakes)


def _with_its_hint(fn):
    hint = getattr(fn, "__doc__", None)
    if not callable(fn) or not hint:
        raise TypeError(f"mistakes has {fn!r}: a function whose docstring is its hint is needed, or an edit")
    return Mistake(fn, " ".join(hint.split()))


def _edited(reference, change):
    source = _code_of(reference)
    for old, new in change.replacements:
        if source.count(old) != 1:
            times = f"{source.count(old)} times"
            raise ValueError(f"old={old!r}: code that stands in {reference.__name__} once is needed, not {times}")
        source = source.replace(old, new)
    # The edited function sees what the reference sees, and does not replace it.
    names = dict(getattr(reference, "__globals__", None) or vars(sys.modules[reference.__module__]))
    exec(compile(source, f"<an edit of {reference.__name__}>", "exec"), names)
    return Mistake(names[reference.__name__], change.hint)


def _code_of(reference):
    """The source of the reference without its docstring, in which an edit would change nothing."""
    source = textwrap.dedent(inspect.getsource(reference))
    first = ast.parse(source).body[0].body[0]
    if not reference.__doc__:
        return source
    lines = source.splitlines(keepends=True)
    return "".join(itertools.chain(lines[: first.lineno - 1], lines[first.end_lineno :]))
