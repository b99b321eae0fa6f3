"""The outer optimiser of local SGD: it moves the weights that all ranks started from (lesson 13)."""

import torch
from torch import nn


class Outer:
    """Keeps the common start of a round, and moves it by an optimiser.

    Args:
        numbers: the module's parameters, which all ranks have alike.
        make: makes the optimiser of a list of parameters.

    Attributes:
        start: a copy of `numbers` as they were at the last average.
        optimizer: of `start`.

    Raises:
        TypeError: `make` makes no optimiser.
    """

    def __init__(self, numbers, make):
        self.start = [nn.Parameter(p.detach().clone()) for p in numbers]
        self.optimizer = made(make, self.start, "outer_optimizer")

    @torch.no_grad()
    def turn_back(self, values, moving):
        """Make of `values`, θ_k of the parameters in `moving` (a list of their places), the ways back θ − θ_k."""
        for k, value in zip(moving, values, strict=True):
            torch.sub(self.start[k], value, out=value)

    @torch.no_grad()
    def move(self, ways, moving, numbers):
        """Take a step whose gradient is the mean way back; the new values of the parameters in `moving`."""
        for k in set(range(len(numbers))).difference(moving):
            self.start[k].copy_(numbers[k])  # frozen: whoever has changed it by hand meant it
        self.optimizer.zero_grad(set_to_none=True)
        for k, way in zip(moving, ways, strict=True):
            self.start[k].grad = way
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return [self.start[k].detach() for k in moving]

    def fits(self, numbers):
        """Whether these are parameters such as it began with."""
        return [_look(p) for p in numbers] == [_look(p) for p in self.start]

    @torch.no_grad()
    def restart(self, values):
        """Go on from other `values` than the last average's."""
        for mine, value in zip(self.start, values, strict=True):
            mine.copy_(value)


def made(make, parameters, name):
    """The optimiser that `make` makes of `parameters`. `TypeError` if it is none."""
    optimizer = make(parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{name} made a {type(optimizer).__name__}: a torch.optim.Optimizer is needed")
    return optimizer


def check_makes_optimizer(make, name):
    """Refuse what makes no optimiser, such as an optimiser itself, in words that show what does."""
    if not callable(make) or isinstance(make, nn.Module):
        raise TypeError(
            f"{name} is a {type(make).__name__}: what makes an optimiser of a list of parameters is needed, such as "
            "partial(torch.optim.SGD, lr=0.7)"
        )


def _look(tensor):
    return tensor.shape, tensor.dtype, tensor.device
