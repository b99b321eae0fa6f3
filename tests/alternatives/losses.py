"""Other answers to the exercises of lesson 02."""

import math

import torch
from torch.nn import functional


def bce_with_gradient_by_torch(z, y):
    z = z.clone().requires_grad_()
    loss = functional.binary_cross_entropy_with_logits(z, y)
    loss.backward()
    return loss.item(), z.grad


def bce_with_gradient_by_logsigmoid(z, y):
    loss = -(y * functional.logsigmoid(z) + (1 - y) * functional.logsigmoid(-z)).mean()
    return loss, (torch.sigmoid(z) - y) / z.numel()


def bce_with_gradient_by_loop(z, y):
    total, gradient = 0.0, torch.zeros_like(z)
    for i, (score, target) in enumerate(zip(z.tolist(), y.tolist(), strict=True)):
        total += max(score, 0.0) - target * score + math.log1p(math.exp(-abs(score)))
        p = 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
        gradient[i] = (p - target) / len(z)
    return total / len(z), gradient


def bce_with_gradient_of_rounded_targets(z, y):
    return bce_with_gradient_by_torch(z, y.round())


def bce_with_gradient_of_swapped_targets(z, y):
    return bce_with_gradient_by_torch(z, 1 - y)


def log_sum_exp_by_torch(z, dim):
    return torch.logsumexp(z, dim)


def log_sum_exp_by_folding(z, dim):
    first, *others = z.unbind(dim)
    for part in others:
        first = torch.logaddexp(first, part)
    return first


def log_sum_exp_from_log_softmax(z, dim):
    return (z - torch.log_softmax(z, dim)).select(dim, 0)


def log_sum_exp_in_float64(z, dim):
    return z.double().exp().sum(dim).log().float()


def log_sum_exp_clamped(z, dim):
    return z.clamp(max=80).exp().sum(dim).log()


def measured_gradient_in_place(f, x):
    gradient = torch.zeros_like(x)
    for index in torch.ones_like(x).nonzero().tolist():
        index = tuple(index)
        old = x[index].item()
        h = 1e-5
        x[index] = old + h
        above = f(x).item()
        x[index] = old - h
        gradient[index] = (above - f(x).item()) / (2 * h)
        x[index] = old
    return gradient


def measured_gradient_from_four_points(f, x):
    slopes = []
    for i in range(x.numel()):
        step = torch.zeros_like(x).flatten()
        h = 2e-3
        step[i] = h
        step = step.view(x.shape)
        near, far = f(x + step) - f(x - step), f(x + 2 * step) - f(x - 2 * step)
        slopes.append((8 * near - far) / (12 * h))
    return torch.tensor(slopes, dtype=x.dtype).view(x.shape)


def measured_gradient_with_a_smaller_step(f, x):
    h, slopes = 1e-7, []
    for direction in torch.eye(x.numel(), dtype=x.dtype).unbind():
        ahead, behind = x + h * direction.reshape(x.shape), x - h * direction.reshape(x.shape)
        slopes.append((f(ahead).item() - f(behind).item()) / (2 * h))
    return torch.tensor(slopes, dtype=x.dtype).reshape(x.shape)


def measured_gradient_of_the_first_entry(f, x):
    h = 6e-6
    step = torch.zeros_like(x)
    step.view(-1)[0] = h
    return ((f(x + step) - f(x - step)) / (2 * h)).expand(x.shape)


def measured_gradient_from_ten_steps(f, x):
    slopes = [measured_gradient_in_place(f, x) for _ in range(10)]
    return torch.stack(slopes).mean(0)


def measured_gradient_from_below(f, x):
    steps = 1e-6 * torch.eye(x.numel(), dtype=x.dtype)
    return torch.stack([(f(x) - f(x - step.view(x.shape))) / 1e-6 for step in steps]).view(x.shape)


def cross_entropy_gradient_by_torch(z, y):
    z = z.clone().requires_grad_()
    functional.cross_entropy(z, y).backward()
    return z.grad


def cross_entropy_gradient_by_hand(z, y):
    e = (z - z.amax(1, keepdim=True)).exp()
    p = e / e.sum(1, keepdim=True)
    counts = (y >= 0).float()
    onehot = (torch.arange(z.shape[1]) == y[:, None]).float()
    return (p - onehot) * (counts / counts.sum())[:, None]


def cross_entropy_gradient_of_kept_rows(z, y):
    kept = y != -100
    return (torch.softmax(z, 1)[kept] - functional.one_hot(y[kept], z.shape[1])) / kept.sum()


def cross_entropy_gradient_of_log_softmax(z, y):
    kept = (y != -100)[:, None]
    onehot = functional.one_hot(y.clamp(min=0), z.shape[1])
    return (torch.log_softmax(z, 1) - onehot) * kept / kept.sum()


alternatives = {
    "bce_with_gradient": [
        bce_with_gradient_by_torch,
        bce_with_gradient_by_logsigmoid,
        bce_with_gradient_by_loop,
    ],
    "log_sum_exp": [log_sum_exp_by_torch, log_sum_exp_by_folding, log_sum_exp_from_log_softmax],
    "measured_gradient": [
        measured_gradient_in_place,
        measured_gradient_from_four_points,
        measured_gradient_with_a_smaller_step,
    ],
    "cross_entropy_gradient": [cross_entropy_gradient_by_torch, cross_entropy_gradient_by_hand],
}
wrong = {
    "bce_with_gradient": [bce_with_gradient_of_rounded_targets, bce_with_gradient_of_swapped_targets],
    "log_sum_exp": [log_sum_exp_in_float64, log_sum_exp_clamped],
    "measured_gradient": [
        measured_gradient_of_the_first_entry,
        measured_gradient_from_ten_steps,
        measured_gradient_from_below,
    ],
    "cross_entropy_gradient": [cross_entropy_gradient_of_kept_rows, cross_entropy_gradient_of_log_softmax],
}
