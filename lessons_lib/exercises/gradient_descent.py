"""Exercises of lesson 01: the largest stable step, the gradient of a mini-batch, and a regression to repair."""

import torch
from torch.overrides import TorchFunctionMode

from lessons_lib.exercises.core import Exercise, Outcome


def largest_stable_step(X):
    """The limit 2/λmax for the step of gradient descent on J(w) = 1/(2n) Σᵢ (xᵢ·w − yᵢ)².

    X: tensor (n, d), one sample a row. Returns a number.
    """
    n = len(X)
    H = X.T @ X / n
    return 2 / torch.linalg.eigvalsh(H)[-1].item()


def _of_the_sum(X):
    """That is the limit for the sum over the samples. J is a mean, so its Hessian is XᵀX/n."""
    return 2 / torch.linalg.eigvalsh(X.T @ X)[-1].item()


def _of_the_smallest(X):
    """The smallest eigenvalue is the flattest direction. The steepest explodes first."""
    return 2 / torch.linalg.eigvalsh(X.T @ X / len(X))[0].item()


def _half_the_limit(X):
    """1/λmax lands on the floor of the steepest direction: a good step, half the limit."""
    return 1 / torch.linalg.eigvalsh(X.T @ X / len(X))[-1].item()


def _of_the_diagonal(X):
    """The diagonal is the curvature along the axes, and between them it can be larger."""
    return 2 / (X.T @ X / len(X)).diagonal().max().item()


def _of_the_trace(X):
    """The trace adds up all eigenvalues: a safe step, but the largest alone sets the limit."""
    return 2 / (X.T @ X / len(X)).trace().item()


def _of_a_singular_value(X):
    """Singular values of X must be squared to become eigenvalues of XᵀX."""
    return 2 / (torch.linalg.svdvals(X)[0] / len(X)).item()


def _of_two_n(X):
    """The ½ in J cancels the 2 from the square: the Hessian is XᵀX/n, with no further ½."""
    return 2 / torch.linalg.eigvalsh(X.T @ X / (2 * len(X)))[-1].item()


def _matrices():
    generator = torch.Generator().manual_seed(1)
    long = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    mixed = long @ torch.randn(6, 6, generator=generator, dtype=torch.float64)
    small = [[[2.0, 1.0], [1.0, 2.0], [0.0, 1.0]], [[3.0], [1.0], [0.0], [2.0]]]
    return [*((torch.tensor(rows, dtype=torch.float64),) for rows in small), (mixed,)]


largest_stable_step = Exercise(
    largest_stable_step,
    _matrices,
    [_of_the_sum, _of_the_smallest, _half_the_limit, _of_the_diagonal, _of_the_trace, _of_a_singular_value, _of_two_n],
    [
        "How curved is J? Differentiate the gradient once more: which matrix is that?",
        "The gradient is Xᵀ(Xw − y)/n, so the Hessian is XᵀX/n: the same at every w, and y does not enter.",
        "torch.linalg.eigvalsh gives the eigenvalues of a symmetric matrix, the largest last.",
    ],
)


def minibatch_gradient(w, X, y, order, step, batch_size):
    """The gradient of 1/(2B) Σ (xᵢ·w − yᵢ)² over the B samples of mini-batch number `step`.

    w: tensor (d,). X: (n, d). y: (n,). order: (n,), the numbers 0..n−1 of the samples, shuffled.
    step: 0, 1, 2, …; its samples are the batch_size entries of `order` from place step·batch_size
    on, or fewer at the end. Returns a tensor (d,), for which only these samples are computed.
    """
    rows = order[step * batch_size : (step + 1) * batch_size]
    A = X[rows]
    return A.T @ (A @ w - y[rows]) / len(rows)


def _summed(w, X, y, order, step, batch_size):
    """That is the sum over the mini-batch, which grows with its size. Divide by that size."""
    rows = order[step * batch_size : (step + 1) * batch_size]
    return X[rows].T @ (X[rows] @ w - y[rows])


