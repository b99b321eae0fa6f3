"""Linear layers whose weight gradient is put off until somebody has time for it (lesson 16)."""

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class WeightsLater(TorchFunctionMode):
    """Within it, backward of `F.linear` computes the gradient of the input alone; `compute` then does the weights'.

    With y = x Wᵀ + b and the gradient g of y, the input gets g W at once, and W gets gᵀ x later. All else, biases too,
    gets its gradient at once: that is a small part of the work.

    Source: Qi et al., Zero Bubble Pipeline Parallelism (2023), §2.
    """

    def __init__(self):
        super().__init__()
        self._put_off = []  # (weight, x, g)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = _arguments(*args, **(kwargs or {}))
            if weight.requires_grad and weight.is_leaf:
                return _Linear.apply(x, weight, bias, self._put_off)
        return func(*args, **(kwargs or {}))

    @torch.no_grad()
    def compute(self):
        """Add all that was put off to the weights' gradients."""
        for weight, x, gradient in self._put_off:
            own = gradient.flatten(0, -2).T @ x.flatten(0, -2)
            weight.grad = own if weight.grad is None else weight.grad.add_(own)
        self._put_off.clear()


def _arguments(input, weight, bias=None):
    return input, weight, bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, put_off):
        ctx.save_for_backward(x, weight)
        # Where hooks pack what is saved, as those of checkpointing do, the weight comes back as another object.
        ctx.put_off, ctx.parameter = put_off, weight
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        ctx.put_off.append((ctx.parameter, x, gradient))
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return gradient @ weight if ctx.needs_input_grad[0] else None, None, of_bias, None
