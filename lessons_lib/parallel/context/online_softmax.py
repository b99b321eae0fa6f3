"""Attention to some of the keys, and how two such answers become one: the online softmax (lesson 17).

In all of it a row is one query; `lse` (…, T, 1) is the logarithm of its sum of exponentials, by which answers weigh.
"""

import torch


def attend(q, k, v, is_diagonal=False):
    """Answers of queries q (…, T, d) to keys and values k, v (…, S, d) alone, and their lse.

    With the scores s = q kᵀ / √d:  lse = log Σ exp(s),  answer = exp(s - lse) v.

    Args:
        is_diagonal: whether queries and keys are at the same positions, so that a query sees no later key.
    """
    scores = _scores(q, k, is_diagonal)
    lse = scores.logsumexp(-1, keepdim=True)
    return scores.sub_(lse).exp_() @ v, lse


def merge(answer, lse, other, other_lse):
    """Two answers of the same queries to different keys as one: each counts exp(lse), its share of the exponentials.

    Source: Milakov and Gimelshein, Online normalizer calculation for softmax (2018), §3.1.
    """
    total = torch.logaddexp(lse, other_lse)
    return answer * (lse - total).exp() + other * (other_lse - total).exp(), total


def differentiate(q, k, v, lse, gradient, mean_gradient, is_diagonal=False):
    """What these keys have to do with the gradients of q, k and v.

    With p = exp(s - lse) over *all* keys and the gradient g of the whole answer:  dv = pᵀ g,  ds = p (g vᵀ - δ),
    dq = ds k / √d,  dk = dsᵀ q / √d.

    Args:
        lse: of all keys that the queries see.
        gradient: g.
        mean_gradient: δ, for each row the sum of g times the whole answer.

    Source: Dao, FlashAttention-2 (2023), §3.1.2, algorithm 2.
    """
    shares = _scores(q, k, is_diagonal).sub_(lse).exp_()
    of_v = shares.mT @ gradient
    of_scores = shares.mul_((gradient @ v.mT).sub_(mean_gradient)).mul_(q.shape[-1] ** -0.5)
    return of_scores @ k, of_scores.mT @ q, of_v


def _scores(q, k, is_diagonal):
    scores = (q @ k.mT).mul_(q.shape[-1] ** -0.5)
    if is_diagonal:
        later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(later, -torch.inf)
    return scores
