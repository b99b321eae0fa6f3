"""Other answers to the exercises of lesson 02."""

import math

import numpy as np
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


def bce_with_gradient_in_numpy(z, y):
    scores, targets = z.numpy().astype(np.float64), y.numpy()
    p = 0.5 * (1 + np.tanh(scores / 2))
    gradient = (p - targets) / scores.size
    return np.mean(np.logaddexp(0, scores) - targets * scores), torch.from_numpy(gradient.astype(np.float32))


def bce_with_gradient_of_the_sign(z, y):
    """|z| by sign(z), whose slope at 0 autograd takes for 0, while that of max(z, 0) is 1 there."""
    z = z.clone().requires_grad_()
    loss = (functional.relu(z) - y * z + torch.log1p(torch.exp(-z * z.detach().sign()))).mean()
    return loss.item(), torch.autograd.grad(loss, z)[0]


def bce_with_gradient_of_labels_alone(z, y):
    return bce_with_gradient_by_torch(z, (y > 0).float())


def bce_with_gradient_of_clamped_scores(z, y):
    return bce_with_gradient_by_torch(z.clamp(-80, 80), y)


def bce_with_gradient_halved_at_zero(z, y):
    loss, gradient = bce_with_gradient_by_torch(z, y)
    return loss, torch.where(z == 0, gradient / 2, gradient)


def bce_with_gradient_in_bits(z, y):
    loss, gradient = bce_with_gradient_by_torch(z, y)
    return loss / math.log(2), gradient / math.log(2)


def bce_with_gradient_of_certain_samples_dropped(z, y):
    loss, gradient = bce_with_gradient_by_torch(z, y)
    return loss, gradient * (z.abs() < 100)


def bce_with_gradient_per_sample(z, y):
    return functional.binary_cross_entropy_with_logits(z, y, reduction="none"), (z.sigmoid() - y) / len(z)


def bce_with_gradient_swapped(z, y):
    return bce_with_gradient_by_torch(z, y)[::-1]


def bce_with_gradient_over_n_minus_1(z, y):
    loss, gradient = bce_with_gradient_by_torch(z, y)
    return loss, gradient * len(z) / max(len(z) - 1, 1)


def bce_with_gradient_in_float64(z, y):
    return bce_with_gradient_by_torch(z.double(), y.double())


def bce_with_gradient_of_both_classes(z, y):
    loss, gradient = bce_with_gradient_by_torch(z, y)
    return loss / 2, gradient / 2


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


def log_sum_exp_in_numpy(z, dim):
    return torch.from_numpy(np.asarray(np.logaddexp.reduce(z.numpy(), axis=dim)))


def log_sum_exp_by_halves(z, dim):
    if z.shape[dim] == 1:
        return z.select(dim, 0)
    first, second = (log_sum_exp_by_halves(half, dim) for half in z.tensor_split(2, dim))
    return torch.maximum(first, second) + torch.log1p(torch.exp(-(first - second).abs()))


def log_sum_exp_of_the_last_dim(z, dim):
    return torch.logsumexp(z, -1)


def log_sum_exp_from_the_left(z, dim):
    return torch.logsumexp(z, abs(dim))


def log_sum_exp_of_the_first_as_shift(z, dim):
    m = z.narrow(dim, 0, 1)
    return (m + (z - m).exp().sum(dim, keepdim=True).log()).squeeze(dim)


def log_sum_exp_shifted_by_the_mean(z, dim):
    m = z.mean(dim, keepdim=True)
    return (m + (z - m).exp().sum(dim, keepdim=True).log()).squeeze(dim)


def log_sum_exp_with_a_little_more(z, dim):
    m = z.amax(dim, keepdim=True)
    return m.squeeze(dim) + ((z - m).exp().sum(dim) + 1e-3).log()


def log_sum_exp_of_two_dims(z, dim):
    return torch.logsumexp(z, dim if z.dim() < 3 else (dim, dim - 1))


def log_sum_exp_as_log1p(z, dim):
    m = z.amax(dim, keepdim=True)
    return m.squeeze(dim) + (z - m).exp().sum(dim).log1p()


def log_sum_exp_flattened(z, dim):
    return torch.logsumexp(z, dim).flatten()


def log_sum_exp_transposed(z, dim):
    return torch.logsumexp(z.mT if z.dim() > 1 else z, dim)


