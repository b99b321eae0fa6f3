"""The losses of lesson 02: torch's shapes, values and gradients, from functions that don't overflow."""

import torch


def log_sum_exp(x, dim=-1, keepdim=False):
    """log Σ exp(x) along `dim`, without overflow: m + log Σ exp(x − m), with m = max x.

    x: float tensor. Returns it without `dim` (of size 1 there with keepdim=True). Lesson 02.
    """
    m = x.detach().amax(dim, keepdim=True)
    m = m.masked_fill(m.isinf(), 0)
    result = m + (x - m).exp().sum(dim, keepdim=True).log()
    return result if keepdim else result.squeeze(dim)


def softmax(x, dim=-1):
    """exp(x) / Σ exp(x) along `dim`; max x is subtracted first, so that nothing overflows. Lesson 02."""
    e = (x - x.detach().amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def sigmoid(x):
    """1 / (1 + exp(−x)); where x < 0 as exp(x) / (1 + exp(x)), so that no exponent is positive. Lesson 02."""
    falling = (-x.clamp(min=0)).exp()
    rising = x.clamp(max=0).exp()
    return torch.where(x >= 0, 1 / (1 + falling), rising / (1 + rising))


def mse(prediction, target, reduction="mean"):
    """Mean squared error: (1/n) Σ (ŷ − y)², over all n elements.

    prediction ŷ, target y: float tensors of the same shape. reduction: "mean", "sum" or "none".
    Differs from torch: shapes (N, 1) and (N,) are refused; they would make an N × N table of differences.
    Raises ValueError, TypeError. Lesson 02.
    """
    _check_same_shape(prediction=prediction, target=target)
    return _reduce((prediction - target).square(), reduction)


def half_sum_mse(prediction, target):
    """Half the sum of squared errors: ½ Σ (ŷ − y)². Its gradient with respect to ŷ is ŷ − y, with no factor.

    prediction ŷ, target y: float tensors of the same shape. Returns a 0-dim tensor. Lesson 02.
    """
    _check_same_shape(prediction=prediction, target=target)
    return (prediction - target).square().sum() / 2


def bce(probability, target, reduction="mean"):
    """Binary cross-entropy of probabilities: −(y log p + (1 − y) log(1 − p)).

    probability p, target y: float tensors of the same shape, in 0..1. reduction: "mean", "sum" or "none".
    Logarithms stop at −100, as in torch, so p = 0 or 1 costs at most 100. Raises ValueError, TypeError.
    Differs from torch: where a logarithm is stopped, its gradient is 0. Prefer `bce_with_logits`. Lesson 02.
    """
    _check_same_shape(probability=probability, target=target)
    _check_range("probability", probability, 0, 1)
    _check_range("target", target, 0, 1)
    return _reduce(-(target * _log(probability) + (1 - target) * _log(1 - probability)), reduction)


def bce_with_logits(logits, target, reduction="mean"):
    """Binary cross-entropy of p = sigmoid(x): log(1 + exp(x)) − y x. Its gradient is p − y.

    logits x: any real numbers; target y: of the same shape, in 0..1. reduction: "mean", "sum" or "none".
    log(1 + exp(x)) is computed as max(x, 0) + log(1 + exp(−|x|)). Raises ValueError, TypeError. Lesson 02.
    """
    _check_same_shape(logits=logits, target=target)
    _check_range("target", target, 0, 1)
    softplus = torch.maximum(logits, torch.zeros_like(logits)) + (-logits.abs()).exp().log1p()
    return _reduce(softplus - target * logits, reduction)


def cross_entropy(logits, target, reduction="mean"):
    """Cross-entropy of softmax(x): log Σ_k exp(x_k) − x_y. Its gradient is softmax(x) − onehot(y).

    logits x: float tensor (N, C), or (N, C, ...) or (C,): C classes.
    target y: class numbers 0..C−1 (integers) of that shape without C; or probabilities, of the shape of x.
    reduction: "mean" (over samples), "sum" or "none". Raises ValueError, TypeError. Lesson 02.
    """
    _check_tensors(logits=logits, target=target)
    dim = 0 if logits.dim() == 1 else 1
    if target.is_floating_point() and target.shape == logits.shape:
        losses = (target * (log_sum_exp(logits, dim, keepdim=True) - logits)).sum(dim)
        return _reduce(losses, reduction)
    expected = logits.shape[:dim] + logits.shape[dim + 1 :]
    if target.is_floating_point() or target.shape != expected or logits.dim() == 0:
        raise ValueError(
            f"target must be class numbers (integers) of shape {tuple(expected)}, or probabilities (floats) of "
            f"shape {tuple(logits.shape)}, the shape of logits; not {target.dtype} of shape {tuple(target.shape)}"
        )
    _check_range("target", target, 0, logits.shape[dim] - 1)
    picked = logits.gather(dim, target.long().unsqueeze(dim)).squeeze(dim)
    return _reduce(log_sum_exp(logits, dim) - picked, reduction)


def _log(p):
    positive = p > 0
    return torch.where(positive, torch.where(positive, p, 1).log(), -100).clamp(min=-100)


def _reduce(losses, reduction):
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", not {reduction!r}')
    return losses if reduction == "none" else getattr(losses, reduction)()


def _check_tensors(**named):
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")


def _check_same_shape(**named):
    _check_tensors(**named)
    shapes = [tuple(value.shape) for value in named.values()]
    if shapes[0] != shapes[1]:
        names = " and ".join(named)
        raise ValueError(f"{names} must have the same shape, not {shapes[0]} and {shapes[1]}; .reshape one of them")


def _check_range(name, values, low, high):
    if values.numel() == 0:
        return
    smallest, largest = (v.item() for v in values.detach().aminmax())
    if not (smallest >= low and largest <= high):
        raise ValueError(f"{name} must lie in {low}..{high}, not {smallest}..{largest}")
