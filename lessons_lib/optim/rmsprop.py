"""RMSProp: every parameter gets its own step length."""

from math import inf

from .base import Optimizer


class RMSProp(Optimizer):
    """Divide each gradient by the root of its own running mean square.

        g ← g + λ θ                        λ = weight_decay
        v ← α v + (1 − α) g²               α = alpha: the share of v that is kept
        s ← √v + ε,  or  √(v − m²) + ε     centered=True, with m ← α m + (1 − α) g: the spread, not the size
        θ ← θ − lr · g / s,  or  b ← μ b + g / s,  θ ← θ − lr · b     with μ = momentum > 0

    State per parameter: `step`, `square_avg` v; `grad_avg` m if centered; `momentum_buffer` b with momentum.

    Args:
        params: parameters, or groups of them with their own hyperparameters, as in torch.
        lr, eps, weight_decay, momentum: finite numbers ≥ 0, or tensors of one number.
        alpha: the same, below 1.
        centered: divide by the spread of the gradients, not by their size.
        maximize: climb instead of descend (g ← −g first).

    Raises:
        ValueError, TypeError: a hyperparameter is outside its range, or no number.

    Differs from torch: the name (torch.optim.RMSprop), and alpha ≥ 1, which makes v useless, is refused, as are
    infinite numbers.
    Source: Hinton, Coursera lecture 6e (2012); centred form: Graves (2013), eq. 38–41. Lesson 03.
    """

    bounds = (("lr", inf), ("alpha", 1), ("eps", inf), ("weight_decay", inf), ("momentum", inf))

    def __init__(
        self,
        params,
        lr=1e-2,
        alpha=0.99,
        eps=1e-8,
        weight_decay=0.0,
        momentum=0.0,
        centered=False,
        *,
        maximize=False,
    ):
        hyper = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**hyper, "centered": centered, "maximize": maximize})

    def update(self, theta, g, group):
        lr, alpha, mu = group["lr"], group["alpha"], group["momentum"]
        self.count_step(theta)
        if group["weight_decay"] != 0:
            g = g.add(theta, alpha=group["weight_decay"])
        v = self.buffer(theta, "square_avg")
        v.mul_(alpha).addcmul_(g, g, value=1 - alpha)
        if group["centered"]:
            m = self.buffer(theta, "grad_avg").lerp_(g, 1 - alpha)
            s = v.addcmul(m, m, value=-1).sqrt_().add_(group["eps"])
        else:
            s = v.sqrt().add_(group["eps"])
        if mu > 0:
            b = self.buffer(theta, "momentum_buffer")
            b.mul_(mu).addcdiv_(g, s)
            theta.add_(b, alpha=-lr)
        else:
            theta.addcdiv_(g, s, value=-lr)