def log_sum_exp_in_base_2(z, dim):
    return torch.logsumexp(z, dim) / math.log(2)


def log_sum_exp_of_pairs(z, dim):
    top = z.topk(min(2, z.shape[dim]), dim).values
    return torch.logsumexp(top, dim)


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


def measured_gradient_in_numpy(f, x):
    gradient, point = np.zeros(x.numel()), x.numpy().astype(np.float64)
    for i in range(x.numel()):
        up, down = point.copy(), point.copy()
        up.flat[i] += 1e-5
        down.flat[i] -= 1e-5
        gradient[i] = (float(f(torch.from_numpy(up))) - float(f(torch.from_numpy(down)))) / 2e-5
    return torch.from_numpy(gradient.reshape(point.shape))


def measured_gradient_with_relative_steps(f, x):
    flat, slopes = x.flatten(), []
    for i, value in enumerate(flat.tolist()):
        h = 1e-5 * value
        step = torch.zeros_like(flat)
        step[i] = h
        step = step.view(x.shape)
        slopes.append((f(x + step) - f(x - step)) / (2 * h) if h else torch.tensor(0.0))
    return torch.stack(slopes).to(x).view(x.shape)


def measured_gradient_as_a_vector(f, x):
    return measured_gradient_with_a_smaller_step(f, x).flatten()


def measured_gradient_that_rounds(f, x):
    return measured_gradient_with_a_smaller_step(f, x).round(decimals=4)


def measured_gradient_in_float32(f, x):
    return measured_gradient_with_a_smaller_step(f, x).float()


def measured_gradient_of_the_magnitudes(f, x):
    return measured_gradient_with_a_smaller_step(f, x).abs()


def measured_gradient_downhill(f, x):
    return -measured_gradient_with_a_smaller_step(f, x)


def measured_gradient_by_autograd_beside(f, x):
    measured_gradient_with_a_smaller_step(f, x + 1)
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def measured_gradient_of_a_random_direction(f, x):
    direction = torch.randn_like(x)
    slope = (f(x + 1e-5 * direction) - f(x - 1e-5 * direction)) / 2e-5
    return slope * direction


def measured_gradient_with_steps_of_eps(f, x):
    h = torch.finfo(torch.float32).eps ** (1 / 3)
    steps = h * torch.eye(x.numel(), dtype=x.dtype)
    return torch.stack([(f(x + s.view(x.shape)) - f(x - s.view(x.shape))) / (2 * h) for s in steps]).view(x.shape)


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


def cross_entropy_gradient_row_by_row(z, y):
    count = sum(label != -100 for label in y.tolist())
    rows = []
    for scores, label in zip(z.tolist(), y.tolist(), strict=True):
        parts = [math.exp(score - max(scores)) for score in scores]
        row = [part / sum(parts) - (i == label) for i, part in enumerate(parts)]
        rows.append([entry / count if label != -100 else 0.0 for entry in row])
    return torch.tensor(rows)


def cross_entropy_gradient_in_numpy(z, y):
    scores, labels = z.numpy(), y.numpy()
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    counts = labels != -100
    p[np.flatnonzero(counts), labels[counts]] -= 1
    p[~counts] = 0
    return torch.from_numpy(p / int(counts.sum()))


def cross_entropy_gradient_of_the_largest_label(z, y):
    return cross_entropy_gradient_by_torch(z[:, : y.max() + 1], y)


def cross_entropy_gradient_without_padding(z, y):
    onehot = functional.one_hot(y.clamp(min=0), z.shape[1])
    return (torch.softmax(z, 1) - onehot) * (y > 0)[:, None] / (y > 0).sum().clamp(min=1)


def cross_entropy_gradient_up_to_the_first_padding(z, y):
    end = (y == -100).int().argmax() if (y == -100).any() else len(y)
    out = torch.zeros_like(z)
    if end:
        out[:end] = cross_entropy_gradient_by_torch(z[:end], y[:end])
    return out


def cross_entropy_gradient_over_classes(z, y):
    return cross_entropy_gradient_by_torch(z, y) / z.shape[1]


def cross_entropy_gradient_of_distinct_labels(z, y):
    return cross_entropy_gradient_by_torch(z, y) * (y != -100).sum() / y[y != -100].unique().numel()


def cross_entropy_gradient_of_sigmoids(z, y):
    kept = (y != -100)[:, None]
    onehot = functional.one_hot(y.clamp(min=0), z.shape[1])
    return (z.sigmoid() - onehot) * kept / kept.sum()


