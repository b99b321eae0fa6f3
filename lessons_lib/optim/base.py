"""What all optimisers share: the walk over the parameters, their state, and the checks of arguments."""

import inspect
from numbers import Real

import torch


class Optimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` whose subclass only says how one parameter moves: `update(theta, g, group)`.

    A subclass lists its numeric hyperparameters in `bounds`, as (name, b): values in [0, b) are accepted.
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

        closure: optional function that computes the loss anew (with gradients) and returns it.
        Returns what `closure` returned, or None. Raises TypeError for a sparse or complex gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for theta in group["params"]:
                if theta.grad is None:
                    continue
                g = theta.grad
                if g.layout is not torch.strided or g.is_complex():
                    raise TypeError(
                        f"{type(self).__name__} takes dense, real gradients; a parameter of shape "
                        f"{tuple(theta.shape)} has one of layout {g.layout} and dtype {g.dtype}"
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
        """Add a group `{"params": [...], "lr": ..., ...}`; what it doesn't name takes the optimiser's value.

        Raises ValueError or TypeError for a hyperparameter outside its range, naming it.
        """
        if isinstance(param_group, dict):
            self.check({**self.defaults, **param_group})
        self._add_checked_group(param_group)

    def check(self, group):
        """Raise ValueError or TypeError when a hyperparameter of `group` is outside its range."""
        for key, bound in self.bounds:
            value, name = group[key], f"{type(self).__name__}: {key}"
            if isinstance(value, torch.Tensor):
                if key != "lr" or value.dim() != 0 or value.requires_grad:
                    raise TypeError(f"{name} must be a number (or, for lr, a 0-dim tensor), not {value!r}")
            elif not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, not {value!r}")
            if not 0 <= value < bound:
                raise ValueError(f"{name} must be at least 0 and below {bound}, not {value}")

    def __setstate__(self, state):
        """Take over a saved state; hyperparameters missing there (as in torch's) keep their value here."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
