"""Other answers to the exercises of lesson 06."""

import math

import torch
from torch import nn


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


def causal_weights_by_adding(scores):
    m, n = scores.shape[-2:]
    future = torch.arange(n)[None, :] > torch.arange(n - m, n)[:, None]
    return torch.softmax(scores + torch.zeros(m, n).masked_fill(future, -1e9), dim=-1)


def causal_weights_row_by_row(scores):
    m, n = scores.shape[-2:]
    weights = torch.zeros_like(scores)
    for i in range(m):
        seen = n - m + i + 1
        weights[..., i, :seen] = scores[..., i, :seen].softmax(-1)
    return weights


def causal_weights_of_exponentials(scores):
    m, n = scores.shape[-2:]
    kept = torch.where(torch.ones(m, n).tril(n - m) == 1, scores, torch.tensor(-torch.inf))
    e = (kept - kept.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def causal_weights_that_see_the_past_only_half(scores):
    return causal_weights_row_by_row(scores / 2)


def causal_weights_of_square_tables(scores):
    weights = scores.clone()
    for i in range(scores.shape[-2]):
        weights[..., i, i + 1 :] = -math.inf
    return weights.softmax(-1)[..., : scores.shape[-1] - 1]


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


def attention_in_blocks_merging_logsumexp(q, k, v, block_size):
    out, lse = torch.zeros(len(q), v.shape[1]), torch.full((len(q),), -math.inf)
    for start in range(0, len(k), block_size):
        scores = q @ k[start : start + block_size].T * q.shape[1] ** -0.5
        block_lse = scores.logsumexp(1)
        both = torch.logaddexp(lse, block_lse)
        block = scores.softmax(1) @ v[start : start + block_size]
        out = out * (lse - both).exp()[:, None] + block * (block_lse - both).exp()[:, None]
        lse = both
    return out


def attention_in_blocks_in_two_passes(q, k, v, block_size):
    scaled = q / math.sqrt(q.shape[1])
    top = torch.stack([(scaled @ part.T).amax(1) for part in k.split(block_size)], 1).amax(1)[:, None]
    total, out = 0, 0
    for k_part, v_part in zip(k.split(block_size), v.split(block_size), strict=True):
        p = (scaled @ k_part.T - top).exp()
        total, out = total + p.sum(1, keepdim=True), out + p @ v_part
    return out / total


def attention_in_blocks_of_the_last_maximum(q, k, v, block_size):
    scaled, total, out = q / math.sqrt(q.shape[1]), 0, 0
    for k_part, v_part in zip(k.split(block_size), v.split(block_size), strict=True):
        scores = scaled @ k_part.T
        p = (scores - scores.amax(1, keepdim=True)).exp()
        total, out = total + p.sum(1, keepdim=True), out + p @ v_part
    return out / total


def attention_in_blocks_backwards(q, k, v, block_size):
    return attention_in_blocks_merging_logsumexp(q, k, v.flip(0), block_size)


def attention_in_blocks_that_are_too_large(q, k, v, block_size):
    return attention_in_blocks_merging_logsumexp(q, k, v, 8 * block_size)


alternatives = {
    "gru_2014": [gru_2014_from_one_product, gru_2014_sample_by_sample],
    "causal_weights": [causal_weights_by_adding, causal_weights_row_by_row, causal_weights_of_exponentials],
    "clip_gradients": [clip_gradients_by_torch, clip_gradients_as_one_vector, clip_gradients_of_lengths],
    "attention_in_blocks": [attention_in_blocks_merging_logsumexp, attention_in_blocks_in_two_passes],
}
wrong = {
    "gru_2014": [gru_2014_by_torch, gru_2014_updating_with_r],
    "causal_weights": [causal_weights_that_see_the_past_only_half, causal_weights_of_square_tables],
    "clip_gradients": [clip_gradients_by_subtracting, clip_gradients_of_the_first],
    "attention_in_blocks": [
        attention_in_blocks_of_the_last_maximum,
        attention_in_blocks_backwards,
        attention_in_blocks_that_are_too_large,
    ],
}
