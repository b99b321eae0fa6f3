"""Adam and AdamW: momentum and a step length for every parameter, both corrected for their start at zero."""

from math import inf

import torch

from .base import Optimizer, as_scalar


class Adam(Optimizer):
    """Running mean of the gradient, divided by the root of its running mean square.

        g ← g + λ θ                        λ = weight_decay (an L2 penalty; AdamW treats it differently)
        m ← β₁ m + (1 − β₁) g              β₁, β₂ = betas: the shares that are kept
        v ← β₂ v + (1 − β₂) g²
        m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)      t: number of this step, from 1
        θ ← θ − lr · m̂ / (√v̂ + ε)         ε = eps guards the division

    State per parameter: `step` t; tensors of its shape `exp_avg` m, `exp_avg_sq` v (and `max_exp_avg_sq`).

    Args:
        params: parameters, or groups of them with their own hyperparameters, as in torch.
        lr, eps, weight_decay: finite numbers ≥ 0, or tensors of one number.
        betas: two numbers in [0, 1), or two such tensors.
        amsgrad: divide by the largest v so far.
        maximize: climb instead of descend (g ← −g first).
        bias_correction: False leaves m̂ = m and v̂ = v.

    Raises:
        ValueError, TypeError: a hyperparameter is outside its range, or no number.

    Differs from torch: bias_correction can be switched off; infinite numbers are refused; updates one parameter at a
    time also on a GPU, where torch's foreach and fused forms need fewer launches.
    Source: Kingma and Ba (2015), algorithm 1; AMSGrad: Reddi et al. (2018), algorithm 2. Lesson 03.
    """

    decoupled = False  # whether weight decay stays out of m and v
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
        betas, decoupled = group["betas"], group.get("decoupled_weight_decay", self.decoupled)
        wrong = f"{type(self).__name__}: betas={betas!r}: two numbers in [0, 1), or two tensors of one, are needed"
        if not isinstance(betas, tuple | list | torch.Tensor) or (isinstance(betas, torch.Tensor) and betas.dim() != 1):
            raise TypeError(wrong)
        if len(betas) != 2 or isinstance(betas[0], torch.Tensor) != isinstance(betas[1], torch.Tensor):
            raise ValueError(wrong)
        super().check({**group, "beta1": betas[0], "beta2": betas[1]})
        if decoupled != self.decoupled and group["weight_decay"] != 0:  # in a state that torch saved
            raise ValueError(f"{type(self).__name__}: decoupled_weight_decay={decoupled}: {self.decoupled} is needed")

    def decay(self, theta, g, group):
        """Weight decay: the gradient to go on with. `theta` stays as it is."""
        return g.add(theta, alpha=group["weight_decay"])

    def update(self, theta, g, group):
        lr, (beta1, beta2), eps = group["lr"], map(as_scalar, group["betas"]), group["eps"]
        t = self.count_step(theta)
        if group["weight_decay"] != 0:
            g = self.decay(theta, g, group)
        kept = beta1.to(theta) if isinstance(beta1, torch.Tensor) else beta1  # lerp_ wants tensors of one dtype
        m = self.buffer(theta, "exp_avg").lerp_(g, 1 - kept)
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

    State and errors are as in `Adam`.
    Source: Loshchilov and Hutter (2019), algorithm 2 (lr also multiplies λ, as in torch). Lesson 03.

    Args:
        params, lr, betas, eps, amsgrad: as in `Adam`.
        weight_decay: λ.
        keywords: maximize and bias_correction, as in `Adam`.
    """

    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, **keywords):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **keywords)

    def decay(self, theta, g, group):
        """Weight decay: shrinks `theta` in place; the gradient is handed back as it is."""
        theta.mul_(1 - group["lr"] * group["weight_decay"])
        return g
