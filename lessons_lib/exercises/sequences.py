"""Exercises of lesson 06: the GRU of 2014, causal weights, clipping by the global norm, attention in blocks."""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lessons_lib.exercises.core import Exercise, Outcome


def gru_2014(x, h, W, U, b):
    """One step of the GRU as first published: the reset gate acts on h *before* U does.

    r = σ(W_r x + U_r h + b_r),  z = σ(W_z x + U_z h + b_z),
    n = tanh(W_n x + U_n (r ⊙ h) + b_n),  h' = z ⊙ h + (1 − z) ⊙ n

    x: (B, I). h: (B, H). W: (3H, I), U: (3H, H), b: (3H,), each with its parts in the order r, z, n.
    Returns h', (B, H).
    """
    W_r, W_z, W_n = W.chunk(3)
    U_r, U_z, U_n = U.chunk(3)
    b_r, b_z, b_n = b.chunk(3)
    r = torch.sigmoid(x @ W_r.T + h @ U_r.T + b_r)
    z = torch.sigmoid(x @ W_z.T + h @ U_z.T + b_z)
    n = torch.tanh(x @ W_n.T + (r * h) @ U_n.T + b_n)
    return z * h + (1 - z) * n


def _gates(x, h, W, U, b, squash=torch.sigmoid):
    """r and z, and what the candidate gets from x and from h without reset."""
    (ar, az, an), (ur, uz, un) = (x @ W.T + b).chunk(3, -1), (h @ U.T).chunk(3, -1)
    return squash(ar + ur), squash(az + uz), an, un


def _as_torch_does(x, h, W, U, b):
    """That is torch's form, r ⊙ (U_n h), where the reset comes after the matrix. Here r multiplies h first."""
    r, z, from_x, from_h = _gates(x, h, W, U, b)
    return z * h + (1 - z) * torch.tanh(from_x + r * from_h)


def _resets_the_sum(x, h, W, U, b):
    """The reset gate shuts out the old state, not the input: W_n x + b_n stays whole."""
    r, z, from_x, from_h = _gates(x, h, W, U, b)
    return z * h + (1 - z) * torch.tanh(r * (from_x + from_h))


def _never_resets(x, h, W, U, b):
    """r is computed and then never used: the candidate sees r ⊙ h, not h."""
    _, z, from_x, from_h = _gates(x, h, W, U, b)
    return z * h + (1 - z) * torch.tanh(from_x + from_h)


def _candidate(x, h, W, U, b, squash=torch.tanh):
    r, z, from_x, _ = _gates(x, h, W, U, b)
    return r, z, squash(from_x + (r * h) @ U.chunk(3)[2].T)


def _z_swapped(x, h, W, U, b):
    """The gates are swapped in the last line: here z keeps the old h, and 1 − z lets n in."""
    _, z, n = _candidate(x, h, W, U, b)
    return (1 - z) * h + z * n


def _keeps_the_reset(x, h, W, U, b):
    """The reset state r ⊙ h is for the candidate alone; the last line keeps z ⊙ h itself."""
    r, z, n = _candidate(x, h, W, U, b)
    return z * (r * h) + (1 - z) * n


def _parts_swapped(x, h, W, U, b):
    """The first H rows belong to r and the next H to z; here it is the other way round."""
    swapped = [torch.cat([part.chunk(3)[i] for i in (1, 0, 2)]) for part in (W, U, b)]
    return gru_2014.reference(x, h, *swapped)


def _sigmoid_candidate(x, h, W, U, b):
    """The candidate n may be negative: tanh, not σ. Only gates use σ."""
    _, z, n = _candidate(x, h, W, U, b, torch.sigmoid)
    return z * h + (1 - z) * n


def _tanh_gates(x, h, W, U, b):
    """Gates are shares between 0 and 1, so they need σ; tanh goes below 0."""
    r, z, from_x, _ = _gates(x, h, W, U, b, torch.tanh)
    return z * h + (1 - z) * torch.tanh(from_x + (r * h) @ U.chunk(3)[2].T)


def _no_bias(x, h, W, U, b):
    """The bias b is not used: all three parts have one."""
    return gru_2014.reference(x, h, W, U, torch.zeros_like(b))


def _adds_the_candidate(x, h, W, U, b):
    """What z keeps of h must make room for n: the candidate is weighed with 1 − z."""
    _, z, n = _candidate(x, h, W, U, b)
    return z * h + n


