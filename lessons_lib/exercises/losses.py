"""Exercises of lesson 02: BCE from scores, a stable log-sum-exp, a measured gradient, cross-entropy with padding."""

import torch
from torch.nn import functional

from lessons_lib.exercises.core import Exercise, Outcome


def bce_with_gradient(z, y):
    """Mean binary cross-entropy of the probabilities σ(z), and its gradient with respect to z.

    z: float32 tensor (n,), any finite scores, ±1000 too. y: (n,), targets from 0 to 1.
    Returns (loss, gradient): a number and a tensor (n,), both finite.
    """
    softplus = z.clamp(min=0) + (-z.abs()).exp().log1p()  # log(1 + exp(z))
    loss = (softplus - y * z).mean()
    gradient = (torch.sigmoid(z) - y) / len(z)
    return loss.item(), gradient


def _costs(z):
    """−log σ(z) and −log(1 − σ(z)): what a 1 and what a 0 costs."""
    return functional.softplus(-z), functional.softplus(z)


def _plus_for_minus(z, y):
    """A sample with y = 0 is paid for being wrong here: the minus belongs to both terms."""
    one, zero = _costs(z)
    p = torch.sigmoid(z)
    return (y * one - (1 - y) * zero).mean(), (y * (p - 1) - (1 - y) * p) / len(z)


def _no_second_term(z, y):
    """Samples with y = 0 cost nothing here: where is the term (1 − y) log(1 − p)?"""
    return (y * _costs(z)[0]).mean(), y * (torch.sigmoid(z) - 1) / len(z)


def _gradient_uphill(z, y):
    """The loss is right, its gradient points the other way: p − y, not y − p."""
    loss, gradient = bce_with_gradient.reference(z, y)
    return loss, -gradient


def _negative(z, y):
    """A negative loss: log p is at most 0, so the likelihood needs its minus."""
    loss, gradient = bce_with_gradient.reference(z, y)
    return -loss, -gradient


def _summed(z, y):
    """That is the sum over the samples, and its gradient. Both are divided by n for the mean."""
    loss, gradient = bce_with_gradient.reference(z, y)
    return loss * len(z), gradient * len(z)


def _gradient_of_the_sum(z, y):
    """The loss is a mean, so each sample has only 1/n of a say in the gradient."""
    loss, gradient = bce_with_gradient.reference(z, y)
    return loss, gradient * len(z)


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
    return functional.binary_cross_entropy(p, y).item(), (p - y) / len(z)


def _overflowing(z, y):
    """exp(1000) is ∞: take the larger of z and 0 out of log(1 + exp(z)) first."""
    return ((1 + z.exp()).log() - y * z).mean(), (torch.sigmoid(z) - y) / len(z)


def _with_respect_to_p(z, y):
    """Divided by p(1 − p) it is the gradient at p. The chain rule gives that back at z."""
    loss, gradient = bce_with_gradient.reference(z, y)
    p = torch.sigmoid(z)
    return loss, gradient / (p * (1 - p))


def _squared_error_gradient(z, y):
    """The factor p(1 − p) cancels for BCE; with it this is the squared error's slope."""
    loss, gradient = bce_with_gradient.reference(z, y)
    p = torch.sigmoid(z)
    return loss, 2 * gradient * p * (1 - p)


def _scores():
    """The lesson's four predictions as scores; soft targets; scores of ±1000, right and wrong."""
    p = torch.tensor([0.3, 0.7, 0.2, 0.8])
    generator = torch.Generator().manual_seed(4)
    extreme = torch.tensor([1000.0, -1000.0, 1000.0, -1000.0, 25.0, -90.0])
    return [
        (p.logit(), torch.tensor([0.0, 1.0, 0.0, 1.0])),
        (3 * torch.randn(6, generator=generator), torch.rand(6, generator=generator)),
        (extreme, torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])),
    ]


bce_with_gradient = Exercise(
    bce_with_gradient,
    _scores,
    [
        _plus_for_minus,
        _no_second_term,
        _gradient_uphill,
        _negative,
        _summed,
        _gradient_of_the_sum,
        _from_probabilities,
        _clamped,
        _cut_at_100,
        _overflowing,
        _with_respect_to_p,
        _squared_error_gradient,
    ],
    [
        "On paper, −y log σ(z) − (1 − y) log(1 − σ(z)) becomes log(1 + exp(z)) − y z.",
        "log(1 + exp(z)) = max(z, 0) + log(1 + exp(−|z|)); torch.log1p(x) is an exact log(1 + x).",
        "The gradient of the mean is (σ(z) − y)/n, and torch.sigmoid doesn't overflow.",
    ],
)


def log_sum_exp(z, dim):
    """log Σ exp(z) along `dim`, finite wherever z is.

    z: float32 tensor of any shape; its entries may be ±1000, and differ from row to row by as much.
    Returns a tensor of z's shape without `dim`.
    """
    m = z.amax(dim, keepdim=True)
    shifted = (z - m).exp().sum(dim, keepdim=True).log()
    return (m + shifted).squeeze(dim)


