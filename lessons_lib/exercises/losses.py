"""Exercises of lesson 02: BCE from scores, a stable log-sum-exp, a measured gradient, cross-entropy with padding."""

import torch

from lessons_lib.exercises.cases import drawn, spread
from lessons_lib.exercises.core import Exercise, Outcome, edit


def bce_with_gradient(z, y):
    """Mean binary cross-entropy of the probabilities σ(z), and its gradient with respect to z.

    z: float32 tensor (n,), any finite scores, 0 and ±1000 too. y: float32 (n,), targets from 0 to 1.
    Both are left as they are. Returns (loss, gradient): a number and a tensor (n,), both finite.
    """
    softplus = z.clamp(min=0) + (-z.abs()).exp().log1p()  # log(1 + exp(z))
    loss = (softplus - y * z).mean()
    gradient = (torch.sigmoid(z) - y) / len(z)
    return loss.item(), gradient


def _from_probabilities(z, y):
    """σ(1000) is 1 in float32, and the log of 1 − 1 is −∞: stay with scores."""
    p = torch.sigmoid(z)
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean(), (p - y) / len(z)


def _clamped(z, y):
    """Clamping p caps the cost at 16: a score of −90 for a 1 costs 90. Work on z instead."""
    p = torch.sigmoid(z).clamp(1e-7, 1 - 1e-7)
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean(), (p - y) / len(z)


def _cut_at_100(z, y):
    """Torch's BCE from probabilities stops at 100. The exact cost comes from the scores."""
    p = torch.sigmoid(z)
    return torch.nn.functional.binary_cross_entropy(p, y).item(), (p - y) / len(z)


def _by_autograd_through_corners(z, y):
    """At z = 0 the slope is off by ½: autograd takes a side of max(z, 0) and of |z| there, and both jump. (σ(z) − y)/n
    has no corner."""
    z = z.detach().requires_grad_()
    loss = (z.clamp(min=0) + (-z.abs()).exp().log1p() - y * z).mean()
    loss.backward()
    return loss.item(), z.grad


def _scores():
    """The lesson's four predictions; soft targets; scores of 0, of ±1000, right and wrong; one sample; spread; huge."""
    extreme = torch.tensor([1000.0, -1000.0, 1000.0, -1000.0, 25.0, -90.0])
    return [
        (torch.tensor([0.3, 0.7, 0.2, 0.8]).logit(), torch.tensor([0.0, 1.0, 0.0, 1.0])),
        (3 * drawn(6), drawn(6, seed=1).sigmoid()),
        (torch.tensor([0.0, -0.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 0.25, 1.0])),
        (extreme, torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])),
        (torch.tensor([-30.0]), torch.tensor([1.0])),
        (torch.zeros(1), torch.zeros(1)),
        (spread(5 * drawn(16)), spread((drawn(16, seed=2) > 0.3).float())),
        (torch.tensor([2e30, -1e30, 3e4]), torch.tensor([0.0, 1.0, 1.0])),
    ]


bce_with_gradient = Exercise(
    bce_with_gradient,
    _scores,
    [
        edit(
            "softplus - y * z)",
            "y * torch.nn.functional.softplus(-z))",
            "torch.sigmoid(z) - y)",
            "y * (torch.sigmoid(z) - 1))",
            "Samples with y = 0 cost nothing here: where is the term (1 − y) log(1 − p)?",
        ),
        edit(
            "torch.sigmoid(z) - y",
            "y - torch.sigmoid(z)",
            "The loss is right, its gradient points uphill: p − y, not y − p.",
        ),
        edit(
            ".mean()",
            ".sum()",
            " / len(z)",
            "",
            "That is the sum over the samples, and its gradient: divide both by n.",
        ),
        edit(" / len(z)", "", "The loss is a mean, so each sample has only 1/n of a say in the gradient."),
        edit(
            "z.clamp(min=0) + (-z.abs()).exp().log1p()",
            "(1 + z.exp()).log()",
            "exp(1000) is ∞: take the larger of z and 0 out of log(1 + exp(z)) first.",
        ),
        _from_probabilities,
        _clamped,
        _cut_at_100,
        _by_autograd_through_corners,
    ],
    [
        "Put log σ(z) and log(1 − σ(z)) into the loss before you compute anything: what remains of the fractions?",
        "The loss of a sample is log(1 + exp(z)) − y z, and log(1 + exp(z)) = max(z, 0) + log(1 + exp(−|z|)).",
        "torch.log1p(x) is an exact log(1 + x). The gradient of the mean is (σ(z) − y)/n.",
    ],
)