def _not_shuffled(w, X, y, order, step, batch_size):
    """Those are the next rows of X. The samples of this step are named in `order`."""
    part = slice(step * batch_size, (step + 1) * batch_size)
    return X[part].T @ (X[part] @ w - y[part]) / len(X[part])


def _divided_by_n(w, X, y, order, step, batch_size):
    """Divided by n, all samples, where only a mini-batch was summed: B is the number here."""
    return _summed(w, X, y, order, step, batch_size) / len(X)


def _divided_by_batch_size(w, X, y, order, step, batch_size):
    """Right up to the last mini-batch, which is short: how many samples has it?"""
    return _summed(w, X, y, order, step, batch_size) / batch_size


def _first_batch_again(w, X, y, order, step, batch_size):
    """Every step gets the first mini-batch again: where does `step` enter?"""
    return minibatch_gradient.reference(w, X, y, order, 0, batch_size)


def _twice(w, X, y, order, step, batch_size):
    """Twice too large: the ½ in the loss cancels the 2 from the square."""
    return 2 * minibatch_gradient.reference(w, X, y, order, step, batch_size)


def _sign_swapped(w, X, y, order, step, batch_size):
    """The sign is swapped: the error is prediction minus target, xᵢ·w − yᵢ."""
    return -minibatch_gradient.reference(w, X, y, order, step, batch_size)


def _full(w, X, y, order, step, batch_size):
    """That is the full gradient, the same at every step. Take the samples of this mini-batch alone."""
    return X.T @ (X @ w - y) / len(X)


def _selected_too_late(w, X, y, order, step, batch_size):
    """All n gradients are computed and most are thrown away: select the rows first."""
    of_each_sample = X * (X @ w - y)[:, None]
    return of_each_sample[order[step * batch_size : (step + 1) * batch_size]].mean(0)


class _Numbers(TorchFunctionMode):
    """Counts the numbers in all tensors that torch's functions return while it is entered."""

    total = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.total += out.numel() if isinstance(out, torch.Tensor) else 0
        return out