def _no_shift(z, dim):
    """exp(1000) is ∞ and exp(−1000) is 0: subtract the largest entry before exp."""
    return z.exp().sum(dim).log()


def _shift_by_one_maximum(z, dim):
    """One maximum for all: rows far below it become exp(−2000) = 0. One for each row."""
    m = z.max()
    return m + (z - m).exp().sum(dim).log()


def _maximum_of_the_wrong_dim(z, dim):
    """The maximum must run along the same dimension as the sum, and so be constant."""
    m = z.amax((dim + 1) % z.dim(), keepdim=True)
    return m.squeeze() + (z - m).exp().sum(dim).log()


def _maximum_without_keepdim(z, dim):
    """Without keepdim=True, m is lined up with the wrong dimension of z."""
    m = z.amax(dim)
    return m + (z - m).exp().sum(dim).log()


def _not_added_back(z, dim):
    """Σ exp(z − m) is exp(−m) Σ exp(z): its log lacks m. Add it back."""
    return (z - z.amax(dim, keepdim=True)).exp().sum(dim).log()


def _added_inside(z, dim):
    """m belongs outside of the log: log(exp(m) · s) = m + log s."""
    m = z.amax(dim, keepdim=True)
    return (m.squeeze(dim) + (z - m).exp().sum(dim)).log()


def _not_squeezed(z, dim):
    """The summed dimension is still there, of size 1: squeeze it."""
    m = z.amax(dim, keepdim=True)
    return m + (z - m).exp().sum(dim, keepdim=True).log()


def _shift_by_the_minimum(z, dim):
    """With the minimum subtracted all exponents are positive, and overflow sooner."""
    m = z.amin(dim, keepdim=True)
    return m.squeeze(dim) + (z - m).exp().sum(dim).log()


def _of_the_mean(z, dim):
    """That is the log of the mean of exp(z): the sum is not divided by anything."""
    return log_sum_exp.reference(z, dim) - torch.tensor(float(z.shape[dim])).log()


def _maximum_alone(z, dim):
    """The maximum is the largest part of it: add log Σ exp(z − m), from 0 to log C."""
    return z.amax(dim)


def _dim_ignored(z, dim):
    """This always sums along the last dimension: use `dim`."""
    return log_sum_exp.reference(z, -1)


def _tables():
    """A square table, both ways; rows far apart; three dimensions; one row of large numbers."""
    generator = torch.Generator().manual_seed(5)
    square = torch.randn(3, 3, generator=generator)
    rows = torch.tensor([[1000.0, 999.0], [0.5, -0.5], [-1000.0, -1001.0]])
    return [
        (square, 1),
        (square, 0),
        (rows, 1),
        (10 * torch.randn(2, 3, 4, generator=generator), 1),
        (torch.tensor([-1000.0, 1000.0, 1000.0]), 0),
    ]