def log_sum_exp(z, dim):
    """log Σ exp(z) along `dim`, finite wherever z is.

    z: float32 tensor of any shape; its entries may be ±1000, and differ from row to row by as much.
    dim: an int, which may be negative. Returns a tensor of z's shape without `dim`; z is left as it is.
    """
    m = z.amax(dim, keepdim=True)
    shifted = (z - m).exp().sum(dim, keepdim=True).log()
    return (m + shifted).squeeze(dim)


def _tables():
    """Square, both ways; rows far apart; three dimensions, from both ends; sizes of 1; transposed; one row."""
    square, cube, thin = drawn(3, 3), 10 * drawn(2, 3, 4), drawn(1, 3, 1)
    rows = torch.tensor([[1000.0, 999.0], [0.5, -0.5], [-1000.0, -1001.0]])
    return [
        (square, 1),
        (square, 0),
        (rows, 1),
        (rows.T, 0),
        (rows, 0),
        *((cube, dim) for dim in (1, -1, -2, 0)),
        *((thin, dim) for dim in (0, 1, -1)),
        (drawn(1, 1), 0),
        (torch.tensor([-1000.0, 1000.0, 1000.0]), 0),
        (torch.full((5,), -1000.0), -1),
        (torch.tensor([[2e30, 1e30], [-2e30, -1e30]]), 1),
    ]


log_sum_exp = Exercise(
    log_sum_exp,
    _tables,
    [
        edit(
            "z.amax(dim, keepdim=True)",
            "0",
            "exp(1000) is ∞ and exp(−1000) is 0: subtract the largest entry before exp.",
        ),
        edit(
            "z.amax(dim, keepdim=True)",
            "z.max()",
            "One maximum for all: rows far below it become exp(−2000) = 0. One for each row.",
        ),
        edit(
            "z.amax(dim, keepdim=True)",
            "z.amax(dim)",
            "sum(dim, keepdim=True)",
            "sum(dim)",
            ".squeeze(dim)",
            "",
            "Without keepdim=True, m is lined up with the wrong dimension of z.",
        ),
        edit("m + shifted", "shifted", "Σ exp(z − m) is exp(−m) Σ exp(z): its log lacks m. Add it back."),
        edit(
            ".log()",
            "",
            "(m + shifted)",
            "(m + shifted).log()",
            "m belongs outside of the log: log(exp(m) · s) = m + log s.",
        ),
        edit(".squeeze(dim)", "", "The summed dimension is still there, of size 1: squeeze it."),
        edit(
            ".squeeze(dim)",
            ".squeeze()",
            "squeeze() without a dimension takes away every size of 1, those of z too: .squeeze(dim).",
        ),
        edit("m + shifted", "m", "The maximum is the largest part of it: add log Σ exp(z − m), from 0 to log C."),
    ],
    [
        "exp(z) = exp(m) · exp(z − m) for any m that is the same along `dim`. Which m keeps exp below 1?",
        "m = z.amax(dim, keepdim=True) lines up with z; the result is m + log Σ exp(z − m).",
        "Keep the dimension (keepdim=True) in max and sum, and .squeeze(dim) at the very end.",
    ],
)


def measured_gradient(f, x):
    """The gradient of f at x by finite differences, from points on both sides of x.

    f: takes a float64 tensor of x's shape, returns a number (a tensor of no dimension).
    x: float64 tensor of any shape, transposed too, left as it was. Returns float64 of that shape, right to six digits.
    Ask f as often as you need to, but not more than four times per entry of x.
    """
    h = 6e-6  # about eps ** (1 / 3): above it the curvature of f shows, below it the rounding
    slopes = []
    for unit in torch.eye(x.numel(), dtype=x.dtype):
        step = h * unit.view(x.shape)  # one entry moves, the others stay
        slopes.append((f(x + step) - f(x - step)) / (2 * h))
    return torch.stack(slopes).view(x.shape)


