"""Exercises of lesson 06b: causal weights, and attention in blocks."""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lessons_lib.exercises.core import Exercise, Outcome


def causal_weights(scores):
    """Attention weights in which no query sees a later key.

    scores: float tensor (..., m, n), m ≤ n: the m *newest* of n positions ask, all n may be asked.
    So the last row may look at every key, its own included; the row before it at all but the last.
    Returns weights of the same shape; each row sums to 1.
    """
    m, n = scores.shape[-2:]
    allowed = torch.ones(m, n, dtype=torch.bool).tril(n - m)
    return scores.masked_fill(~allowed, -math.inf).softmax(-1)


def _shifted(scores, diagonal, fill=-math.inf, dim=-1):
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(diagonal)
    return scores.masked_fill(~allowed, fill).softmax(dim)


def _room(scores):
    """How far the diagonal lies to the right: n − m."""
    return scores.shape[-1] - scores.shape[-2]


def _no_mask(scores):
    """Every query still sees every key: set the scores of later keys to −∞ before the softmax."""
    return scores.softmax(-1)


def _sees_the_next(scores):
    """Off by one: each query sees the key after it, which is the answer it is to guess."""
    return _shifted(scores, _room(scores) + 1)


def _not_itself(scores):
    """Off by one: a query may see its own position, and the first has nothing else to see."""
    return _shifted(scores, _room(scores) - 1)


def _aligned_at_the_start(scores):
    """With fewer queries than keys, the queries are the newest positions: the diagonal ends in the last corner.
    (Torch's is_causal=True starts it in the first.)"""
    return _shifted(scores, 0)


def _transposed(scores):
    """This shows the future and hides the past: keep the lower triangle, not the upper."""
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(_room(scores))
    return scores.masked_fill(~allowed, -math.inf).softmax(-1)


def _inverted(scores):
    """The mask is the wrong way round: masked_fill writes where its mask is True. Fill where ~allowed."""
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(_room(scores))
    return scores.masked_fill(allowed, -math.inf).softmax(-1)


def _after_the_softmax(scores):
    """Zeroed after the softmax, rows no longer sum to 1. Mask the scores instead."""
    return scores.softmax(-1).tril(_room(scores))


def _after_and_divided(scores):
    """Dividing again mends ordinary rows, but a later score of 1,000 has taken all the weight: 0/0. Mask the scores,
    before the softmax."""
    weights = scores.softmax(-1).tril(_room(scores))
    return weights / weights.sum(-1, keepdim=True)


def _zeros_for_scores(scores):
    """A score of 0 is a score like any other, e⁰ = 1. What may not be seen gets −∞."""
    return _shifted(scores, _room(scores), fill=0.0)


def _not_low_enough(scores):
    """Some weight leaks through: −10 is a low score, and only −∞ is none."""
    return _shifted(scores, _room(scores), fill=-10.0)


def _over_the_queries(scores):
    """Columns sum to 1 here: the weights of one query, along the last dimension, must."""
    return _shifted(scores, _room(scores), dim=-2)


def _tables():
    """A square to follow by hand; a batch; the newest rows alone; scores of 1,000 that must not be seen."""
    generator = torch.Generator().manual_seed(5)
    tall = torch.zeros(3, 3)
    tall[0, 2] = tall[1, 2] = 1000.0
    return [
        (torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [2.0, 0.0, 2.0]]),),
        (torch.randn(2, 3, 4, 4, generator=generator),),
        (torch.randn(2, 5, generator=generator),),
        (tall,),
    ]


causal_weights = Exercise(
    causal_weights,
    _tables,
    [
        _no_mask,
        _sees_the_next,
        _not_itself,
        _aligned_at_the_start,
        _transposed,
        _inverted,
        _after_the_softmax,
        _after_and_divided,
        _zeros_for_scores,
        _not_low_enough,
        _over_the_queries,
    ],
    [
        "Which (query, key) pairs are allowed? Draw the 3 × 3 table, then the one with 2 queries and 5 keys.",
        "torch.ones(m, n, dtype=torch.bool).tril(k) is True on and below the k-th diagonal; k = 0 begins top left.",
        "k = n − m; then scores.masked_fill(~allowed, -math.inf).softmax(-1).",
    ],
)


