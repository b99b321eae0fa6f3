"""Gradient descent, with momentum."""

from math import inf

from .base import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent: against the gradient, or against its running sum.

        g ← g + λ θ                    λ = weight_decay
        b ← μ b + (1 − τ) g            μ = momentum, τ = dampening;  at the first step b ← g
        d ← b,  or  g + μ b            nesterov=True looks one step of momentum ahead;  μ = 0: d ← g
        θ ← θ − lr · d

    State per parameter: `momentum_buffer` b, one tensor of its shape (none when μ = 0).

    Args:
        params: parameters, or groups of them with their own hyperparameters, as in torch.
        lr, momentum, dampening, weight_decay: finite numbers ≥ 0, or tensors of one number.
        nesterov: needs momentum above 0, and dampening 0.
        maximize: climb instead of descend (g ← −g first).

    Raises:
        ValueError, TypeError: a hyperparameter is outside its range, or no number.

    Differs from torch: NaN, infinite numbers and a negative dampening are refused.
    Source: Polyak (1964); Sutskever et al. (2013), eq. 1–4, with lr outside b as in torch. Lessons 01, 03.
    """

    bounds = (("lr", inf), ("momentum", inf), ("dampening", inf), ("weight_decay", inf))

    def __init__(
        self,
        params,
        lr=1e-3,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        *,
        maximize=False,
    ):
        hyper = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**hyper, "nesterov": nesterov, "maximize": maximize})

    def check(self, group):
        super().check(group)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"SGD: momentum={group['momentum']}, dampening={group['dampening']}: with nesterov=True a momentum "
                "above 0 and a dampening of 0 are needed"
            )

    def update(self, theta, g, group):
        lr, mu, tau = group["lr"], group["momentum"], group["dampening"]
        if group["weight_decay"] != 0:
            g = g.add(theta, alpha=group["weight_decay"])
        if mu != 0:
            state = self.state[theta]
            b = state.get("momentum_buffer")
            if b is None:
                b = state["momentum_buffer"] = g.clone()
            else:
                b.mul_(mu).add_(g, alpha=1 - tau)
            g = g.add(b, alpha=mu) if group["nesterov"] else b
        theta.add_(g, alpha=-lr)
