"""Exercises of lesson 25: clipped samples, one ε by two conversions, masks that cancel, a log's first wrong line."""

import hashlib
import hmac
import math

import torch

from lessons_lib.exercises.cases import drawn, spread
from lessons_lib.exercises.core import Exercise, edit

# --- clip_per_sample: a step of DP-SGD --------------------------------------------------------------------------------


def clip_per_sample(gradients, max_norm, noise_multiplier, noise, expected_batch_size):
    """Return {name: tensor}: the gradient that a step of DP-SGD gives to the optimiser.

    gradients: {name of a parameter: float tensor (B, *shape of the parameter)}, one row for each sample; B may be 0.
    max_norm: C > 0. A sample whose whole gradient, all parameters together, has a norm (square root of the sum of
        squares) above C is scaled down to norm C. All other samples stay as they are.
    noise_multiplier: σ ≥ 0. noise: {name: tensor of the parameter's shape}, drawn with standard deviation 1: to be
        scaled to σ C and added once, to the sum over the samples.
    expected_batch_size: B̄ > 0, what the sum with its noise is divided by, however many samples there are.
    Gradients and noise stay as they are.
    """
    squares = sum(g.flatten(1).square().sum(dim=1) if g.dim() > 1 else g.square() for g in gradients.values())
    factors = (max_norm / squares.sqrt()).clamp(max=1.0)
    result = {}
    for name, g in gradients.items():
        total = torch.einsum("b,b...->...", factors, g)
        result[name] = (total + noise_multiplier * max_norm * noise[name]) / expected_batch_size
    return result


def _step(num_samples, max_norm, noise_multiplier, expected, seed, scale=1.0, dtype=torch.float64):
    shapes = {"weight": (4, 3), "bias": (4,), "gain": ()}
    gradients, noise = {}, {}
    for place, (name, shape) in enumerate(shapes.items()):
        drawing = {"seed": seed + 2 * place, "dtype": dtype}
        gradients[name] = scale * spread(drawn(num_samples, *shape, **drawing))
        noise[name] = drawn(*shape, seed=seed + 2 * place + 1, dtype=dtype)
    return gradients, max_norm, noise_multiplier, noise, expected


def _noise_in_another_order():
    gradients, max_norm, noise_multiplier, noise, expected = _step(3, 1.0, 1.0, 2, seed=50)
    return gradients, max_norm, noise_multiplier, dict(reversed(noise.items())), expected