def attention_in_blocks(q, k, v, block_size):
    """softmax(q kᵀ/√d) v, read in blocks of keys, so that the table of all scores never exists.

    q: (m, d), k: (n, d), v: (n, e); scores may be in the hundreds. block_size: how many keys are
    read at a time; the last block may be shorter. No tensor you make should hold more than
    2 · m · block_size numbers; views are free. Divide q or the scores by √d, not all keys.
    Returns (m, e).
    """
    top = torch.full((len(q), 1), -math.inf, dtype=q.dtype)  # the largest score so far
    total = torch.zeros(len(q), 1, dtype=q.dtype)  # Σ exp(score − top)
    out = torch.zeros(len(q), v.shape[1], dtype=q.dtype)  # Σ exp(score − top) v
    for k_block, v_block in zip(k.split(block_size), v.split(block_size), strict=True):
        scores = q @ k_block.T / math.sqrt(q.shape[1])
        new_top = torch.maximum(top, scores.amax(1, keepdim=True))
        p = (scores - new_top).exp()
        shrink = (top - new_top).exp()  # what was added up under the old maximum
        total = shrink * total + p.sum(1, keepdim=True)
        out = shrink * out + p @ v_block
        top = new_top
    return out / total


def _scores(q, k_block):
    return q @ k_block.T / math.sqrt(q.shape[1])


def _blocks(k, v, block_size):
    return zip(k.split(block_size), v.split(block_size), strict=True)


def _running(q, k, v, block_size, scale=None, shrink_total=True, shrink_out=True, shift=True):
    top, total, out = torch.full((len(q), 1), -math.inf, dtype=q.dtype), 0, 0
    for k_block, v_block in _blocks(k, v, block_size):
        scores = q @ k_block.T * (q.shape[1] ** -0.5 if scale is None else scale)
        new_top = torch.maximum(top, scores.amax(1, keepdim=True)) if shift else torch.zeros_like(top)
        p, shrink = (scores - new_top).exp(), (top - new_top).exp() if shift else 1
        total = (shrink if shrink_total else 1) * total + p.sum(1, keepdim=True)
        out = (shrink if shrink_out else 1) * out + p @ v_block
        top = new_top
    return out, total


def _no_scale(q, k, v, block_size):
    """The scores lack their 1/√d, with d the width of a query."""
    out, total = _running(q, k, v, block_size, scale=1.0)
    return out / total


def _scale_of_d(q, k, v, block_size):
    """Divided by d: the standard deviation of q·k is √d, so divide by that."""
    out, total = _running(q, k, v, block_size, scale=1 / q.shape[1])
    return out / total


def _whole_table(q, k, v, block_size):
    """Right, and the whole m × n table of scores was there at once. Read k and v in blocks."""
    del block_size
    return _scores(q, k).softmax(1) @ v


def _row_by_row(q, k, v, block_size):
    """One query at a time still needs a row of n scores: cut up the keys, not the queries."""
    del block_size
    return torch.stack([(k @ row / math.sqrt(len(row))).softmax(0) @ v for row in q])


def _mean_of_blocks(q, k, v, block_size):
    """Blocks do not weigh the same: one with high scores counts for more. Keep Σ exp and Σ exp · v over all."""
    return torch.stack([_scores(q, a).softmax(1) @ b for a, b in _blocks(k, v, block_size)]).mean(0)


def _mean_without_a_stack(q, k, v, block_size):
    """Blocks do not weigh the same: one with high scores counts for more. Keep Σ exp and Σ exp · v over all blocks."""
    return _sum_of_blocks(q, k, v, block_size) / len(k.split(block_size))


def _mean_by_length(q, k, v, block_size):
    """Weighing each block's softmax by its number of keys is not enough: high scores count for more. Keep Σ exp and
    Σ exp · v over all."""
    return sum(_scores(q, a).softmax(1) @ b * len(a) for a, b in _blocks(k, v, block_size)) / len(k)


def _sum_of_blocks(q, k, v, block_size):
    """Each block has its own softmax here, so the weights sum to the number of blocks."""
    return sum(_scores(q, a).softmax(1) @ b for a, b in _blocks(k, v, block_size))


