"""Where two values differ first, in words: what a check says about an answer."""

import dataclasses
import math
import numbers
from collections.abc import Mapping

import numpy as np
import torch

from lessons_lib.exercises.words import kind_of, show_value


@dataclasses.dataclass(frozen=True)
class Raised:
    """What a function raised instead of returning.

    Attributes:
        type_name: the name of the exception's type.
        message: its first line.
        line: the line of the learner's code that raised, or "".
    """

    type_name: str
    message: str
    line: str = dataclasses.field(default="", compare=False)

    def __str__(self):
        text = f"{self.type_name}: {self.message}" if self.message else self.type_name
        return f"raised {text} ({self.line})" if self.line else f"led to {text}"


def difference(expected, got, rtol=1e-5, atol=1e-6):
    """Find the first place where `got` differs from `expected`.

    Numbers agree when |got − expected| <= atol + rtol·|expected|, and NaN agrees with NaN; integers, booleans and text
    must be equal. Where a real number is expected any kind of it will do: int, float, Fraction, one of NumPy, a tensor
    or array without dimensions. Where an integer is expected, a float will not do, and neither is a boolean.
    Tensors and arrays must also agree in shape and dtype. A list agrees with a tuple of the same items. Mappings and
    dataclasses are compared item by item. An exception agrees with another of its type.

    Args:
        expected, got: any values.
        rtol, atol: relative and absolute tolerance.

    Returns:
        None where they agree, or (path, words). The path leads to the place from the outside in, such as
        "item 2, index 0", and is empty for the value itself.
    """
    if isinstance(got, Raised) or isinstance(expected, Raised):
        return _raised(expected, got)
    if isinstance(expected, torch.Tensor | np.ndarray):
        return _arrays(expected, got, rtol, atol)
    expected, got = as_number(expected), as_number(got)
    if isinstance(expected, numbers.Number) and isinstance(got, numbers.Number):
        return _numbers(expected, got, rtol, atol)
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        return _mappings(expected, got, rtol, atol)
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple | range):
        return _sequences(expected, got, rtol, atol)
    if dataclasses.is_dataclass(expected) and type(expected) is type(got):
        names = [field.name for field in dataclasses.fields(expected) if field.compare]
        return _first([(f".{name}", getattr(expected, name), getattr(got, name)) for name in names], rtol, atol)
    if type(expected) is type(got) or isinstance(expected, set | frozenset):
        return None if bool(expected == got) else _unlike(expected, got)
    return "", f"expected {kind_of(expected)}, got {kind_of(got)}"


def as_number(value):
    """The number of Python in a number of NumPy and in a tensor or array without dimensions; else `value` as it is."""
    alone = isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0
    return value.item() if alone or isinstance(value, np.generic) else value


def not_whole(value):
    """Say in words which part of a number, list, tuple or dictionary is no whole number; "" if all of it is."""
    value = as_number(value)
    if isinstance(value, list | tuple | dict):
        parts = value.values() if isinstance(value, dict) else value
        return next(filter(None, map(not_whole, parts)), "")
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return "" if whole else f"{value!r} ({type(value).__name__}): a whole number is needed"


def _numbers(expected, got, rtol, atol):
    if isinstance(expected, bool) != isinstance(got, bool):
        return "", f"expected {kind_of(expected)}, got {kind_of(got)}"
    if isinstance(expected, numbers.Real) and not isinstance(got, numbers.Real):
        return "", f"expected {kind_of(expected)}, got {kind_of(got)}"
    if isinstance(expected, numbers.Integral) and not isinstance(got, numbers.Integral):
        return "", f"expected {show_value(expected)}, got {got!r} ({type(got).__name__}): a whole number is needed"
    try:
        agrees = _close(expected, got, rtol, atol)
    except (OverflowError, TypeError):  # an integer that no float can hold; a Decimal
        agrees = False
    return None if agrees else _unlike(expected, got)


def _raised(expected, got):
    if not isinstance(got, Raised):
        return "", f"expected a {expected.type_name}, got {show_value(got)}"
    agrees = isinstance(expected, Raised) and expected.type_name == got.type_name
    return None if agrees else ("", str(got))


def _close(expected, got, rtol, atol):
    if isinstance(expected, numbers.Integral):
        return bool(expected == got)
    if expected != expected or got != got:
        return expected != expected and got != got
    return bool(expected == got or abs(got - expected) <= atol + rtol * abs(expected) < math.inf)


def _arrays(expected, got, rtol, atol):
    kind = torch.Tensor if isinstance(expected, torch.Tensor) else np.ndarray
    if not isinstance(got, kind):
        return "", f"expected {kind_of(expected)}, got {kind_of(got)}"
    if expected.shape != got.shape:
        return "", f"expected shape {tuple(expected.shape)}, got shape {tuple(got.shape)}"
    if expected.dtype != got.dtype:
        return "", f"expected dtype {expected.dtype}, got dtype {got.dtype}"
    if kind is torch.Tensor:
        expected, got = expected.detach().cpu(), got.detach().cpu()
        real = expected.is_floating_point() or expected.is_complex()
        same = torch.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True) if real else got == expected
        same = same.numpy()
    else:
        real = expected.dtype.kind in "fc"
        same = np.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True) if real else got == expected
    if same.all():
        return None
    index = tuple(int(i) for i in np.argwhere(~same)[0])
    path = f"index {index[0] if len(index) == 1 else index}" if index else ""
    return path, _unlike(expected[index].item(), got[index].item())[1]


def _mappings(expected, got, rtol, atol):
    missing = [key for key in expected if key not in got]
    extra = [key for key in got if key not in expected]
    if missing or extra:
        return "", f"{_key((missing or extra)[0])} is {'missing' if missing else 'too much'}"
    return _first([(_key(key), expected[key], got[key]) for key in expected], rtol, atol)


def _sequences(expected, got, rtol, atol):
    pairs = enumerate(zip(expected, got, strict=False))
    found = _first([(f"item {i}", left, right) for i, (left, right) in pairs], rtol, atol)
    if found is None and len(expected) != len(got):
        return "", f"expected {_items(expected)}, got {_items(got)}"
    return found


def _first(pairs, rtol, atol):
    for step, expected, got in pairs:
        found = difference(expected, got, rtol, atol)
        if found is not None:
            return ", ".join([step, *filter(None, found[:1])]), found[1]
    return None


def _unlike(expected, got):
    left, right = show_value(expected), show_value(got)
    if left == right:
        left, right = show_value(expected, digits=17), show_value(got, digits=17)
    return "", f"expected {left}, got {right}"


def _items(values):
    return f"{len(values)} item{'s' * (len(values) != 1)}"


def _key(key):
    """A key as a step of the path: `rank 2` reads as it stands, any other key is quoted."""
    return key if isinstance(key, str) and " " in key else f"key {key!r}"
