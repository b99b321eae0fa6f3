"""Other answers to the exercises of lesson 24."""

import torch

from lessons_lib.compress import quantize


def by_row(weight):
    values, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight), dtype=weight.dtype)
    for i, row in enumerate(weight):
        largest = max(row.max(), -row.min())
        scales[i] = largest / 127 if largest > 0 else 1.0
        values[i] = torch.round(row / scales[i])
    return values, scales


def by_the_library(weight):
    small = quantize(weight, dim=0)
    return small.values, small.scale.flatten()


def by_a_threshold(gradient, left, k):
    whole = gradient + left
    if k == 0:
        return torch.zeros_like(whole), whole
    smallest = whole.abs().flatten().sort(descending=True).values[k - 1]
    is_sent = whole.abs() >= smallest
    return torch.where(is_sent, whole, 0.0), torch.where(is_sent, 0.0, whole)


def by_a_mask(w1, b1, w2, num_kept):
    both = torch.cat([w1, b1[:, None]], dim=1).norm(dim=1) * w2.norm(dim=0)
    order = both.argsort(descending=True)
    mask = torch.zeros(len(b1), dtype=torch.bool)
    mask[order[:num_kept]] = True
    return w1[mask], b1[mask], w2[:, mask]


def by_columns(comm, gradient, q):
    p = gradient @ q
    comm.all_reduce(p, op="mean")
    p = torch.linalg.qr(p).Q
    thin = gradient.T @ p
    comm.all_reduce(thin)
    return p @ (thin / comm.world_size).T


def shared_step(weight):
    """Rows of about the same size share a scale."""
    largest = weight.abs().amax(dim=1, keepdim=True).clamp(min=weight.abs().max() / 2)
    scales = (largest / 127).flatten()
    return (weight / scales[:, None]).round().to(torch.int8), scales


def halved(gradient, left, k):
    """What is left decays, as momentum does."""
    sent, rest = by_a_threshold(gradient, left / 2, k)
    return sent, rest


def by_sums_of_magnitudes(w1, b1, w2, num_kept):
    matters = (w1.abs().sum(dim=1) + b1.abs()) * w2.abs().sum(dim=0)
    kept = matters.topk(num_kept).indices.sort().values
    return w1[kept], b1[kept], w2[:, kept]


def mean_of_best_of_each(comm, gradient, q):
    """Each rank's own approximation, averaged."""
    p = torch.linalg.qr(gradient @ q).Q
    result = p @ (p.T @ gradient)
    comm.all_reduce(result, op="mean")
    return result


alternatives = {
    "int8_rows": [by_row, by_the_library],
    "send_largest": [by_a_threshold],
    "keep_units": [by_a_mask],
    "thin_mean": [by_columns],
}
wrong = {
    "int8_rows": [shared_step],
    "send_largest": [halved],
    "keep_units": [by_sums_of_magnitudes],
    "thin_mean": [mean_of_best_of_each],
}
