"""The losses of lesson 02: torch's shapes, values and gradients, from functions that don't overflow."""

import torch


def log_sum_exp(x, dim=-1, keepdim=False):
    """Compute log Σ exp(x) along `dim` without overflow: m + log Σ exp(x − m), with m = max x. Lesson 02.

    Args:
        x: float tensor; where all of it is −inf along `dim`, so is the result; one +inf makes it +inf.
        dim: the dimension that is summed over, of at least one element.
        keepdim: keep it, of size 1.

    Raises:
        TypeError: x is no float tensor.
    """
    _check_are_floats(x=x)
    m = x.detach().amax(dim, keepdim=True)
    m = m.masked_fill(m.isinf(), 0)  # inf − inf would be NaN
    result = m + (x - m).exp().sum(dim, keepdim=True).log()
    return result if keepdim else result.squeeze(dim)


def softmax(x, dim=-1):
    """Compute exp(x) / Σ exp(x) along `dim`; max x is subtracted first, so that nothing overflows. Lesson 02.

    Args:
        x: float tensor. Where its largest number is infinite, shares are not defined: NaN, as in torch.
        dim: the dimension that adds up to 1.

    Raises:
        TypeError: x is no float tensor.
    """
    _check_are_floats(x=x)
    e = (x - x.detach().amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def sigmoid(x):
    """Compute 1 / (1 + exp(−x)); where x < 0 as exp(x) / (1 + exp(x)), so that no exponent is positive. Lesson 02.

    Args:
        x: float tensor.

    Raises:
        TypeError: x is no float tensor.
    """
    _check_are_floats(x=x)
    falling = (-x).masked_fill(x < 0, 0).exp()  # clamp's gradient at its bound differs between versions of torch
    rising = x.masked_fill(x >= 0, 0).exp()
    return torch.where(x >= 0, 1 / (1 + falling), rising / (1 + rising))


def mse(prediction, target, reduction="mean"):
    """Compute the mean squared error: (1/n) Σ (ŷ − y)², over all n elements. Lesson 02.

    Differs from torch: shapes (N, 1) and (N,) are refused; they would make an N × N table of differences.

    Args:
        prediction: ŷ, float tensor.
        target: y, tensor of the same shape.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """
    _check_same_shape(prediction=prediction, target=target)
    return _reduce((prediction - target).square(), reduction)


def half_sum_mse(prediction, target):
    """Compute half the sum of squared errors: ½ Σ (ŷ − y)². Its gradient with respect to ŷ is ŷ − y. Lesson 02.

    Args:
        prediction: ŷ, float tensor.
        target: y, tensor of the same shape.

    Returns:
        A 0-dim tensor.

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """
    _check_same_shape(prediction=prediction, target=target)
    return (prediction - target).square().sum() / 2


def bce(probability, target, reduction="mean"):
    """Compute the binary cross-entropy of probabilities: −(y log p + (1 − y) log(1 − p)). Lesson 02.

    Logarithms stop at −100, as in torch, so p = 0 or 1 costs at most 100.
    Differs from torch: where a logarithm is stopped, its gradient is 0. Prefer `bce_with_logits`.

    Args:
        probability: p, float tensor, in 0..1.
        target: y, tensor of the same shape, in 0..1.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """
    _check_same_shape(probability=probability, target=target)
    _check_range("probability", probability, 0, 1)
    _check_range("target", target, 0, 1)
    return _reduce(-(target * _log(probability) + (1 - target) * _log(1 - probability)), reduction)


def bce_with_logits(logits, target, reduction="mean"):
    """Compute the binary cross-entropy of p = sigmoid(x): log(1 + exp(x)) − y x. Lesson 02.

    Its gradient is p − y. log(1 + exp(x)) is computed as max(x, 0) + log(1 + exp(−|x|)).

    Args:
        logits: x, float tensor; an infinite one costs nothing where it is right, and inf where it is wrong.
        target: y, tensor of the same shape, in 0..1.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """
    _check_same_shape(logits=logits, target=target)
    _check_range("target", target, 0, 1)
    softplus = torch.maximum(logits, torch.zeros_like(logits)) + (-logits.abs()).exp().log1p()
    certain = logits.isinf()
    matched = (target * logits).masked_fill(certain & (target == 0), 0)  # 0 · inf would be NaN, and so would inf − inf
    return _reduce((softplus - matched).masked_fill(certain & (target == 1) & (logits > 0), 0), reduction)


def cross_entropy(logits, target, reduction="mean"):
    """Compute the cross-entropy of softmax(x): log Σ_k exp(x_k) − x_y. Lesson 02.

    Its gradient is softmax(x) − onehot(y).

    Args:
        logits: x, float tensor (N, C), or (N, C, ...) or (C,): C classes. One of −inf rules its class out.
        target: y, class numbers 0..C−1 (integers) of that shape without C; or probabilities, of the shape of x.
        reduction: "mean" (over samples), "sum" or "none".

    Raises:
        TypeError, ValueError: an argument is not what is said above.
    """
    _check_are_floats(logits=logits)
    _check_are_tensors(target=target)
    dim = 0 if logits.dim() == 1 else 1
    if target.is_floating_point() and target.shape == logits.shape:
        surprise = log_sum_exp(logits, dim, keepdim=True) - logits
        surprise = surprise.masked_fill((target == 0) & surprise.isinf(), 0)  # 0 log 0 is 0
        return _reduce((target * surprise).sum(dim), reduction)
    expected = logits.shape[:dim] + logits.shape[dim + 1 :]
    if target.is_floating_point() or target.shape != expected or logits.dim() == 0:
        raise ValueError(
            f"target of {target.dtype} and shape {tuple(target.shape)}: class numbers (integers) of shape "
            f"{tuple(expected)}, or probabilities (floats) of the shape of logits, {tuple(logits.shape)}, are needed"
        )
    _check_range("target", target, 0, logits.shape[dim] - 1)
    picked = logits.gather(dim, target.long().unsqueeze(dim)).squeeze(dim)
    return _reduce(log_sum_exp(logits, dim) - picked, reduction)


def _log(p):
    positive = p > 0
    return torch.where(positive, torch.where(positive, p, 1).log(), -100).clamp(min=-100)


def _reduce(losses, reduction):
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction={reduction!r}: "mean", "sum" or "none" is needed')
    return losses if reduction == "none" else getattr(losses, reduction)()


def _check_are_tensors(**named):
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}: a torch.Tensor is needed")


def _check_are_floats(**named):
    _check_are_tensors(**named)
    for name, value in named.items():
        if not value.is_floating_point():
            raise TypeError(f"{name} is a tensor of {value.dtype}: one of floats is needed")


def _check_same_shape(**named):
    """The first of two is what a model gives: floats. The other, its target, may be whole numbers."""
    (name, given), (_, target) = named.items()
    _check_are_tensors(**named)
    _check_are_floats(**{name: given})
    if target.is_complex():
        raise TypeError(f"target is a tensor of {target.dtype}: one of real numbers is needed")
    if given.shape != target.shape:
        told = " and ".join(f"{name} of shape {tuple(value.shape)}" for name, value in named.items())
        raise ValueError(f"{told}: the same shape is needed; .reshape one of them")


def _check_range(name, values, low, high):
    if values.numel() == 0:
        return
    smallest, largest = (v.item() for v in values.detach().aminmax())
    if not (smallest >= low and largest <= high):
        raise ValueError(f"{name} in {smallest}..{largest}: numbers in {low}..{high} are needed")