def _one_large_and_one_zero():
    gradients, *others = _step(3, 2.0, 0.5, 4, seed=40)
    row = torch.tensor([100.0, 0.0, 0.1], dtype=torch.float64)
    return {name: g * row.view(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()}, *others


def clip_the_sum(gradients, max_norm, noise_multiplier, noise, expected_batch_size):
    """You clip the sum of all samples. One of them can still turn it wherever it likes: clip each, then add."""
    total = {name: g.sum(dim=0) for name, g in gradients.items()}
    size = torch.stack([t.square().sum() for t in total.values()]).sum().sqrt()
    factor = (max_norm / size).clamp(max=1.0)
    scale = noise_multiplier * max_norm
    return {name: (factor * t + scale * noise[name]) / expected_batch_size for name, t in total.items()}


def clip_each_parameter(gradients, max_norm, noise_multiplier, noise, expected_batch_size):
    """You clip each parameter by itself. With n of them a sample's gradient may then have the norm C √n: take the norm
    of all together."""
    result = {}
    for name, g in gradients.items():
        size = g.reshape(len(g), g[0].numel() if len(g) else 1).norm(dim=1)
        total = torch.einsum("b,b...->...", (max_norm / size).clamp(max=1.0), g)
        result[name] = (total + noise_multiplier * max_norm * noise[name]) / expected_batch_size
    return result


clip_per_sample = Exercise(
    clip_per_sample,
    lambda: [
        _step(5, 1.0, 0.0, 5, seed=0),  # no noise
        _step(5, 1.0, 1.1, 4, seed=6),  # more samples than expected
        _step(3, 100.0, 0.3, 8, seed=12),  # all below C
        _step(1, 0.5, 2.0, 2.5, seed=18, dtype=torch.float32),
        _step(0, 1.5, 0.7, 3, seed=24),  # nobody was drawn
        _one_large_and_one_zero(),
        _step(6, 3.0, 0.5, 6, seed=30, scale=0.8),  # some above, some below
        _noise_in_another_order(),
        _step(4, 1e-4, 0.5, 1e-4, seed=60, scale=1e-4),  # all tiny, and above C; so few expected that it shows
    ],
    [
        clip_the_sum,
        clip_each_parameter,
        edit(
            ".clamp(max=1.0)",
            "",
            "You scale every sample to norm C, small ones up too. Only what is above C is scaled: min(1, C / norm).",
        ),
        edit(
            "noise_multiplier * max_norm * noise[name]",
            "noise_multiplier * noise[name]",
            "The noise has the standard deviation σ C: it must hide what one sample can do, and that is C.",
        ),
        edit(
            "/ expected_batch_size",
            "/ max(1, len(g))",
            "You divide by how many samples were drawn. That number tells of a sample: divide by what is expected.",
        ),
        edit(
            "(total + noise_multiplier * max_norm * noise[name]) / expected_batch_size",
            "total / expected_batch_size + noise_multiplier * max_norm * noise[name]",
            "The noise is added to the sum; then both are divided.",
        ),
    ],
    [
        "How much may one sample move the sum at most? Scale each sample's gradient, all its parameters together.",
        "A sample's squared norm is the sum of squares over all parameters; the factor is min(1, C / norm).",
        '`torch.einsum("b,b...->...", factors, g)` adds up the samples, each with its factor, for every shape.',
    ],
)


# --- epsilon_of: two conversions, one run -----------------------------------------------------------------------------


def epsilon_of(sample_rate, noise_multiplier, steps, delta, orders):
    """Return (classic, tight): ε of `steps` steps of DP-SGD by two conversions, each the smallest over the orders.

    sample_rate: q from 0 to 1. noise_multiplier: σ ≥ 1. steps: a whole number T ≥ 0. delta: 0 < δ < 1.
    orders: a list of whole numbers α from 2 to 32, at least one, in any order. For each of them one step has the Rényi
        divergence

        r = log(A) / (α − 1),   A = Σ_{k=0..α} C(α, k) (1 − q)^(α−k) q^k exp((k² − k) / (2 σ²))

    with binomial coefficients C(α, k); T steps have T r. Then

        classic = T r + log(1/δ) / (α − 1)
        tight   = T r + log((α − 1)/α) − (log δ + log α) / (α − 1)

    log is the natural logarithm. Where the smallest `tight` is below 0, return 0.0 for it.
    """
    classic, tight = [], []
    for order in orders:
        a = 0.0
        for k in range(order + 1):
            weight = math.comb(order, k) * (1 - sample_rate) ** (order - k) * sample_rate**k
            a += weight * math.exp((k * k - k) / (2 * noise_multiplier**2))
        rdp = steps * math.log(a) / (order - 1)
        classic.append(rdp - math.log(delta) / (order - 1))
        tight.append(rdp + math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1))
    return min(classic), max(0.0, min(tight))


def one_order_for_both(sample_rate, noise_multiplier, steps, delta, orders):
    """You take the order that is best for the classic conversion for both. The tight one has its own."""
    reference = epsilon_of.reference
    best = min(orders, key=lambda order: reference(sample_rate, noise_multiplier, steps, delta, [order])[0])
    return reference(sample_rate, noise_multiplier, steps, delta, [best])


epsilon_of = Exercise(
    epsilon_of,
    [
        (256 / 60000, 1.1, 14062, 1e-5, list(range(2, 33))),
        (0.05, 2.0, 100, 1e-3, list(range(2, 33))),
        (1.0, 8.0, 1, 1e-6, list(range(2, 33))),  # no sampling: r = α / (2 σ²)
        (0.0, 1.0, 50, 1e-5, [2, 8, 32]),  # nobody is ever drawn
        (0.01, 1.0, 0, 0.5, [2, 3]),  # no step: tight is below 0
        (0.5, 1.0, 10, 1e-5, [2]),
        (0.3, 4.0, 20, 0.9, [32, 2, 5]),
        (0.05, 2.0, 100, 1e-3, [2, 32]),  # the best order of all is not among them
        (0.05, 2.0, 100, 1e-3, [2, 32, 12, 6, 10]),
    ],
    [
        edit(
            "steps * math.log(a)",
            "math.log(a)",
            "That is one step. What the steps give away adds up: T r.",
        ),
        edit(
            "rdp - math.log(delta) / (order - 1)",
            "rdp + math.log(delta) / (order - 1)",
            "log(1/δ) is −log(δ): a number above 0. With a smaller δ, ε grows.",
        ),
        edit(
            "sample_rate**k",
            "sample_rate",
            "The weight of k is binomial: q to the power of k.",
        ),
        edit(
            "* math.log(a) / (order - 1)",
            "* math.log(a)",
            "r is log(A) divided by α − 1.",
        ),
        edit(
            "range(order + 1)",
            "range(order)",
            "k runs from 0 to α, both included: α + 1 terms, of which the last is the largest.",
        ),
        edit(
            "min(classic), max(0.0, min(tight))",
            "max(classic), max(0.0, max(tight))",
            "Each order gives an ε that is true. The smallest of them is the best that you know.",
        ),
        one_order_for_both,
    ],
    [
        "For one order: a sum of α + 1 terms, then a logarithm. What must happen to it for T steps?",
        "`math.comb(order, k)` is C(α, k). In Python 0.0 ** 0 is 1, as the formula needs it.",
        "Keep two lists, one for each conversion, and return the smallest of each, of the tight one at least 0.",
    ],
)