def _steps():
    """A state of two numbers to follow by hand; two batches with B, I and H that differ."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    by_hand = torch.tensor([[1.0]]), torch.tensor([[0.5, -1.0]])
    parts = (torch.linspace(-1, 1, 6)[:, None], torch.linspace(-1, 2, 12).view(6, 2), torch.linspace(0.5, -0.5, 6))
    sizes = [(3, 4, 5), (4, 2, 3)]
    return [(*by_hand, *parts)] + [
        (draw(B, i), draw(B, H), draw(3 * H, i), draw(3 * H, H), draw(3 * H)) for B, i, H in sizes
    ]


gru_2014 = Exercise(
    gru_2014,
    _steps,
    [
        _as_torch_does,
        _resets_the_sum,
        _never_resets,
        _z_swapped,
        _keeps_the_reset,
        _parts_swapped,
        _sigmoid_candidate,
        _tanh_gates,
        _no_bias,
        _adds_the_candidate,
    ],
    [
        "Cut W, U and b in three along their rows: `W_r, W_z, W_n = W.chunk(3)`.",
        "With samples as rows, W_r x for all of them is `x @ W_r.T`.",
        "n = torch.tanh(x @ W_n.T + (r * h) @ U_n.T + b_n), and z weighs h, 1 − z weighs n.",
    ],
    rtol=1e-6,
)


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


def clip_gradients(gradients, max_norm):
    """Shorten the gradients of a model to a total length of at most `max_norm`, in place.

    gradients: list of tensors of any shapes, changed in place, together one long vector. max_norm: > 0.
    Their direction stays, and so do gradients that are short enough.
    Returns the length that the vector had before, a number.
    """
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    if norm > max_norm:
        for g in gradients:
            g *= max_norm / norm
    return norm


def _length(gradients):
    return math.sqrt(sum(g.square().sum().item() for g in gradients))


def _scaled(gradients, factor):
    for g in gradients:
        g *= factor


def _each_alone(gradients, max_norm):
    """Each tensor is clipped by its own norm, which turns the direction of the whole. One norm, one factor."""
    norm = _length(gradients)
    for g in gradients:
        g *= min(1.0, max_norm / max(g.norm().item(), 1e-12))
    return norm


def _always(gradients, max_norm):
    """This also *lengthens* gradients that are short. Below max_norm nothing changes."""
    norm = _length(gradients)
    _scaled(gradients, max_norm / max(norm, 1e-12))
    return norm


def _by_the_square(gradients, max_norm):
    """Divided by the square of the norm the result is too short: the factor is max_norm/norm."""
    norm = _length(gradients)
    _scaled(gradients, min(1.0, max_norm / max(norm, 1e-12) ** 2))
    return norm


def _without_the_root(gradients, max_norm):
    """A sum of squares is the square of a length: take its root."""
    norm = _length(gradients) ** 2
    _scaled(gradients, min(1.0, max_norm / max(norm, 1e-12)))
    return norm


def _sum_of_lengths(gradients, max_norm):
    """Lengths of parts do not add up: 3 and 4 at right angles give 5. Add their squares."""
    norm = sum(g.norm().item() for g in gradients)
    _scaled(gradients, min(1.0, max_norm / max(norm, 1e-12)))
    return norm


def _longest_alone(gradients, max_norm):
    """That is the length of the longest tensor. All of them together are one vector."""
    norm = max(g.norm().item() for g in gradients)
    _scaled(gradients, min(1.0, max_norm / max(norm, 1e-12)))
    return norm


def _entries(gradients, max_norm):
    """Clamping entries bends the direction. One factor for all entries keeps it."""
    norm = _length(gradients)
    for g in gradients:
        g.clamp_(-max_norm, max_norm)
    return norm


def _length_afterwards(gradients, max_norm):
    """Return the length *before* clipping: after it, one cannot see that it was needed."""
    clip_gradients.reference(gradients, max_norm)
    return _length(gradients)


def _copies(gradients, max_norm):
    """The tensors handed in are unchanged: `g *= …` works in place, `g = g * …` does not."""
    return clip_gradients.reference([g.clone() for g in gradients], max_norm)


def _to_length_one(gradients, max_norm):
    """Cut down to a length of 1: the length that is allowed is max_norm."""
    norm = _length(gradients)
    if norm > max_norm:
        _scaled(gradients, 1 / norm)
    return norm


def _clip(fn, gradients, max_norm):
    """What is returned, and the gradients afterwards."""
    returned = fn(gradients, max_norm)
    return {"returned": returned, "gradients": gradients}


def _gradient_lists():
    """3-4-12 and its length 13; a short one; a matrix, a vector and a number; nothing but zeros."""
    generator = torch.Generator().manual_seed(7)
    shapes = (4, 3), (5,), ()
    return [
        ([torch.tensor([3.0, 4.0]), torch.tensor([12.0])], 6.5),
        ([torch.tensor([0.3, -0.4]), torch.tensor([[0.0]])], 2.0),
        ([5 * torch.randn(shape, generator=generator) for shape in shapes], 2.0),
        ([torch.zeros(3), torch.zeros(2)], 0.5),
    ]


clip_gradients = Exercise(
    clip_gradients,
    _gradient_lists,
    [
        _each_alone,
        _always,
        _by_the_square,
        _without_the_root,
        _sum_of_lengths,
        _longest_alone,
        _entries,
        _length_afterwards,
        _copies,
        _to_length_one,
    ],
    [
        "Think of all tensors laid end to end: one vector, one length.",
        "norm = the root of the sum of all squares; the factor is max_norm / norm, when that is below 1.",
        "Change the tensors in place: `for g in gradients: g *= factor`. Zero gradients must not become nan.",
    ],
    outcome=_clip,
)


def attention_in_blocks(q, k, v, block_size):
    """softmax(q kᵀ/√d) v, read in blocks of keys, so that the table of all scores never exists.

    q: (m, d), k: (n, d), v: (n, e); scores may be in the hundreds. block_size: how many keys are
    read at a time; the last block may be shorter. No tensor you make should hold more than
    2 · m · block_size numbers. Returns (m, e).
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
    """Five keys in blocks of two, the largest score last; 600 keys; scores in the hundreds."""
    generator = torch.Generator().manual_seed(9)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    keys = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
    return [
        (torch.tensor([[1.0, 0.0], [0.5, 2.0]]), keys, torch.arange(5.0)[:, None], 2),
        (draw(4, 8), draw(600, 8), draw(600, 3), 32),
        (30 * draw(3, 16), 10 * draw(70, 16), draw(70, 4), 8),
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
        _sum_of_blocks,
        _never_shrinks,
        _shrinks_the_total_only,
        _no_maximum,
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
