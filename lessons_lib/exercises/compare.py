"""Where two values differ first, in words: what a check says about an answer."""

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping

import numpy as np
import torch

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


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
    must be equal. Tensors and arrays must also agree in shape and dtype. A list agrees with a tuple of the same items,
    and a tensor without dimensions with its number. Mappings and dataclasses are compared item by item. An exception
    agrees with another of its type.

    Args:
        expected, got: any values.
        rtol, atol: relative and absolute tolerance.

    Returns:
        None where they agree, or (path, words). The path leads to the place from the outside in, such as
        "item 2, index 0", and is empty for the value itself.
    """
    if isinstance(got, Raised) or isinstance(expected, Raised):
        return _raised(expected, got)
    if isinstance(got, np.generic) or (
        isinstance(got, torch.Tensor) and got.ndim == 0 and isinstance(expected, numbers.Number)
    ):
        got = got.item()
    if isinstance(expected, torch.Tensor | np.ndarray):
        return _arrays(expected, got, rtol, atol)
    if isinstance(expected, numbers.Number) and isinstance(got, numbers.Number):
        return None if _close(expected, got, rtol, atol) else _unlike(expected, got)
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        return _mappings(expected, got, rtol, atol)
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple | range):
        return _sequences(expected, got, rtol, atol)
    if dataclasses.is_dataclass(expected) and type(expected) is type(got):
        names = [field.name for field in dataclasses.fields(expected) if field.compare]
        return _first([(f".{name}", getattr(expected, name), getattr(got, name)) for name in names], rtol, atol)
    if type(expected) is type(got) or isinstance(expected, set | frozenset):
        return None if bool(expected == got) else _unlike(expected, got)
    return "", f"expected {_kind(expected)}, got {_kind(got)}"


def show_value(value, digits=6, width=100):
    """Show `value` in one short line that is the same on every machine: no address, floats to `digits` digits."""
    if isinstance(value, torch.Tensor | np.ndarray):
        if math.prod(value.shape) > 8:
            return _kind(value).split(" ", 1)[1]
        name = "tensor" if isinstance(value, torch.Tensor) else "array"
        text = f"{name}({show_value(value.tolist(), digits)})"
    elif isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        text = f"{float(value):.{digits}g}"
    elif isinstance(value, list) or type(value) is tuple:
        inside = ", ".join(show_value(item, digits) for item in value[:20]) + ", …" * (len(value) > 20)
        text = f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key!r}: {show_value(item, digits)}" for key, item in value.items()) + "}"
    elif isinstance(value, set | frozenset) and value:
        text = "{" + ", ".join(sorted(map(show_value, value))) + "}"
    else:
        text = getattr(value, "__name__", None) or _ADDRESS.sub("", repr(value))
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


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
        return "", f"expected {_kind(expected)}, got {_kind(got)}"
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


def _kind(value):
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{'a tensor' if isinstance(value, torch.Tensor) else 'an array'} of shape {tuple(value.shape)}"
    if isinstance(value, int | float | str):
        return f"{show_value(value)} ({type(value).__name__})"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