def _steps_pile_up(f, x):
    """Entries are not put back: x changes, and later slopes belong to another point."""
    slopes = []
    for entry in range(x.numel()):
        x.view(-1)[entry] += 6e-6
        above = f(x)
        x.view(-1)[entry] -= 1.2e-5
        slopes.append((above - f(x)) / 1.2e-5)
    return torch.stack(slopes).view(x.shape)


def _by_autograd(f, x):
    """That is autograd, right as ever. Measure without it: the check sees where f is asked."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def _measure(fn, f, x):
    """The gradient, where `f` was asked and whether `x` is left alone; the calls of `f` as the cost.

    With one of these faults the gradient is inexact by an amount that depends on the step, so it is rounded:
    then all answers with that fault look alike, and get its hint.
    """
    before, asked = x.clone(), []

    def counted(point):
        asked.append((point.detach() - before).flatten())
        return f(point)

    gradient = fn(counted, x)
    moved = torch.stack(asked or [torch.zeros(x.numel(), dtype=x.dtype)])
    below, above = (moved < 0).any(0).all().item(), (moved > 0).any(0).all().item()
    where = "on both sides of x" if below and above else "on one side of x" if below or above else "at x itself"
    after = "as before" if torch.allclose(x, before, rtol=0, atol=1e-10) else "changed"
    if isinstance(gradient, torch.Tensor) and gradient.shape == x.shape:
        exact = torch.allclose(gradient.detach().double(), _by_autograd(f, before), rtol=1e-6, atol=1e-7)
        reach = moved.abs().max().item()
        if not exact and below and above and not 1e-9 < reach < 9e-4:
            where += ", but too close to it" if reach < 9e-4 else ", but too far from it"
        if where != "on both sides of x" or after == "changed":
            gradient = gradient.detach().round(decimals=1)
    return Outcome({"points": where, "gradient": gradient, "x afterwards": after}, {"calls of f": len(asked)})


def waves(x):
    """Σ sin(3x), for an exercise."""
    return (3 * x).sin().sum()


def product(x):
    """Π (1 + x²), for an exercise: every slope depends on all entries."""
    return (1 + x.square()).prod()


def tilted(x):
    """Σ kₓ exp(x/2) with a k of its own for each entry, for an exercise."""
    return (torch.arange(1.0, x.numel() + 1).to(x) * (x / 2).exp().flatten()).sum()


def _functions():
    points = {
        waves: [[0.3, -0.4, 0.9], [0.0], 0.7],
        product: [[[0.5, -1.0], [1.5, 0.2]], [[[0.0, 1.0, -3.0]], [[0.25, 2.0, 0.5]]]],
        tilted: [[0.0, 0.0, -1.0, 4.0, 0.0]],
    }
    cases = [(f, torch.tensor(x, dtype=torch.float64)) for f, own in points.items() for x in own]
    return [*cases, (product, torch.tensor([[0.5, -1.0], [1.5, 0.25], [0.0, 0.75]], dtype=torch.float64).T)]


measured_gradient = Exercise(
    measured_gradient,
    _functions,
    [
        edit(
            "f(x - step)",
            "f(x)",
            "(2 * h)",
            "h",
            "h = 6e-6",
            "h = 1e-8",
            "A one-sided difference is right to 8 digits at its very best. Ask f on both sides of x.",
        ),
        edit("(2 * h)", "h", "Twice too large: from x − h to x + h is a distance of 2h."),
        edit(
            "h = 6e-6", "h = 1e-12", "Two nearly equal numbers are subtracted, and their digits are gone: 6e-6 is best."
        ),
        edit(
            "h = 6e-6", "h = 1e-2", "The function bends within a step of 0.01, and the error grows like h²: about 6e-6."
        ),
        edit(
            "h * unit.view(x.shape)",
            "torch.full_like(x, h)",
            "All entries moved together: that mixes their slopes. Move one entry at a time.",
        ),
        _steps_pile_up,
        _by_autograd,
    ],
    [
        "How do two values of f tell its slope along one direction? And how far apart should they be?",
        "Move one entry at a time; torch.eye(x.numel()) has a direction for each, .view(x.shape) gives it x's shape.",
        "h = eps ** (1/3), where eps = torch.finfo(torch.float64).eps; then (f(x + step) − f(x − step)) / (2h).",
    ],
    outcome=_measure,
    rtol=1e-6,
    atol=1e-7,
    slack=2.0,
)


def cross_entropy_gradient(z, y):
    """The gradient of the mean cross-entropy with respect to the scores z.

    z: float32 tensor (n, C), any finite scores.
    y: int64 (n,), class numbers 0..C−1, or −100 for a row that is left out; at least one row counts.
    The mean is over the rows that count. Returns a tensor (n, C); z and y are left as they are.
    """
    rows = (y != -100).nonzero().flatten()  # the numbers of the rows that count
    gradient = torch.zeros_like(z)
    gradient[rows] = torch.softmax(z[rows], dim=1)
    gradient[rows, y[rows]] -= 1
    return gradient / len(rows)


def _padding_pulled_down(z, y):
    """Rows with −100 keep their p as a gradient. All of such a row is 0."""
    onehot = (torch.arange(z.shape[1]) == y[:, None]).float()
    return (torch.softmax(z, 1) - onehot) / (y != -100).sum()


def _naive_softmax(z, y):
    """exp(1000)/exp(1000) is ∞/∞: use torch.softmax, or subtract each row's maximum first."""
    p = z.exp() / z.exp().sum(1, keepdim=True)
    counts = (y != -100)[:, None]
    onehot = torch.arange(z.shape[1]) == y[:, None]
    return torch.where(counts, p - onehot.float(), 0) / counts.sum()