# --- masks_that_cancel: what a client sends ---------------------------------------------------------------------------


def masks_that_cancel(vector, number, masks):
    """Return what client `number` sends to the server: its vector under the masks that it shares with the others.

    vector: int64 tensor (n,), whole numbers from -2³¹ to 2³¹ - 1.
    masks: {number of another client: int64 tensor (n,)}, whole numbers from 0 to 2³² - 1: one for each pair, which both
        hold. It may be empty. Vector and masks stay as they are.
    Of a pair, the client with the smaller number adds the mask and the other one subtracts it. The result is an
    int64 tensor (n,), taken modulo 2³²: from 0 to 2³² - 1.
    """
    total = vector.clone()
    for other, mask in masks.items():
        if number < other:
            total += mask
        else:
            total -= mask
    return total % 2**32


def _clients(numbers, numel, seed=0):
    """What each client gives: (vectors, masks), by number."""
    random = torch.Generator().manual_seed(seed)
    vectors = {u: torch.randint(-(2**20), 2**20, (numel,), generator=random) for u in numbers}
    pairs = {(u, v): torch.randint(0, 2**32, (numel,), generator=random) for u in numbers for v in numbers if u < v}
    return vectors, {u: {v: pairs[min(u, v), max(u, v)] for v in numbers if v != u} for u in numbers}


def _sent(fn, vectors, masks):
    """What the clients send, and what the server finds when it adds that up."""
    sent = {number: fn(vector, number, masks[number]) for number, vector in vectors.items()}
    return sent, sum(sent.values()) % 2**32


def _edges():
    return {4: torch.tensor([-(2**31), -1, 0, 2**31 - 1])}, {4: {}}


def _half_masks():
    """Masks of 0, of half and of all that there is."""
    mask = torch.tensor([0, 2**31, 2**32 - 1])
    return {1: torch.tensor([-1, 2**31 - 1, 1]), 0: torch.tensor([5, -5, 0])}, {1: {0: mask}, 0: {1: mask}}


def _sum_of_all_there_is():
    """Of which one number comes to exactly 2³²."""
    mask = torch.tensor([5, 2**32 - 5])
    return {0: torch.tensor([-5, 5]), 1: torch.tensor([5, -5])}, {0: {1: mask}, 1: {0: mask}}


masks_that_cancel = Exercise(
    masks_that_cancel,
    lambda: [
        _clients([0, 1], 5),
        _clients([0, 1], 5, seed=9),  # another round of the same clients
        _clients([0, 1, 2, 3], 6, seed=1),
        _clients([7, 2, 40], 3, seed=2),  # any numbers, in any order
        _edges(),  # alone
        _half_masks(),
        _clients([3, 9], 0, seed=3),
        _sum_of_all_there_is(),
    ],
    [
        edit(
            "total -= mask",
            "total += mask",
            "Both of a pair add the mask, so that the sum holds it twice. One of them has to subtract it.",
        ),
        edit(
            "number < other",
            "number > other",
            "The masks cancel, but the signs are those of the other client: the smaller number adds.",
        ),
        edit(
            "total % 2**32",
            "total",
            "Without the modulus the size of what you send tells of the vector: numbers far above 2³² occur only for "
            "some. Take it modulo 2³².",
        ),
        edit(
            "total % 2**32",
            "total % (2**32 - 1)",
            "2³² - 1 is the largest number, the modulus is 2³².",
        ),
        edit(
            "number < other",
            "other == number + 1",
            "You decide by who is next. Of any pair, the smaller of the two numbers adds.",
        ),
    ],
    [
        "Take one pair: what does each do with the mask, so that the sum of both has none of it?",
        "Go through the masks: add those of clients with a larger number, subtract those of a smaller one.",
        "Start with `vector.clone()`; at last `% 2**32`, which torch gives from 0 on also of numbers below 0.",
    ],
    outcome=_sent,
)


