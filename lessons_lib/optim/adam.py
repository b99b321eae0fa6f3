"""Adam and AdamW: momentum and a step length for every parameter, both corrected for their start at zero."""

from math import inf

import torch

from .base import Optimizer


class Adam(Optimizer):
    """Running mean of the gradient, divided by the root of its running mean square.

        g ← g + λ θ                        λ = weight_decay (an L2 penalty; AdamW treats it differently)
        m ← β₁ m + (1 − β₁) g              β₁, β₂ = betas: the shares that are kept
        v ← β₂ v + (1 − β₂) g²
        m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)      t: number of this step, from 1
        θ ← θ − lr · m̂ / (√v̂ + ε)         ε = eps guards the division

    params: parameters, or groups of them with their own hyperparameters, as in torch.
    lr, eps, weight_decay: numbers ≥ 0 (lr may be a 0-dim tensor); betas: two numbers in [0, 1).
    amsgrad: divide by the largest v so far. maximize: climb instead of descend (g ← −g first).
    bias_correction: False leaves m̂ = m and v̂ = v.
    State per parameter: `step` t; tensors of its shape `exp_avg` m, `exp_avg_sq` v (and `max_exp_avg_sq`).
    Raises ValueError or TypeError for a number outside its range.
    Differs from torch: bias_correction can be switched off; updates one parameter at a time also on a GPU,
    where torch's foreach and fused forms need fewer launches.
    Source: Kingma and Ba (2015), algorithm 1; AMSGrad: Reddi et al. (2018), algorithm 2. Lesson 03.
    """

    bounds = (("lr", inf), ("beta1", 1), ("beta2", 1), ("eps", inf), ("weight_decay", inf))

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        amsgrad=False,
        *,
        maximize=False,
        bias_correction=True,
    ):
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, {**hyper, "maximize": maximize, "bias_correction": bias_correction})

    def check(self, group):
        if not isinstance(group["betas"], tuple | list) or len(group["betas"]) != 2:
            raise ValueError(f"{type(self).__name__}: betas must be two numbers in [0, 1), not {group['betas']!r}")
        super().check({**group, "beta1": group["betas"][0], "beta2": group["betas"][1]})

    def decay(self, theta, g, group):
        """Weight decay: the gradient to go on with. `theta` stays as it is."""
        return g.add(theta, alpha=group["weight_decay"])

    def update(self, theta, g, group):
        lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
        t = self.count_step(theta)
        if group["weight_decay"] != 0:
            g = self.decay(theta, g, group)
        m = self.buffer(theta, "exp_avg").lerp_(g, 1 - beta1)
        v = self.buffer(theta, "exp_avg_sq").mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if group["amsgrad"]:
            largest = self.buffer(theta, "max_exp_avg_sq")
            v = torch.maximum(largest, v, out=largest)
        correction1, correction2 = (1 - beta1**t, 1 - beta2**t) if group["bias_correction"] else (1, 1)
        root = v.sqrt().div_(correction2**0.5).add_(eps)
        theta.addcdiv_(m, root, value=-lr / correction1)


class AdamW(Adam):
    """Adam with decoupled weight decay: the parameter itself shrinks, and neither m nor v sees the decay.

        θ ← θ − lr · λ θ,  then Adam's step on the plain gradient

    Arguments, state and errors as in `Adam` (maximize and bias_correction too), but weight_decay λ is 0.01.
    Source: Loshchilov and Hutter (2019), algorithm 2 (lr also multiplies λ, as in torch). Lesson 03.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, **keywords):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **keywords)

    def decay(self, theta, g, group):
        """Weight decay: shrinks `theta` in place; the gradient is handed back as it is."""
        theta.mul_(1 - group["lr"] * group["weight_decay"])
        return g
