"""Values in one short line, the same on every machine, whatever they are."""

import math
import numbers
import re

import numpy as np
import torch

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
MOST_NUMBERS = 8  # a tensor of more is named by its size


def show_value(value, digits=6, width=100):
    """Show `value` in one short line that is the same on every machine: no address, floats to `digits` digits."""
    try:
        text = " ".join(_shown(value, digits).split())
    except Exception:  # its own `__repr__` fails, or it has more digits than Python prints
        text = _one(type(value).__name__)
    return text if len(text) <= width else text[: width - 1] + "…"


def _shown(value, digits):
    if isinstance(value, torch.Tensor | np.ndarray):
        if math.prod(value.shape) > MOST_NUMBERS:
            return kind_of(value).split(" ", 1)[1]
        return f"{'tensor' if isinstance(value, torch.Tensor) else 'array'}({show_value(value.tolist(), digits)})"
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.{digits}g}"
    if isinstance(value, list) or type(value) is tuple:
        inside = ", ".join(show_value(item, digits) for item in value[:20]) + ", …" * (len(value) > 20)
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {show_value(item, digits)}" for key, item in value.items()) + "}"
    if isinstance(value, set | frozenset) and value:
        return "{" + ", ".join(sorted(map(show_value, value))) + "}"
    return getattr(value, "__name__", None) or _ADDRESS.sub("", repr(value))


def kind_of(value):
    """What kind of value it is, such as "3 (int)", "a tensor of shape (6, 2)" or "a Point"."""
    if value is None:
        return "None"
    if getattr(value, "is_nested", False) is True:
        return "a nested tensor"
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{'a tensor' if isinstance(value, torch.Tensor) else 'an array'} of shape {tuple(value.shape)}"
    if isinstance(value, int | float | str):
        return f"{show_value(value)} ({type(value).__name__})"
    return _one(type(value).__name__)


def size_of(value):
    """A tensor or array by its size, such as "a tensor of 6 rows and 2 columns"."""
    kind = "a tensor" if isinstance(value, torch.Tensor) else "an array"
    if value.ndim == 1:
        return f"{kind} of {_count(len(value), 'number')}"
    if value.ndim == 2:
        return f"{kind} of {_count(value.shape[0], 'row')} and {_count(value.shape[1], 'column')}"
    return f"{kind} of shape {tuple(value.shape)}"


def call_in_words(name, parameters, case):
    """Show a case as a call, such as `ring(world_size=4)`, and in a sentence the sizes of the tensors that are large.

    Returns:
        (call, sizes), for instance ("fit(U, k=2)", " (U: a tensor of 6 rows and 2 columns.)"); sizes may be "".
    """
    shown, sizes = [], []
    for parameter, value in zip(parameters, case, strict=False):
        if isinstance(value, torch.Tensor | np.ndarray) and math.prod(value.shape) > MOST_NUMBERS:
            shown.append(parameter)
            sizes.append(f"{parameter}: {size_of(value)}")
        else:
            shown.append(f"{parameter}={show_value(value, width=60)}")
    return f"{name}({', '.join(shown)})", f" ({'; '.join(sizes)}.)" if sizes else ""


def _count(number, noun):
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _one(name):
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"
