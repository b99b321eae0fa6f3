"""Does a training run compute on many ranks what it computes on one? Where do they first part? (lesson 23)"""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import nn

from .checkpoint.packing import pack
from .checkpoint.strategies import take
from .errors import check_whole
from .launch import launch
from .parallel import DataParallel
from .parallel.copies import is_piece
from .parallel.tensor.parts import part_of


@dataclass(frozen=True)
class Parting:
    """Where a run first differs from its reference.

    Attributes:
        step: as it was told to `record`.
        tensor: its name.
        ranks: those on which it differs.
        kind: what it looks like, in words: "4 times", "1/4 of it", "other numbers", "nan", "another shape",
            "ranks differ" (from each other), "not recorded".
        size: the largest difference beside the largest number of the reference.
    """

    step: int
    tensor: str
    ranks: tuple
    kind: str
    size: float


class CheckedRun:
    """What `check_run` found; true if the run is equal to its reference.

    Attributes:
        first: the `Parting`, or None.
        num_steps: how many steps were compared.
    """

    def __init__(self, first, num_steps, world_size):
        self.first, self.num_steps, self._world_size = first, num_steps, world_size

    def __bool__(self):
        return self.first is None

    def __str__(self):
        if self.first is None:
            return f"equal on {self._world_size} ranks and on one, in all of {self.num_steps} steps"
        at = self.first
        is_all = len(at.ranks) == self._world_size
        where = "all ranks" if is_all else f"rank {', '.join(map(str, at.ranks))} of {self._world_size}"
        return f"step {at.step}, {at.tensor}, {where}: {at.kind} (off by {at.size:.2g} of the largest number)"


def check_run(train, world_size=4, *, reference=None, rtol=None, **options):
    """Run a training function on one rank and on many, and say where the runs first part.

        def train(comm, record):
            net = DataParallel(model(), comm)
            ...
                loss.backward()
                record(step, net)              # gradients and weights by their names; or record(step, loss=loss, ...)
                optimizer.step()

    Args:
        train: a function of a communicator and `record`, that does the same work however many ranks there are, on the
            same data, with the same start. All ranks call `record(step, module, **tensors)` together, in order of
            steps. Of a module that a strategy has split, the whole is compared.
        world_size: how many ranks.
        reference: another such function, to run on one rank in its place.
        rtol: so much may differ, beside the largest number of a tensor; by default the square root of the precision of
            its dtype.
        options: of `launch`.

    Returns:
        `CheckedRun`.

    Raises:
        RankFailed: a run fails.
        ValueError: nothing was recorded.
    """
    check_whole("world_size", world_size, 1)
    (expected,) = launch(_recorded, reference or train, world_size=1, **options)
    if not expected:
        raise ValueError("train recorded nothing: record(step, net) is needed in each step")
    found = launch(_recorded, train, world_size=world_size, **options)
    return CheckedRun(_first_parting(expected, found, rtol), len({step for step, _ in expected}), world_size)


def _recorded(comm, train):
    told = []

    def record(step, module=None, **tensors):
        check_whole("step", step, 0)
        named = {name: torch.as_tensor(value) for name, value in tensors.items()}
        if module is not None:
            named |= _weights(module) | _gradients(module)
        told.extend((step, {name: value.detach().cpu().clone()}) for name, value in named.items())

    train(comm, record)
    return told


def _weights(module):
    if not isinstance(module, nn.Module):
        raise TypeError(f"record was given a {type(module).__name__}: a module, or tensors by their names, are needed")
    whole = take("weight", {"weight": module})
    return pack(whole["module"] if isinstance(module, DataParallel) else whole, "weight")[0]


def _gradients(module):
    """Of those parameters that a rank has whole."""
    inner = module.module if isinstance(module, DataParallel) else module
    parameters = [(name, p) for name, p in inner.named_parameters() if p.grad is not None]
    return {f"gradient/{name}": p.grad for name, p in parameters if part_of(p) is None and not is_piece(p)}


def _first_parting(expected, found, rtol):
    before = {}  # the reference's last tensor of each name, which all ranks had
    for number, (step, pair) in enumerate(expected):
        ((name, right),) = pair.items()
        theirs = []
        for told in found:
            at, others = told[number] if number < len(told) else (None, {})
            theirs.append(others.get(name) if at == step else None)
        wrong = tuple(rank for rank, value in enumerate(theirs) if not _is_equal(value, right, rtol))
        if wrong:
            kind = _kind(theirs, wrong, right, before.get(name), rtol)
            return Parting(step, name, wrong, kind, _size(theirs[wrong[0]], right))
        before[name] = right
    return None


def _is_equal(value, right, rtol):
    return value is not None and value.shape == right.shape and _size(value, right) <= _limit(right, rtol)


def _limit(right, rtol):
    if rtol is not None:
        return rtol
    return math.sqrt(torch.finfo(right.dtype).eps) if right.is_floating_point() else 0.0


def _size(value, right):
    """The largest difference beside the largest number; infinite where it cannot be said."""
    if value is None or value.shape != right.shape:
        return math.inf
    if not right.numel():
        return 0.0
    off = (value.double() - right.double()).abs().max().item()
    scale = right.double().abs().max().item()
    return math.inf if math.isnan(off) else off / scale if scale else (math.inf if off else 0.0)


def _kind(theirs, wrong, right, before, rtol):
    first = theirs[wrong[0]]
    if first is None:
        return "not recorded"
    if first.shape != right.shape:
        return f"another shape, {tuple(first.shape)} for {tuple(right.shape)}"
    if first.is_floating_point() and first.isnan().any():
        return "nan"
    others = [value for value in theirs if value is not None]
    if any(not _is_equal(value, first, rtol) for value in others):
        return "ranks differ"
    # After a step the weights are the old ones and what was added: it is this that has come out too large or small.
    start = torch.zeros_like(right) if before is None or before.shape != right.shape else before
    for base in (torch.zeros_like(right), start):
        ratio = _ratio(first - base, right - base)
        if ratio is not None:
            return f"{ratio:.4g} times" if ratio >= 1 or ratio <= 0 else f"1/{1 / ratio:.4g} of it"
    return "other numbers"


def _ratio(value, right):
    """By which factor all numbers differ, if by one; of a single number, if it is a whole one or its inverse."""
    if not right.is_floating_point() or not right.any():
        return None
    large = right.abs() > 1e-3 * right.abs().max()
    ratios = (value[large] / right[large]).double().flatten().tolist()
    middle = statistics.median(ratios)
    is_one = all(abs(each - middle) <= 1e-3 * abs(middle) for each in ratios)
    if len(ratios) == 1 and middle:
        larger = max(abs(middle), 1 / abs(middle))
        is_one = abs(larger - round(larger)) <= 1e-3
    return middle if is_one and abs(middle - 1) > 1e-3 and middle else None