def _epoch(fn, w, X, y, order, batch_size):
    """The gradient of every mini-batch of an epoch, and how many numbers torch made for them."""
    with _Numbers() as numbers:
        gradients = {
            f"step {step}": fn(w, X, y, order, step, batch_size) for step in range(-(-len(order) // batch_size))
        }
    return Outcome(gradients, {"numbers computed in the epoch": numbers.total})


def _data_sets():
    """Four samples to follow by hand; two larger sets, whose last mini-batch is short and whose n is large."""
    cases = [([[1, 0], [0, 1], [2, 1], [1, 3]], [1, 0, 2, 1], [1, 2], [2, 0, 3, 1], 2)]
    generator = torch.Generator().manual_seed(2)
    for n, batch_size in [(7, 3), (400, 4)]:
        X, y, w = (torch.randn(*size, generator=generator) for size in [(n, 3), (n,), (3,)])
        cases.append((X, y, w, torch.randperm(n, generator=generator), batch_size))
    return [
        (
            torch.as_tensor(w).double(),
            torch.as_tensor(X).double(),
            torch.as_tensor(y).double(),
            torch.as_tensor(order),
            B,
        )
        for X, y, w, order, B in cases
    ]


minibatch_gradient = Exercise(
    minibatch_gradient,
    _data_sets,
    [
        _summed,
        _not_shuffled,
        _divided_by_n,
        _divided_by_batch_size,
        _first_batch_again,
        _twice,
        _sign_swapped,
        _full,
        _selected_too_late,
    ],
    [
        "Three lines: which samples, their errors, their mean gradient.",
        "The samples are rows = order[step * batch_size : (step + 1) * batch_size].",
        "With e = X[rows] @ w - y[rows], the mean of eᵢ·xᵢ is X[rows].T @ e / len(rows).",
    ],
    outcome=_epoch,
    slack=8.0,
)


def fit_regression(X, y, num_steps):
    """Fit y ≈ X w + b in `num_steps` steps of gradient descent from zero; the step size suits X.

    X: tensor (n, d). y: (n,). Returns (w, b): a tensor (d,) and a number.
    """
    n, d = X.shape
    A = torch.cat([X, torch.ones(n, 1, dtype=X.dtype)], dim=1)  # the bias is the weight of a feature that is 1
    alpha = 1 / torch.linalg.eigvalsh(A.T @ A / n)[-1]
    w = torch.zeros(d + 1, dtype=X.dtype)
    for _ in range(num_steps):
        w = w - alpha * A.T @ (A @ w - y) / n
    return w[:-1], w[-1].item()


def _descend(X, y, num_steps, alpha, sign=1, bias=1):
    w, b = torch.zeros_like(X[0]), torch.zeros_like(y[0])
    for _ in range(num_steps):
        error = sign * (X @ w + b - y)
        w, b = w - alpha * X.T @ error / len(X), b - alpha * bias * error.mean()
    return w, b.item()


def _limit(X, bias=True):
    A = torch.cat([X, torch.ones_like(X[:, :1])], dim=1) if bias else X
    return largest_stable_step.reference(A)


def _uphill(X, y, num_steps):
    """The first step climbs: you subtract a gradient whose error is target minus prediction."""
    return _descend(X, y, num_steps, _limit(X) / 2, sign=-1)


def _no_bias(X, y, num_steps):
    """b never moves, and w bends to make up for it. Its gradient is the mean of the errors."""
    return _descend(X, y, num_steps, _limit(X) / 2, bias=0)


def _sum_of_gradients(X, y, num_steps):
    """It explodes: this gradient is a sum over n samples, so its limit is n times less."""
    return _descend(X, y, num_steps, 0.01 * len(X))


def _fixed_step(X, y, num_steps):
    """A step of 0.01 suits one scale of X alone: compute 2/λmax from this X, and stay below."""
    return _descend(X, y, num_steps, 0.01)


def _step_forgets_bias(X, y, num_steps):
    """The step obeys XᵀX/n, but the bias is a column of ones: put it into X."""
    return _descend(X, y, num_steps, 0.9 * _limit(X, bias=False))


def _on_the_limit(X, y, num_steps):
    """At 2/λmax itself the steepest direction swings to and fro for ever. Take half of it."""
    return _descend(X, y, num_steps, _limit(X))


def _one_weight(X, y, num_steps):
    """All features share one weight here. w has the shape (d,): one for each column of X."""
    total = X.sum(1, keepdim=True)
    w, b = _descend(total, y, num_steps, _limit(total) / 2)
    return w.expand(X.shape[1]), b


def _first_and_last(fn, X, y, num_steps):
    """Whether the first step goes downhill, and the weights after `num_steps` of them."""
    w, b = fn(X, y, 1)
    down = X.T @ y @ torch.as_tensor(w, dtype=y.dtype) + y.sum() * b
    w, b = fn(X, y, num_steps)
    return {"the first step": "downhill" if down > 0 else "uphill", "w": w, "b": torch.as_tensor(b).item()}


def _regressions():
    """Features off centre; features so large that a step of 0.01 explodes; one so small that 0.01 gets nowhere."""
    random = {"generator": torch.Generator().manual_seed(3), "dtype": torch.float64}
    cases = []
    for n, scale, centre, num_steps in [(300, [1.0, 1.0], 1, 400), (200, [15.0, 12.0], 0, 6000), (100, [0.5], 0, 400)]:
        scale = torch.tensor(scale, dtype=torch.float64)
        X = torch.randn(n, len(scale), **random) * scale + centre
        y = X @ torch.arange(1.0, len(scale) + 1, dtype=torch.float64) + 3 + 0.1 * torch.randn(n, **random)
        cases.append((X, y, num_steps))
    return cases


fit_regression = Exercise(
    fit_regression,
    _regressions,
    [_uphill, _no_bias, _sum_of_gradients, _fixed_step, _step_forgets_bias, _on_the_limit, _one_weight],
    [
        "Repair one fault at a time and look at w and b after each: the sign, the bias, the step.",
        "Append a column of ones to X: the bias is then one more weight, and one gradient serves them all.",
        "The step: 1/λmax of AᵀA/n, where A is X with the column of ones.",
    ],
    outcome=_first_and_last,
    rtol=1e-4,
    atol=1e-4,
)
