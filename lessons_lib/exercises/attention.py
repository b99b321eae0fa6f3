"""Exercises of lesson 06b: causal weights, and attention in blocks."""

import math
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lessons_lib.exercises.cases import drawn, spread
from lessons_lib.exercises.core import Exercise, Outcome, edit


def causal_weights(scores):
    """Attention weights in which no query sees a later key.

    scores: float tensor (..., m, n), m ≤ n: the m *newest* of n positions ask, all n may be asked.
    So the last row may look at every key, its own included; the row before it at all but the last.
    Returns weights of the same shape and dtype; each row sums to 1. Gradients flow back to scores.
    """
    m, n = scores.shape[-2:]
    allowed = torch.ones(m, n, dtype=torch.bool).tril(n - m)
    return scores.masked_fill(~allowed, -math.inf).softmax(-1)


def _weights(fn, scores):
    """The weights, and the gradient that a combination of them sends back to the scores."""
    scores.requires_grad_()
    weights = fn(scores)
    if not isinstance(weights, torch.Tensor) or not weights.requires_grad:
        return Outcome(weights, faults=["returns weights through which no gradient flows back"])
    combination = torch.cos(torch.arange(weights.numel(), dtype=weights.dtype)).view(weights.shape)
    (gradient,) = torch.autograd.grad((weights * combination).sum(), scores, allow_unused=True)
    return {"weights": weights.detach(), "gradient of the scores": gradient}


def _tables():
    """A square to follow by hand; batches; the newest rows alone; one position; scores of 1,000 that must not be
    seen, or may; scores of −100,000; numbers far apart in memory."""
    unseen = torch.zeros(3, 3, dtype=torch.float64)
    unseen[0, 2] = unseen[1, 2] = 1000.0
    tables = [
        torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [2.0, 0.0, 2.0]]),
        drawn(2, 3, 4, 4),
        drawn(2, 5, seed=1),
        unseen,
        unseen.T.clone(),
        drawn(1, 3, 2, 7, seed=2, dtype=torch.float64),
        drawn(1, 6, seed=3),
        torch.tensor([[3.0]]),
        torch.arange(9.0, dtype=torch.float64).view(3, 3) - 100_000,
        spread(drawn(2, 3, 5, seed=4)),
    ]
    return [(table,) for table in tables]


_MASKED = "scores.masked_fill(~allowed, -math.inf).softmax(-1)"

causal_weights = Exercise(
    causal_weights,
    _tables,
    [
        edit(
            *(_MASKED, "scores.softmax(-1)"),
            "Every query still sees every key: set the scores of later keys to −∞ before the softmax.",
        ),
        edit(
            *("tril(n - m)", "tril(n - m + 1)"),
            "Off by one: each query sees the key after it, which is the answer it is to guess.",
        ),
        edit(
            *("tril(n - m)", "tril(n - m - 1)"),
            "Off by one: a query may see its own position, and the first has nothing else to see.",
        ),
        edit(
            *("tril(n - m)", "tril()"),
            "With fewer queries than keys, the queries are the newest positions: the diagonal ends in the last corner. "
            "(Torch's is_causal=True starts it in the first.)",
        ),
        edit(
            *("~allowed", "allowed"),
            "The mask is the wrong way round: masked_fill writes where its mask is True. Fill where ~allowed.",
        ),
        edit(
            *(_MASKED, "scores.softmax(-1) * allowed"),
            "Zeroed after the softmax, rows no longer sum to 1. Mask the scores instead.",
        ),
        edit(
            *("return " + _MASKED, "w = scores.softmax(-1) * allowed\n    return w / w.sum(-1, keepdim=True)"),
            "Dividing again mends ordinary rows, but a later score of 1,000 has taken all the weight: 0/0. Mask the "
            "scores, before the softmax.",
        ),
        edit("-math.inf", "0.0", "A score of 0 is a score like any other, e⁰ = 1. What may not be seen gets −∞."),
        edit(
            *("softmax(-1)", "softmax(-2)"),
            "Columns sum to 1 here: the weights of one query, along the last dimension, must.",
        ),
    ],
    [
        "Which (query, key) pairs are allowed? Draw the 3 × 3 table, then the one with 2 queries and 5 keys.",
        "torch.ones(m, n, dtype=torch.bool).tril(k) is True on and below the k-th diagonal; k = 0 begins top left.",
        "k = n − m; then scores.masked_fill(~allowed, -math.inf).softmax(-1).",
    ],
    outcome=_weights,
)


