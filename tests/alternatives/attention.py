"""Other answers to the exercises of lesson 06b."""

import functools
import math

import torch


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


def causal_weights_without_a_maximum(scores):
    m, n = scores.shape[-2:]
    e = scores.masked_fill(torch.ones(m, n).triu(n - m + 1) == 1, -math.inf).exp()
    return e / e.sum(-1, keepdim=True)


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


def attention_in_blocks_that_are_kept(q, k, v, block_size):
    pieces = [q @ part.T / math.sqrt(q.shape[1]) for part in k.split(block_size)]
    top = functools.reduce(torch.maximum, [piece.amax(1, keepdim=True) for piece in pieces])
    total, out = 0, 0
    for piece, v_part in zip(pieces, v.split(block_size), strict=True):
        p = (piece - top).exp()
        total, out = total + p.sum(1, keepdim=True), out + p @ v_part
    return out / total


def attention_in_blocks_that_are_too_large(q, k, v, block_size):
    return attention_in_blocks_merging_logsumexp(q, k, v, 8 * block_size)


alternatives = {
    "causal_weights": [causal_weights_by_adding, causal_weights_row_by_row, causal_weights_of_exponentials],
    "attention_in_blocks": [attention_in_blocks_merging_logsumexp, attention_in_blocks_in_two_passes],
}
wrong = {
    "causal_weights": [
        causal_weights_that_see_the_past_only_half,
        causal_weights_of_square_tables,
        causal_weights_without_a_maximum,
    ],
    "attention_in_blocks": [
        attention_in_blocks_of_the_last_maximum,
        attention_in_blocks_backwards,
        attention_in_blocks_that_are_too_large,
        attention_in_blocks_that_are_kept,
    ],
}
