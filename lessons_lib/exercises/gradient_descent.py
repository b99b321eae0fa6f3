"""Exercises of lesson 01: the largest stable step, the gradient of a mini-batch, and a regression to repair."""

import itertools
import numbers

import torch
from torch.overrides import TorchFunctionMode

from lessons_lib.exercises.cases import drawn, spread
from lessons_lib.exercises.compare import as_number
from lessons_lib.exercises.core import Exercise, Outcome, edit
from lessons_lib.exercises.words import kind_of


def _draw(*shapes):
    return [drawn(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate(shapes)]


def largest_stable_step(X):
    """The limit 2/λmax for the step of gradient descent on J(w) = 1/(2n) Σᵢ (xᵢ·w − yᵢ)².

    X: tensor (n, d) of floats, one sample per row, left as it is. Returns a number.
    """
    n = len(X)
    H = X.T @ X / n
    return 2 / torch.linalg.eigvalsh(H)[-1].item()


def _matrices():
    """By hand; steepest along (1, −1), or along two almost alike; more features than samples; one sample; scaled."""
    opposed = torch.tensor([[2.0, -2.0], [1.0, -1.0], [0.5, 0.5]])
    small = [torch.tensor([[2.0, 1.0], [1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0], [1.0], [0.0], [2.0]]), opposed]
    long, mix, wide, alone = _draw((50, 6), (6, 6), (3, 7), (1, 4))
    alike = torch.linalg.qr(long).Q * torch.tensor([1.0, 7, 6.8, 3, 2, 5])
    scaled = [wide / 1e6, 1e3 * wide]
    return [(X,) for X in (*(X.double() for X in small), long @ mix, wide, alone, alike, wide.T + 3, opposed, *scaled)]


largest_stable_step = Exercise(
    largest_stable_step,
    _matrices,
    [
        edit("/ n\n", "\n", "That is the limit for the sum over the samples. J is a mean, so its Hessian is XᵀX/n."),
        edit("[-1]", "[0]", "The smallest eigenvalue is the flattest direction. The steepest explodes first."),
        edit("2 /", "1 /", "1/λmax lands on the floor of the steepest direction: a good step, half the limit."),
        edit(
            "torch.linalg.eigvalsh(H)[-1]",
            "H.diagonal().max()",
            "The diagonal is the curvature along the axes, and between them it can be larger.",
        ),
        edit(
            "torch.linalg.eigvalsh(H)[-1]",
            "H.trace()",
            "The trace adds up all eigenvalues: a safe step, but the largest alone sets the limit.",
        ),
        edit(
            "torch.linalg.eigvalsh(H)[-1]",
            "(torch.linalg.svdvals(X)[0] / n)",
            "Singular values of X must be squared to become eigenvalues of XᵀX.",
        ),
        edit(
            "/ n\n", "/ (2 * n)\n", "The ½ in J cancels the 2 from the square: the Hessian is XᵀX/n, with no further ½."
        ),
    ],
    [
        "How curved is J? Differentiate the gradient once more: which matrix is that?",
        "The gradient is Xᵀ(Xw − y)/n, so the Hessian is XᵀX/n: the same at every w, and y does not enter.",
        "torch.linalg.eigvalsh gives the eigenvalues of a symmetric matrix, the largest last.",
    ],
    atol=0.0,
)


def minibatch_gradient(w, X, y, order, step, batch_size):
    """The gradient of 1/(2B) Σ (xᵢ·w − yᵢ)² over the B samples of mini-batch number `step`.

    w: tensor (d,). X: (n, d). y: (n,). order: (n,), the numbers 0..n−1 of the samples, shuffled.
    step: 0, 1, 2, …; its samples are the batch_size entries of `order` from place step·batch_size
    on, or fewer at the end. Returns a tensor (d,), for which errors of these samples alone are computed.
    """
    rows = order[step * batch_size : (step + 1) * batch_size]
    A = X[rows]
    return A.T @ (A @ w - y[rows]) / len(rows)


class _Numbers(TorchFunctionMode):
    """Counts the numbers in all tensors that torch's functions compute while it is entered."""

    total = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        chosen = func in (torch.Tensor.__getitem__, torch.index_select, torch.Tensor.index_select)  # nothing computed
        self.total += out.numel() if isinstance(out, torch.Tensor) and not chosen else 0
        return out


def _epoch(fn, w, X, y, order, batch_size):
    """The gradients of an epoch, asked for in reverse order, and whether that took more than the samples of each."""
    with _Numbers() as numbers:
        gradients = {f"step {k}": fn(w, X, y, order, k, batch_size) for k in reversed(range(-(-len(X) // batch_size)))}
    enough = 20 * X.numel() + 100  # the reference makes 3 per entry of X; whoever computes all at each step, far more
    return gradients | {"what is computed": "this mini-batch" if numbers.total <= enough else "far more than that"}


def _data_sets():
    """Four samples to follow by hand; a short last batch; single samples; sixty steps; all samples at once."""
    by_hand = ([1, 2], [[1, 0], [0, 1], [2, 1], [1, 3]], [1, 0, 2, 1], [2, 0, 3, 1])
    cases = [(*(torch.tensor(values).double() for values in by_hand[:3]), torch.tensor(by_hand[3]), 2)]
    dice = torch.Generator().manual_seed(2)
    for n, d, batch_size in [(7, 3, 3), (5, 2, 1), (120, 3, 2), (4, 1, 9), (1, 3, 1), (6, 3, 3)]:
        cases.append((*_draw((d,), (n, d), (n,)), torch.randperm(n, generator=dice), batch_size))
    single = *(spread(values.float()) for values in cases[1][:3]), *cases[1][3:]
    return [*cases, single]


minibatch_gradient = Exercise(
    minibatch_gradient,
    _data_sets,
    [
        edit(
            " / len(rows)", "", "That is the sum over the mini-batch, which grows with its size. Divide by that size."
        ),
        edit(
            "rows = order[step * batch_size : (step + 1) * batch_size]",
            "rows = torch.arange(len(X))[step * batch_size : (step + 1) * batch_size]",
            "Those are the next rows of X. The samples of this step are named in `order`.",
        ),
        edit(
            "len(rows)",
            "len(X)",
            "Divided by n, all samples, where only a mini-batch was summed: B is the number here.",
        ),
        edit("len(rows)", "batch_size", "Right up to the last mini-batch, which is short: how many samples has it?"),
        edit("A.T @ (", "2 * A.T @ (", "Twice too large: the ½ in the loss cancels the 2 from the square."),
        edit(
            "A @ w - y[rows]",
            "y[rows] - A @ w",
            "The sign is swapped: the error is prediction minus target, xᵢ·w − yᵢ.",
        ),
        edit(
            "A.T @ (A @ w - y[rows]) / len(rows)",
            "(X * (X @ w - y)[:, None])[rows].mean(0)",
            "All n gradients are computed and most are thrown away: select the rows first.",
        ),
    ],
    [
        "Three lines: which samples, their errors, their mean gradient.",
        "The samples are rows = order[step * batch_size : (step + 1) * batch_size].",
        "With e = X[rows] @ w - y[rows], the mean of eᵢ·xᵢ is X[rows].T @ e / len(rows).",
    ],
    outcome=_epoch,
)


def fit_regression(X, y, num_steps):
    """Fit y ≈ X w + b in exactly `num_steps` steps of gradient descent on the mean of ½ (xᵢ·w + b − yᵢ)².

    X: tensor (n, d). y: (n,). Start from w = 0 and b = 0, and move both against the gradient in
    every step. Compute the step size from X, whatever its scale. Returns (w, b): a tensor (d,) and a number.
    """
    n, d = X.shape
    A = torch.cat([X, torch.ones(n, 1)], dim=1)  # the bias is the weight of a feature that is 1
    alpha = 1 / torch.linalg.eigvalsh(A.T @ A / n)[-1]
    w = torch.zeros(d + 1, dtype=X.dtype)
    for _ in range(num_steps):
        w = w - alpha * (A.T @ (A @ w - y) / n)
    return w[:-1], w[-1].item()


def _way(fn, X, y, num_steps):
    """How the first steps go and where the last one ends: in words, so that all answers with one fault look alike."""
    A = torch.cat([X, torch.ones_like(X[:, :1])], dim=1)
    w, b = fn(X, y, num_steps)
    is_like_x = isinstance(w, torch.Tensor) and w.shape == X.shape[1:] and w.dtype == X.dtype
    if not is_like_x or not isinstance(as_number(b), numbers.Real):
        needed = f"a tensor of shape {tuple(X.shape[1:])} and of X's dtype, and a number, are needed"
        return Outcome(None, faults=(f"returns {kind_of(w)} and {kind_of(b)}: {needed}",))
    places = [torch.cat([w, torch.as_tensor(b, dtype=X.dtype).view(1)]) for w, b in (fn(X, y, k) for k in range(5))]
    steps = {
        f"step {k}": _step(here, there, A, y)
        for k, (here, there) in enumerate(itertools.pairwise([torch.zeros_like(A[0]), *places]))
    }
    end = torch.cat([w, torch.as_tensor(b, dtype=X.dtype).view(1)])
    error = (end - torch.linalg.lstsq(A, y[:, None]).solution[:, 0]).abs().max()
    where = "at the lowest point" if error < 1e-3 else "still on its way" if error < 1e2 else "far off: it explodes"
    return steps | {f"after {num_steps} steps": where}


def _step(here, there, A, y):
    """What a step from `here` to `there`, (d + 1,) with the bias last, does beside the gradient."""
    moved, gradient = there - here, A.T @ (A @ here - y) / len(y)
    size = moved @ gradient / (gradient @ gradient)
    if not moved.any():
        return "stands still"
    if gradient[-1] and not moved[-1]:
        return "moves w alone"
    if (moved - size * gradient).norm() > 1e-3 * moved.norm():
        return "moves in another direction"
    return "goes down along the gradient" if size < 0 else "goes up along the gradient"


def _regressions():
    """Features off centre, or large, or one that is small; three alike and below 1; float32."""
    cases = []
    for n, scale, centre, num_steps in [
        (60, [1.0, 1.0], 1, 250),
        (50, [5.0], 0, 250),
        (40, [0.5], 0, 150),
        (90, [0.45, 0.45, 0.45], 0.75, 500),
    ]:
        scale = torch.tensor(scale, dtype=torch.float64)
        noise, features = _draw((n,), (n, len(scale)))
        X = features * scale + centre
        cases.append((X, X @ torch.arange(1.0, len(scale) + 1).double() + 3 + 0.1 * noise, num_steps))
    X, y, num_steps = cases[0]
    return [*cases, (X.float(), y.float(), num_steps)]


fit_regression = Exercise(
    fit_regression,
    _regressions,
    [
        edit(
            "w = w - alpha",
            "w = w + alpha",
            "Every step climbs: you subtract a gradient whose error is target minus prediction.",
        ),
        edit(
            "w = w - alpha",
            "A[:, -1] = 0\n        w = w - alpha",
            "b never moves, and w bends to make up for it. Its gradient is the mean of the errors.",
        ),
        edit(
            "(A @ w - y) / n",
            "(A @ w - y)",
            "It explodes: this gradient is a sum over n samples, so its limit is n times less.",
        ),
        edit(
            "1 / torch.linalg.eigvalsh(A.T @ A / n)[-1]",
            "0.01",
            "A step of 0.01 suits one scale of X alone: compute 2/λmax from this X, and stay below.",
        ),
        edit(
            "1 / torch.linalg.eigvalsh(A.T @ A / n)[-1]",
            "1 / torch.linalg.eigvalsh(X.T @ X / n)[-1]",
            "The step obeys XᵀX/n, but the bias is a column of ones: put it into X.",
        ),
        edit(
            "range(num_steps)",
            "range(num_steps - 1)",
            "One step is missing: `num_steps` steps are asked, and after 1 the weights have moved already.",
        ),
        edit(
            "torch.zeros(d + 1,",
            "torch.ones(d + 1,",
            "The start is not zero: with no step at all, w and b are 0.",
        ),
    ],
    [
        "Repair one fault at a time and look at w and b after each: the sign, the bias, the step.",
        "Append a column of ones to X: the bias is then one more weight, and one gradient serves them all.",
        "The step: 1/λmax of AᵀA/n, where A is X with the column of ones.",
    ],
    outcome=_way,
)