def attention_in_blocks(q, k, v, block_size):
    """softmax(q kᵀ/√d) v, read in blocks of keys, so that the table of all scores never exists.

    q: (m, d), k: (n, d), v: (n, e); scores may be in the hundreds. block_size: how many keys are
    read at a time; the last block may be shorter. No tensor you make should hold more than
    2 · m · block_size numbers; views are free. Divide q or the scores by √d, not all keys. Do not
    keep the scores of all blocks either. No gradients are asked for, so sums may be changed in place.
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


def _row_by_row(q, k, v, block_size):
    """One query at a time still needs a row of n scores: cut up the keys, not the queries."""
    del block_size
    return torch.stack([(k @ row / math.sqrt(len(row))).softmax(0) @ v for row in q])


def _mean_of_blocks(q, k, v, block_size):
    """Blocks do not weigh the same: one with high scores counts for more. Keep Σ exp and Σ exp · v over all blocks."""
    keys = k.split(block_size)
    answers = [_alone(q, a, b) for a, b in zip(keys, v.split(block_size), strict=True)]
    return sum(answers) / len(keys)


def _mean_by_length(q, k, v, block_size):
    """Weighing each block's softmax by its number of keys is not enough: high scores count for more. Keep Σ exp and
    Σ exp · v over all."""
    pairs = zip(k.split(block_size), v.split(block_size), strict=True)
    return sum(_alone(q, a, b) * len(a) for a, b in pairs) / len(k)


def _alone(q, k, v):
    return (q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v


class _Held(TorchDispatchMode):
    """Watches the tensors that operations make: the largest, and how many numbers live at once. Views count as nothing.

    Attributes:
        largest: numbers in the largest tensor.
        most: numbers in all tensors that lived at the same time, at most.
    """

    def __init__(self, given):
        super().__init__()
        self.given, self.living = {tensor.untyped_storage().data_ptr() for tensor in given}, []
        self.largest, self.most = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                self.largest = max(self.largest, tensor.numel())
                self.living.append(weakref.ref(tensor))
        self.living = [ref for ref in self.living if ref() is not None]
        storages = [(tensor.untyped_storage(), tensor.itemsize) for ref in self.living if (tensor := ref()) is not None]
        sizes = {storage.data_ptr(): storage.nbytes() // itemsize for storage, itemsize in storages}
        self.most = max(self.most, sum(sizes.values()))
        return made


def _watch(fn, q, k, v, block_size):
    """The result; the numbers in the largest tensor made on the way, beyond those allowed, as the cost."""
    with _Held([q, k, v]) as held:
        out = fn(q, k, v, block_size)
    allowed = 2 * len(q) * block_size
    enough = 8 * len(q) * (block_size + q.shape[1] + v.shape[1])  # scores, their exp and so on, of one block
    faults = []
    if held.largest <= allowed and held.most > enough:
        faults = ["keeps the table in pieces: its tensors hold far more numbers at once than the scores of one block"]
    return Outcome(out, {"numbers in the largest tensor": max(held.largest, allowed)}, faults)


def _long_inputs():
    """Five keys in blocks of two, the largest score last; scores in the hundreds, of either sign or all below 0; maxima
    that lie hundreds apart; one key at a time; blocks with room to spare; 600 keys, whose price the verdict tells."""
    few = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    keys = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
    values = torch.arange(5.0)[:, None]
    apart = torch.tensor([[10.0, 1.0], [20.0, 0.0], [30.0, 2.0], [25.0, 1.0]])
    below = drawn(6, 2, seed=1).abs() + 20
    return [
        (few, keys, values, 2),
        (30 * drawn(3, 16, seed=2), 10 * drawn(70, 16, seed=3), drawn(70, 4, seed=4), 8),
        (torch.tensor([[40.0, 0.0], [0.0, 1.0]]), apart, torch.arange(4.0)[:, None], 2),
        (-15 * drawn(3, 2).abs() - 15, below, drawn(6, 3), 4),
        (few.double(), keys[3:].double(), values[3:].double(), 1),
        (spread(drawn(1, 3)), spread(drawn(7, 3, seed=1)), spread(drawn(7, 5, seed=2)), 12),
        (drawn(2, 4), drawn(1, 4, seed=1), drawn(1, 2, seed=2), 3),
        (drawn(4, 8), drawn(600, 8, seed=1), drawn(600, 3, seed=2), 32),
    ]


_PAIRS = "zip(k.split(block_size), v.split(block_size), strict=True)"

attention_in_blocks = Exercise(
    attention_in_blocks,
    _long_inputs,
    [
        edit(" / math.sqrt(q.shape[1])", "", "The scores lack their 1/√d, with d the width of a query."),
        edit(
            *("math.sqrt(q.shape[1])", "q.shape[1]"),
            "Divided by d: the standard deviation of q·k is √d, so divide by that.",
        ),
        edit(
            *(_PAIRS, "[(k, v)]"),
            "Right, and the whole m × n table of scores was there at once. Read k and v in blocks.",
        ),
        _row_by_row,
        _mean_of_blocks,
        _mean_by_length,
        edit(
            *("shrink * total", "total"),
            *("shrink * out", "out"),
            "When a later block raises the maximum, the sums so far were made with the old one: multiply both by "
            "exp(old − new).",
        ),
        edit("shrink * out", "out", "The total is moved to the new maximum, the sum of values is not. Both must."),
        edit(
            *("torch.maximum(top, scores.amax(1, keepdim=True))", "torch.zeros_like(top)"),
            "exp of a score in the hundreds is ∞: subtract the largest score seen so far.",
        ),
        edit(
            *("-math.inf", "0.0"),
            "A maximum that starts at 0 is never reached by scores of −500, and every exp is 0: start at −∞.",
        ),
        edit(
            *("scores.amax(1, keepdim=True)", "scores.amax()"),
            "Keep one maximum per query: under that of another query, hundreds higher, every exp of this one is 0.",
        ),
        edit("out / total", "out", "Weights must sum to 1: divide by the sum of all exp at the end."),
        edit(
            *(_PAIRS, "list(zip(k.split(block_size), v.split(block_size)))[: max(len(k) // block_size, 1)]"),
            "n need not be a multiple of block_size: the last, shorter block is left out.",
        ),
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