def _never_shrinks(q, k, v, block_size):
    """When a later block raises the maximum, the sums so far were made with the old one: multiply both by exp(old −
    new)."""
    out, total = _running(q, k, v, block_size, shrink_total=False, shrink_out=False)
    return out / total


def _shrinks_the_total_only(q, k, v, block_size):
    """The total is moved to the new maximum, the sum of values is not. Both must."""
    out, total = _running(q, k, v, block_size, shrink_out=False)
    return out / total


def _no_maximum(q, k, v, block_size):
    """exp of a score in the hundreds is ∞: subtract the largest score seen so far."""
    out, total = _running(q, k, v, block_size, shift=False)
    return out / total


def _one_maximum_for_all(q, k, v, block_size):
    """Keep one maximum per query: under that of another query, hundreds higher, every exp of this one is 0."""
    top, total, out = torch.tensor(-math.inf), 0, 0
    for k_block, v_block in _blocks(k, v, block_size):
        scores = _scores(q, k_block)
        new_top = torch.maximum(top, scores.amax())
        p, shrink = (scores - new_top).exp(), (top - new_top).exp()
        total = shrink * total + p.sum(1, keepdim=True)
        out = shrink * out + p @ v_block
        top = new_top
    return out / total


def _not_divided(q, k, v, block_size):
    """Weights must sum to 1: divide by the sum of all exp at the end."""
    return _running(q, k, v, block_size)[0]


def _loses_the_rest(q, k, v, block_size):
    """n need not be a multiple of block_size: the last, shorter block is left out."""
    whole = max(len(k) // block_size, 1) * block_size
    out, total = _running(q, k[:whole], v[:whole], block_size)
    return out / total


def _over_the_queries_too(q, k, v, block_size):
    """The softmax runs over the queries here; a query shares its weight among keys."""
    return sum(_scores(q, a).softmax(0) @ b for a, b in _blocks(k, v, block_size))


class _Largest(TorchDispatchMode):
    """Watches the tensors that operations make; views of what there was count as nothing."""

    def __init__(self, given):
        super().__init__()
        self.given, self.numel = {tensor.untyped_storage().data_ptr() for tensor in given}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                self.numel = max(self.numel, tensor.numel())
        return made


def _watch(fn, q, k, v, block_size):
    """The result; the numbers in the largest tensor made on the way, beyond those allowed, as the cost."""
    with _Largest([q, k, v]) as largest:
        out = fn(q, k, v, block_size)
    return Outcome(out, {"numbers in the largest tensor": max(largest.numel, 2 * len(q) * block_size)})


def _long_inputs():
    """Five keys in blocks of two, the largest score last; 600 keys; scores in the hundreds; queries whose maxima lie
    hundreds apart."""
    generator = torch.Generator().manual_seed(9)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    keys = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
    apart = torch.tensor([[10.0, 1.0], [20.0, 0.0], [30.0, 2.0], [25.0, 1.0]])
    return [
        (torch.tensor([[1.0, 0.0], [0.5, 2.0]]), keys, torch.arange(5.0)[:, None], 2),
        (draw(4, 8), draw(600, 8), draw(600, 3), 32),
        (30 * draw(3, 16), 10 * draw(70, 16), draw(70, 4), 8),
        (torch.tensor([[40.0, 0.0], [0.0, 1.0]]), apart, torch.arange(4.0)[:, None], 2),
    ]


attention_in_blocks = Exercise(
    attention_in_blocks,
    _long_inputs,
    [
        _no_scale,
        _scale_of_d,
        _whole_table,
        _row_by_row,
        _mean_of_blocks,
        _mean_without_a_stack,
        _mean_by_length,
        _sum_of_blocks,
        _never_shrinks,
        _shrinks_the_total_only,
        _no_maximum,
        _one_maximum_for_all,
        _not_divided,
        _loses_the_rest,
        _over_the_queries_too,
    ],
    [
        "Softmax is a quotient of sums over keys, Σ exp(s) v and Σ exp(s): both can be added up block by block.",
        "Subtract the largest score seen so far from s. If it grows from a to b, multiply both sums by exp(a − b).",
        "Start with top = −∞ and sums of 0: then exp(top − new_top) is 0, and the first block needs no special case.",
    ],
    outcome=_watch,
    rtol=1e-4,
    atol=1e-5,
)