# --- verify_log: the first line that is wrong -------------------------------------------------------------------------


def verify_log(lines, sign, head):
    """Return the number, from 1, of the first line that is not as it was written, or None if the log is whole.

    lines: a list of pairs (text, hash), as they lie in the file; it may be empty.
    sign: `sign(before, text)` gives the right hash of a line, a str; `before` is the hash of the line before it, and ""
        for the first line. Nobody without the key can compute it.
    head: (count, last hash), what was kept elsewhere: how many lines there were, and the hash of the last one ("" if
        there was none).
    Line k is wrong if its hash is not what `sign` gives; if it is missing while the head counts it; if it is there and
    the head does not count it; or if k is the head's count and its hash is not the head's. The list stays as it is.
    """
    count, last = head
    before = ""
    for number, (text, written) in enumerate(lines, start=1):
        is_other = number == count and written != last
        if written != sign(before, text) or number > count or is_other:
            return number
        before = written
    return len(lines) + 1 if len(lines) < count else None


def _sign(before, text, key="of the case"):
    return hmac.new(key.encode(), f"{before} {text}".encode(), hashlib.sha256).hexdigest()[:16]


def _written(*texts):
    lines = []
    for text in texts:
        lines.append((text, _sign(lines[-1][1] if lines else "", text)))
    return lines


def _head(lines):
    return len(lines), lines[-1][1] if lines else ""


def _logs():
    whole = _written("anna: train", "ben: read", "anna: save", "carl: refused", "anna: stop")
    head = _head(whole)
    changed = [*whole[:2], ("anna: load", whole[2][1]), *whole[3:]]
    anew = [("anna: load", _sign("", "anna: load", key="a thief's"))]
    more = _written("anna: train", "ben: read", "anna: save", "carl: refused", "anna: stop", "ben: load", "ben: read")
    older = _written("anna: train", "ben: read", "dora: save", "carl: refused", "anna: stop")
    return [
        (whole, head),
        ([], (0, "")),
        (changed, head),  # a text
        ([*whole[:3], (whole[3][0], "0" * 16), whole[4]], head),  # a hash
        ([whole[0], whole[2], whole[1], *whole[3:]], head),  # an order
        ([*whole[:1], *whole[2:]], head),  # a line taken out
        (whole[:3], head),  # the end cut off
        ([], head),  # all of it
        (whole[1:], head),  # the beginning
        ([*whole, ("anna: train", _sign(head[1], "anna: train"))], head),  # a line more
        ([*whole[:2], whole[1], *whole[2:]], head),  # a line twice
        (older, head),  # another log of the same length, rightly signed
        (whole, (5, whole[3][1])),
        (older[:4], head),  # rightly signed, and too short
        (anew, _head(whole[:1])),
        (_written("anna: train"), (0, "")),
        ([*whole[:4], ("anna: go", whole[4][1])], head),  # the last text, with the head's hash
        (more, head),  # two lines more
        ([*older, ("ben: load", _sign(older[-1][1], "ben: load"))], head),  # another log, and a line more
        ([*whole[:2], (whole[2][0], whole[2][1][:-1] + "-"), *whole[3:]], head),  # the end of a hash
        ([*whole[:2], (whole[2][0] + " ", whole[2][1]), *whole[3:]], head),  # a blank
    ]


verify_log = Exercise(
    verify_log,
    _logs,
    [
        edit(
            "        before = written\n",
            "",
            "You sign every line as if it was the first. The hash of a line depends on the one before it: that is the "
            "chain.",
        ),
        edit(
            "len(lines) + 1 if len(lines) < count else None",
            "None",
            "A log whose end was cut off is a right chain, only shorter. The head says how many lines there were.",
        ),
        edit(
            " or number > count",
            "",
            "A line that the head does not count is wrong, also when its hash is right.",
        ),
        edit(
            "start=1",
            "start=0",
            "Lines are counted from 1.",
        ),
        edit(
            "number == count and written != last",
            "False",
            "Another log that was signed rightly, such as one of yesterday, may lie here. Compare the last hash with "
            "the head's.",
        ),
        edit(
            "return len(lines) + 1",
            "return len(lines)",
            "Where the end is missing, the first line that is wrong is the one after the last that is there.",
        ),
    ],
    [
        "Go through the lines from the first; what do you have to know of the line before?",
        'Keep `before`, at first "". Line `number` is right if its hash is `sign(before, text)` and number ≤ count.',
        "At the head's count compare the hash with the head's. After the loop: fewer lines than the head counts?",
    ],
    outcome=lambda fn, lines, head: fn(lines, _sign, head),
)
