"""What all optimisers share: the walk over the parameters, their state, and the checks of arguments."""

import inspect
from math import inf
from numbers import Real

import torch


class Optimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` whose subclass only says how one parameter moves: `update(theta, g, group)`.

    A subclass lists its numeric hyperparameters in `bounds`, as (name, b): values in [0, b) are accepted, as numbers
    or as tensors of one number.
    The state of a parameter has torch's names, so that state_dicts go both ways between torch and here.
    torch's foreach, fused, capturable and differentiable are left out.
    """

    bounds: tuple[tuple[str, float], ...] = ()

    # torch wraps these four so that its compiler leaves them alone, and the wrapper imports that compiler:
    # 1.5 s and 90 MB in every process. The functions inside do the same work without.
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    _add_checked_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

    def update(self, theta, g, group):
        """Move the parameter `theta` in place, given its gradient `g` and its group's hyperparameters."""
        raise NotImplementedError(f"{type(self).__name__} must define update(theta, g, group)")

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient, once; the gradients stay as they are.

        Args:
            closure: optional function that computes the loss anew (with gradients) and returns it.

        Returns:
            What `closure` returned, or None.

        Raises:
            TypeError: a gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for param_group in self.param_groups:
            group = {name: as_scalar(value) for name, value in param_group.items()}
            for theta in group["params"]:
                if theta.grad is None:
                    continue
                g = theta.grad
                if g.layout is not torch.strided or g.is_complex():
                    raise TypeError(
                        f"{type(self).__name__}: the gradient of a parameter of shape {tuple(theta.shape)} has layout "
                        f"{g.layout} and dtype {g.dtype}: a dense and real one is needed"
                    )
                self.update(theta, -g if group["maximize"] else g, group)
        return loss

    def buffer(self, theta, name):
        """The state tensor `name` of the parameter `theta`: zeros of its shape at first."""
        state = self.state[theta]
        if name not in state:
            state[name] = torch.zeros_like(theta, memory_format=torch.preserve_format)
        return state[name]

    def count_step(self, theta):
        """Add 1 to the number of updates of `theta` and return it. Float32 on the CPU, as torch stores it."""
        state = self.state[theta]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
        state["step"] += 1
        return float(state["step"])

    def add_param_group(self, param_group):
        """Add a group of parameters.

        Args:
            param_group: `{"params": [...], "lr": ..., ...}`; what it doesn't name takes the optimiser's value.

        Raises:
            ValueError, TypeError: a hyperparameter is outside its range, or parameters are none or come twice.
        """
        if isinstance(param_group, dict):
            self.check({**self.defaults, **param_group})
        self._add_checked_group(param_group)

    def check(self, group):
        """Refuse a group with a hyperparameter outside its range.

        Raises:
            ValueError: a number is outside, or a tensor does not hold one number.
            TypeError: it is no number at all.
        """
        for name, bound in self.bounds:
            value, range_ = group[name], "at least 0" + (f" and below {bound}" if bound < inf else ", and finite,")
            wrong = f"{type(self).__name__}: {name}={value!r}: a number of {range_} is needed"
            if not isinstance(value, Real | torch.Tensor):
                raise TypeError(wrong)
            if (isinstance(value, torch.Tensor) and value.numel() != 1) or not 0 <= value < bound:
                raise ValueError(wrong)

    def __setstate__(self, state):
        """Take over a saved state. Switches missing there, such as those torch does not have, keep their value here.

        Raises:
            ValueError: the state is of another optimiser, or holds a hyperparameter outside its range.
        """
        defaults = state.get("defaults") or self.defaults
        for group in state["param_groups"]:
            for name, default in defaults.items():
                if name not in group and not isinstance(default, bool):
                    raise ValueError(f"state without {name}: a state of {type(self).__name__} is needed")
                group.setdefault(name, default)
            self.check(group)
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch's base class adds it; nothing here reads it


def as_scalar(value):
    """Give a tensor of one number as 0-dim, which torch's arithmetic takes for a number; numbers stay as they are."""
    return value.detach().squeeze() if isinstance(value, torch.Tensor) else value