def _naive_softmax_times_mask(z, y):
    """exp(1000)/exp(1000) is nan, and nan times 0 too: use torch.softmax, or subtract each row's maximum first."""
    p = z.exp() / z.exp().sum(1, keepdim=True)
    counts = (y != -100)[:, None]
    return (p - (torch.arange(z.shape[1]) == y[:, None]).float()) * counts / counts.sum()


def _batches():
    """By hand, without padding; with padding, also first and last; ±1000; one row counts; one class; columns; huge."""
    return [
        (torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]]), torch.tensor([1, 0])),
        (2 * drawn(6, 4), torch.tensor([3, -100, 0, 2, -100, 1])),
        (torch.tensor([[1000.0, 0.0], [-1000.0, -1000.0], [5.0, 1000.0]]), torch.tensor([1, 0, -100])),
        (3 * drawn(9, 3), torch.tensor([-100, -100, 0, 0, -100, 1, 1, 0, -100])),
        (drawn(6, 4), torch.tensor([-100, -100, -100, -100, 1, -100])),
        (drawn(4, 1), torch.tensor([0, -100, 0, 0])),
        (drawn(5, 7).T, torch.tensor([4, 4, 4, -100, 0, 2, 1])),
        (torch.zeros(1, 5), torch.tensor([2])),
        (torch.tensor([[2e30, 1e30, -2e30], [-1e30, 0.0, 3e4]]), torch.tensor([1, 1])),
    ]


cross_entropy_gradient = Exercise(
    cross_entropy_gradient,
    _batches,
    [
        edit(
            "return gradient",
            "return -gradient",
            "This points uphill in likelihood, downhill in loss: p − onehot, not the reverse.",
        ),
        edit(" / len(rows)", "", "That is the gradient of the sum. For the mean, divide by the rows that count."),
        edit("/ len(rows)", "/ len(z)", "Rows left out are in the divisor: count only those with a label."),
        edit(
            "(y != -100).nonzero().flatten()",
            "torch.arange(len(y))",
            "y[rows]",
            "y.clamp(min=0)",
            "Rows with −100 are trained towards class 0 here. Their gradient is 0.",
        ),
        edit(
            "torch.softmax(z[rows], dim=1)",
            "torch.softmax(z, dim=0)[rows]",
            "The probabilities of a row must add up to 1: softmax along the classes, dim=1.",
        ),
        edit(
            "    gradient[rows, y[rows]] -= 1\n",
            "",
            "That is p alone: it pushes all scores down. Subtract 1 at the right class.",
        ),
        _padding_pulled_down,
        _naive_softmax,
        _naive_softmax_times_mask,
    ],
    [
        "Which scores of a row should go up, which down, and by how much when the model is already sure?",
        "For one row the gradient is softmax(z) − onehot. Fill in the rows where y != -100; divide by how many.",
        "gradient[rows, y[rows]] -= 1 takes one entry from each of `rows`.",
    ],
    atol=3e-5,  # float32 rounds log p so far off where scores are ±1000, and p = exp(log p) is a right way
)