log_sum_exp = Exercise(
    log_sum_exp,
    _tables,
    [
        _no_shift,
        _shift_by_one_maximum,
        _maximum_of_the_wrong_dim,
        _maximum_without_keepdim,
        _not_added_back,
        _added_inside,
        _not_squeezed,
        _shift_by_the_minimum,
        _of_the_mean,
        _maximum_alone,
        _dim_ignored,
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
    x: float64 tensor of any shape, left as it was. Returns a tensor of that shape, right to six digits.
    """
    h = torch.finfo(x.dtype).eps ** (1 / 3)
    slopes = []
    for unit in torch.eye(x.numel(), dtype=x.dtype):
        step = h * unit.view(x.shape)  # one entry moves, the others stay
        slopes.append((f(x + step) - f(x - step)) / (2 * h))
    return torch.stack(slopes).view(x.shape)


def _steps(x, h):
    return [h * unit.view(x.shape) for unit in torch.eye(x.numel(), dtype=x.dtype)]


def _both_sides(f, x, h, divisor):
    return torch.stack([(f(x + step) - f(x - step)) / divisor for step in _steps(x, h)]).view(x.shape)


def _one_side(f, x):
    """A one-sided difference is right to 8 digits at its very best. Ask f on both sides of x."""
    return torch.stack([(f(x + step) - f(x)) / 1e-8 for step in _steps(x, 1e-8)]).view(x.shape)


def _one_side_over_2h(f, x):
    """From x to x + h is a distance of h, and this is divided by 2h. Use both sides."""
    return _one_side(f, x) / 2


def _over_h(f, x):
    """Twice too large: from x − h to x + h is a distance of 2h."""
    return _both_sides(f, x, 6e-6, 6e-6)


def _step_too_small(f, x):
    """Two nearly equal numbers are subtracted, and their digits are gone: 6e-6 is best."""
    return _both_sides(f, x, 1e-12, 2e-12)


def _step_too_large(f, x):
    """The function bends within a step of 0.01, and the error grows like h²: about 6e-6."""
    return _both_sides(f, x, 1e-2, 2e-2)


def _all_at_once(f, x):
    """All entries moved together: that mixes their slopes. Move one entry at a time."""
    return ((f(x + 6e-6) - f(x - 6e-6)) / 1.2e-5).expand(x.shape)


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


def _functions():
    points = [0.3, -0.4, 0.9], [[0.5, -1.0], [1.5, 0.2]]
    return [(f, torch.tensor(x, dtype=torch.float64)) for f, x in zip((waves, product), points, strict=True)]


measured_gradient = Exercise(
    measured_gradient,
    _functions,
    [
        _one_side,
        _one_side_over_2h,
        _over_h,
        _step_too_small,
        _step_too_large,
        _all_at_once,
        _steps_pile_up,
        _by_autograd,
    ],
    [
        "For each entry: move it alone, a little up and a little down, and divide the change by 2h.",
        "torch.eye(x.numel()) has a direction for each entry; .view(x.shape) gives it the shape of x.",
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
    The mean is over the rows that count. Returns a tensor (n, C).
    """
    rows = (y != -100).nonzero().flatten()  # the numbers of the rows that count
    gradient = torch.zeros_like(z)
    gradient[rows] = torch.softmax(z[rows], dim=1)
    gradient[rows, y[rows]] -= 1
    return gradient / len(rows)


def _difference(z, y, dim=1):
    """softmax(z) − onehot(y), zero in the rows left out, and the number of rows that count."""
    counts = y != -100
    onehot = functional.one_hot(y.clamp(min=0), z.shape[1])
    return (torch.softmax(z, dim) - onehot) * counts[:, None], counts.sum()


def _label_minus_p(z, y):
    """This points uphill in likelihood, downhill in loss: p − onehot, not the reverse."""
    return -cross_entropy_gradient.reference(z, y)


def _not_divided(z, y):
    """That is the gradient of the sum. For the mean, divide by the rows that count."""
    return _difference(z, y)[0]


def _divided_by_all_rows(z, y):
    """Rows left out are in the divisor: count only those with a label."""
    return _difference(z, y)[0] / len(z)


def _divided_by_entries(z, y):
    """A mean over rows and classes: the loss is one number a row, so divide by rows alone."""
    difference, count = _difference(z, y)
    return difference / count / z.shape[1]


def _padding_as_class_0(z, y):
    """Rows with −100 are trained towards class 0 here. Their gradient is 0."""
    onehot = functional.one_hot(y.clamp(min=0), z.shape[1])
    return (torch.softmax(z, 1) - onehot) / len(z)


def _padding_pulled_down(z, y):
    """Rows with −100 keep their p as a gradient. All of such a row is 0."""
    onehot = (torch.arange(z.shape[1]) == y[:, None]).float()
    return (torch.softmax(z, 1) - onehot) / (y != -100).sum()


def _softmax_over_the_batch(z, y):
    """The probabilities of a row must add up to 1: softmax along the classes, dim=1."""
    difference, count = _difference(z, y, dim=0)
    return difference / count


def _naive_softmax(z, y):
    """exp(1000)/exp(1000) is ∞/∞: use torch.softmax, or subtract each row's maximum first."""
    p = z.exp() / z.exp().sum(1, keepdim=True)
    counts = y != -100
    onehot = functional.one_hot(y.clamp(min=0), z.shape[1])
    return torch.where(counts[:, None], p - onehot, 0) / counts.sum()


def _without_the_label(z, y):
    """That is p alone: it pushes all scores down. Subtract 1 at the right class."""
    counts = (y != -100)[:, None]
    return torch.softmax(z, 1) * counts / counts.sum()


def _at_the_probabilities(z, y):
    """−1/p is the slope at the probability; through the softmax it becomes p − onehot."""
    counts = y != -100
    onehot = functional.one_hot(y.clamp(min=0), z.shape[1])
    return torch.where(counts[:, None], -onehot / torch.softmax(z, 1), 0) / counts.sum()


def _right_class_only(z, y):
    """The wrong classes have a gradient too: their p, which pushes them down."""
    difference, count = _difference(z, y)
    return difference * functional.one_hot(y.clamp(min=0), z.shape[1]) / count


def _batches():
    """A batch to follow by hand, without padding; one with padding; scores of ±1000."""
    generator = torch.Generator().manual_seed(6)
    return [
        (torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]]), torch.tensor([1, 0])),
        (2 * torch.randn(6, 4, generator=generator), torch.tensor([3, -100, 0, 2, -100, 1])),
        (torch.tensor([[1000.0, 0.0], [-1000.0, -1000.0], [5.0, 1000.0]]), torch.tensor([1, 0, -100])),
    ]


cross_entropy_gradient = Exercise(
    cross_entropy_gradient,
    _batches,
    [
        _label_minus_p,
        _not_divided,
        _divided_by_all_rows,
        _divided_by_entries,
        _padding_as_class_0,
        _padding_pulled_down,
        _softmax_over_the_batch,
        _naive_softmax,
        _without_the_label,
        _at_the_probabilities,
        _right_class_only,
    ],
    [
        "For one row the gradient is softmax(z) with 1 subtracted at the right class.",
        "Start from zeros; fill in the rows where y != -100; divide by how many there are.",
        "gradient[rows, y[rows]] -= 1 takes one entry from each of `rows`.",
    ],
)
