"""What a function does to its arguments: their state before and after, tensor by tensor."""

import collections
import contextlib
import dataclasses
import functools
import inspect

import numpy as np
import torch

from lessons_lib.exercises.compare import difference


class Watched:
    """A function that remembers which of its arguments it has changed.

    Attributes:
        changed: {number of the argument: its name}, over all calls.
        ends: {number of the argument: its state after the last call}.
    """

    def __init__(self, fn):
        functools.update_wrapper(self, fn)
        self.changed, self.ends = {}, {}

    def __call__(self, *args, **kwargs):
        try:
            arguments = inspect.signature(self.__wrapped__).bind(*args, **kwargs).arguments
        except (TypeError, ValueError):  # wrong arguments: Python itself says it best
            return self.__wrapped__(*args, **kwargs)
        with _unseen_by_meters():
            seen = [(name, Snapshot(value)) for name, value in arguments.items()]
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            with _unseen_by_meters():
                self._look_at(seen)

    def _look_at(self, seen):
        for number, (name, snapshot) in enumerate(seen):
            self.ends[number] = snapshot.now()
            if difference(snapshot.before, self.ends[number], 0.0, 0.0) is not None:
                self.changed[number] = name


class Snapshot:
    """The state of a value as it is now, to compare with its state later.

    Tensors, arrays, lists, tuples, dictionaries, sets, dataclasses, modules and optimisers count, inside one another
    too, with a tensor's `.grad` and `requires_grad` and a module's training flag. Any other object counts as unchanged.

    Attributes:
        before: the state at the start.
    """

    def __init__(self, value):
        self.value, self.tensors = value, {}
        state = _state(value, self.tensors, {})
        self.before = {"its parts": state, "the tensors given": self._tensors()}

    def now(self):
        """The state now. The tensors that were there at the start are looked at even where others took their place."""
        return {"its parts": _state(self.value, {}, {}), "the tensors given": self._tensors()}

    def _tensors(self):
        return [tensor.detach().clone() for tensor in self.tensors.values()]


@contextlib.contextmanager
def _unseen_by_meters():
    """A mode of the exercise that counts operations or tensors must not count the copies of the state."""
    # Torch has no public way to do something behind the back of its modes.
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.no_grad():
        yield


def _state(value, tensors, seen):
    if id(value) in seen:
        return f"part {seen[id(value)]}"
    if isinstance(value, torch.Tensor):
        tensors[id(value)] = value
        parts = {"values": value.detach().clone(), "requires_grad": value.requires_grad}
        if value.is_leaf and value.grad is not None:
            parts["grad"] = _state(value.grad, {}, seen)  # not kept: its memory is free once it is dropped
        return parts
    if isinstance(value, np.ndarray):
        return value.copy()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        return value
    seen[id(value)] = len(seen)
    if isinstance(value, dict):
        return [(_state(key, tensors, seen), _state(item, tensors, seen)) for key, item in value.items()]
    if isinstance(value, list | tuple | collections.deque):
        return [_state(item, tensors, seen) for item in value]
    if isinstance(value, set | frozenset):
        return set(value)
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, torch.nn.Module | torch.optim.Optimizer) or dataclasses.is_dataclass(value):
        return {name: _state(part, tensors, seen) for name, part in vars(value).items()}
    return "an object"
