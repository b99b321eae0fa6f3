"""Other answers to the exercises of lesson 06."""

import torch
from torch import nn


def clip_gradients_by_torch(gradients, max_norm):
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, g in zip(parameters, gradients, strict=True):
        parameter.grad = g
    return nn.utils.clip_grad_norm_(parameters, max_norm).item()


def clip_gradients_as_one_vector(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    factor = (max_norm / norm).clamp(max=1)
    for g in gradients:
        g.mul_(factor)
    return norm.item()


def clip_gradients_of_lengths(gradients, max_norm):
    norm = torch.stack([g.norm() for g in gradients]).norm().item()
    for g in gradients:
        g.div_(max(1.0, norm / max_norm))
    return norm


def clip_gradients_by_subtracting(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    for g in gradients:
        g -= (norm - max_norm) * (norm > max_norm)
    return norm


def clip_gradients_of_the_first(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    if norm > max_norm:
        gradients[0] *= max_norm / norm
    return norm


def clip_gradients_into_new_memory(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    for g in gradients:
        g.data = g * min(1.0, max_norm / max(norm, 1e-12))
    return norm


def clip_gradients_longer_than_one(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    for g in gradients:
        g *= max_norm / norm if norm > 1 else 1.0
    return norm


def gru_2014_from_one_product(x, h, W, U, b):
    H = h.shape[1]
    a = torch.nn.functional.linear(x, W, b)
    r, z = (a[:, : 2 * H] + h @ U[: 2 * H].T).sigmoid().split(H, dim=1)
    n = (a[:, 2 * H :] + (r * h) @ U[2 * H :].T).tanh()
    return n + z * (h - n)


def gru_2014_sample_by_sample(x, h, W, U, b):
    (Wr, Wz, Wn), (Ur, Uz, Un), (br, bz, bn) = W.chunk(3), U.chunk(3), b.chunk(3)
    rows = []
    for xi, hi in zip(x, h, strict=True):
        r, z = torch.sigmoid(Wr @ xi + Ur @ hi + br), torch.sigmoid(Wz @ xi + Uz @ hi + bz)
        rows.append(z * hi + (1 - z) * torch.tanh(Wn @ xi + Un @ (r * hi) + bn))
    return torch.stack(rows)


def gru_2014_by_torch(x, h, W, U, b):
    return torch.gru_cell(x, h, W, U, b, torch.zeros_like(b))


def gru_2014_updating_with_r(x, h, W, U, b):
    a, u = (x @ W.T + b).chunk(3, 1), (h @ U.T).chunk(3, 1)
    r, z = (a[0] + u[0]).sigmoid(), (a[1] + u[1]).sigmoid()
    n = torch.tanh(a[2] + (z * h) @ U.chunk(3)[2].T)
    return r * h + (1 - r) * n


def gru_2014_without_a_way_back(x, h, W, U, b):
    with torch.no_grad():
        return gru_2014_sample_by_sample(x, h, W, U, b)


alternatives = {
    "gru_2014": [gru_2014_from_one_product, gru_2014_sample_by_sample],
    "clip_gradients": [clip_gradients_by_torch, clip_gradients_as_one_vector, clip_gradients_of_lengths],
}
wrong = {
    "gru_2014": [gru_2014_by_torch, gru_2014_updating_with_r, gru_2014_without_a_way_back],
    "clip_gradients": [
        clip_gradients_by_subtracting,
        clip_gradients_of_the_first,
        clip_gradients_into_new_memory,
        clip_gradients_longer_than_one,
    ],
}