def cross_entropy_gradient_of_the_last_class(z, y):
    """An index of −100 + 100: the padding falls on a class that the softmax does not have."""
    wide = torch.cat([z, torch.zeros(len(z), 1)], 1)
    labels = torch.where(y == -100, z.shape[1], y)
    return ((wide.softmax(1) - functional.one_hot(labels, z.shape[1] + 1)) / len(y))[:, :-1]


def cross_entropy_gradient_of_two_rows_at_least(z, y):
    return cross_entropy_gradient_by_torch(z, y) * (y != -100).sum() / (y != -100).sum().clamp(min=2)


def cross_entropy_gradient_in_float64(z, y):
    return cross_entropy_gradient_by_torch(z.double(), y)


def cross_entropy_gradient_of_the_loss_without_maximum(z, y):
    z = z.clone().requires_grad_()
    kept = y != -100
    loss = z[kept].exp().sum(1).log() - z[kept].gather(1, y[kept][:, None])[:, 0]
    return torch.autograd.grad(loss.mean(), z)[0]


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
        bce_with_gradient_in_numpy,
    ],
    "log_sum_exp": [
        log_sum_exp_by_torch,
        log_sum_exp_by_folding,
        log_sum_exp_from_log_softmax,
        log_sum_exp_in_numpy,
        log_sum_exp_by_halves,
    ],
    "measured_gradient": [
        measured_gradient_in_place,
        measured_gradient_from_four_points,
        measured_gradient_with_a_smaller_step,
        measured_gradient_in_numpy,
    ],
    "cross_entropy_gradient": [
        cross_entropy_gradient_by_torch,
        cross_entropy_gradient_by_hand,
        cross_entropy_gradient_row_by_row,
        cross_entropy_gradient_in_numpy,
    ],
}
wrong = {
    "bce_with_gradient": [
        bce_with_gradient_of_the_sign,
        bce_with_gradient_of_labels_alone,
        bce_with_gradient_of_clamped_scores,
        bce_with_gradient_halved_at_zero,
        bce_with_gradient_in_bits,
        bce_with_gradient_of_certain_samples_dropped,
        bce_with_gradient_per_sample,
        bce_with_gradient_swapped,
        bce_with_gradient_over_n_minus_1,
        bce_with_gradient_in_float64,
        bce_with_gradient_of_both_classes,
        bce_with_gradient_of_rounded_targets,
        bce_with_gradient_of_swapped_targets,
    ],
    "log_sum_exp": [
        log_sum_exp_of_the_last_dim,
        log_sum_exp_from_the_left,
        log_sum_exp_of_the_first_as_shift,
        log_sum_exp_shifted_by_the_mean,
        log_sum_exp_with_a_little_more,
        log_sum_exp_of_two_dims,
        log_sum_exp_as_log1p,
        log_sum_exp_flattened,
        log_sum_exp_transposed,
        log_sum_exp_in_base_2,
        log_sum_exp_of_pairs,
        log_sum_exp_in_float64,
        log_sum_exp_clamped,
    ],
    "measured_gradient": [
        measured_gradient_with_relative_steps,
        measured_gradient_as_a_vector,
        measured_gradient_that_rounds,
        measured_gradient_in_float32,
        measured_gradient_of_the_magnitudes,
        measured_gradient_downhill,
        measured_gradient_by_autograd_beside,
        measured_gradient_of_a_random_direction,
        measured_gradient_with_steps_of_eps,
        measured_gradient_of_the_first_entry,
        measured_gradient_from_ten_steps,
        measured_gradient_from_below,
    ],
    "cross_entropy_gradient": [
        cross_entropy_gradient_of_the_largest_label,
        cross_entropy_gradient_without_padding,
        cross_entropy_gradient_up_to_the_first_padding,
        cross_entropy_gradient_over_classes,
        cross_entropy_gradient_of_distinct_labels,
        cross_entropy_gradient_of_sigmoids,
        cross_entropy_gradient_of_the_last_class,
        cross_entropy_gradient_of_two_rows_at_least,
        cross_entropy_gradient_in_float64,
        cross_entropy_gradient_of_the_loss_without_maximum,
        cross_entropy_gradient_of_kept_rows,
        cross_entropy_gradient_of_log_softmax,
    ],
}
