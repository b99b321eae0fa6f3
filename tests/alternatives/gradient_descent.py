"""Other answers to the exercises of lesson 01."""

import numpy as np
import torch


def largest_stable_step_by_svd(X):
    return 2 * len(X) / torch.linalg.svdvals(X).max() ** 2


def largest_stable_step_by_power_iteration(X):
    v = torch.linspace(1, 2, X.shape[1], dtype=X.dtype)
    for _ in range(2000):
        v = X.T @ (X @ v) / len(X)
        size = v.norm()
        v = v / size
    return (2 / size).item()


def largest_stable_step_in_numpy(X):
    covariance = np.einsum("ni,nj->ij", X.numpy(), X.numpy()) / X.shape[0]
    return 2.0 / np.linalg.eigvals(covariance).real.max()


def largest_stable_step_of_the_kernel(X):
    return torch.tensor(2.0) / torch.linalg.eigvals(X @ X.T / len(X)).abs().max()


def largest_stable_step_of_centred_data(X):
    centred = X - X.mean(0)
    return 2 / torch.linalg.eigvalsh(centred.T @ centred / len(X))[-1].item()


def largest_stable_step_of_d(X):
    return 2 / torch.linalg.eigvalsh(X.T @ X / X.shape[1])[-1].item()


def largest_stable_step_after_20_iterations(X):
    v = torch.ones(X.shape[1], dtype=X.dtype)
    for _ in range(20):
        v = X.T @ (X @ v) / len(X)
        v, size = v / v.norm(), v.norm()
    return (2 / size).item()


def largest_stable_step_of_correlations(X):
    return 2 / torch.linalg.eigvalsh(torch.corrcoef(X.T).view(X.shape[1], -1))[-1].item()


def largest_stable_step_of_n_minus_1(X):
    return 2 / torch.linalg.eigvalsh(X.T @ X / (len(X) - 1))[-1].item()


def largest_stable_step_of_the_longest_sample(X):
    return 2 / X.square().sum(1).max().item()


def largest_stable_step_of_row_sums(X):
    return 2 / (X.T @ X / len(X)).abs().sum(1).max().item()


def largest_stable_step_of_an_unsorted_eigenvalue(X):
    return 2 / torch.linalg.eigvals(X.T @ X / len(X)).real[0].item()


def minibatch_gradient_by_autograd(w, X, y, order, step, batch_size):
    w = w.clone().requires_grad_()
    rows = order.split(batch_size)[step]
    ((X[rows] @ w - y[rows]) ** 2).mean().div(2).backward()
    return w.grad


def minibatch_gradient_by_loop(w, X, y, order, step, batch_size):
    total, count = torch.zeros_like(w), 0
    for i in order[step * batch_size : step * batch_size + batch_size].tolist():
        total += (X[i] @ w - y[i]) * X[i]
        count += 1
    return total / count


def minibatch_gradient_in_numpy(w, X, y, order, step, batch_size):
    rows = order.numpy()[step * batch_size :][:batch_size]
    A, targets = X.numpy()[rows], y.numpy()[rows]
    return torch.from_numpy(((A.dot(w.numpy()) - targets)[:, None] * A).mean(axis=0))


def minibatch_gradient_in_halves(w, X, y, order, step, batch_size):
    """The mean of a batch is that of its parts, weighed by their sizes."""
    if batch_size == 1 or len(order) - step * batch_size == 1:
        i = order[step * batch_size]
        return (X[i] @ w - y[i]) * X[i]
    own = order[step * batch_size : (step + 1) * batch_size]
    parts = own[: len(own) // 2], own[len(own) // 2 :]
    return sum(len(p) / len(own) * minibatch_gradient_by_loop(w, X, y, p, 0, len(p)) for p in parts)


class _Counting:
    step = -1


def minibatch_gradient_that_counts_steps_itself(w, X, y, order, step, batch_size):
    _Counting.step = (_Counting.step + 1) % -(-len(X) // batch_size)
    return minibatch_gradient_by_autograd(w, X, y, order, _Counting.step, batch_size)


def minibatch_gradient_filled_up(w, X, y, order, step, batch_size):
    rows = order.roll(-step * batch_size)[:batch_size]
    return minibatch_gradient_by_autograd(w, X, y, rows, 0, batch_size)


def minibatch_gradient_of_the_last_step_dropped(w, X, y, order, step, batch_size):
    full = (step + 1) * batch_size <= len(X)
    return minibatch_gradient_by_autograd(w, X, y, order, step, batch_size) * full


def minibatch_gradient_of_means(w, X, y, order, step, batch_size):
    rows = order.split(batch_size)[step]
    return X[rows].mean(0) * (X[rows] @ w - y[rows]).mean()


def minibatch_gradient_with_ordered_targets(w, X, y, order, step, batch_size):
    rows = order.split(batch_size)[step]
    return X[rows].T @ (X[rows] @ w - y[step * batch_size :][: len(rows)]) / len(rows)


def minibatch_gradient_in_float64(w, X, y, order, step, batch_size):
    return minibatch_gradient_by_autograd(w.double(), X.double(), y.double(), order, step, batch_size)


def minibatch_gradient_per_step(w, X, y, order, step, batch_size):
    return minibatch_gradient_by_autograd(w, X, y, order, step, batch_size) / (step + 1)


def minibatch_gradient_of_the_next_step(w, X, y, order, step, batch_size):
    rows = order.roll(-batch_size)[step * batch_size : (step + 1) * batch_size]
    return X[rows].T @ (X[rows] @ w - y[rows]) / len(rows)


def minibatch_gradient_of_overlapping_batches(w, X, y, order, step, batch_size):
    rows = order[step : step + batch_size]
    return X[rows].T @ (X[rows] @ w - y[rows]) / len(rows)


def fit_regression_with_separate_bias(X, y, num_steps):
    A = torch.cat([torch.ones_like(X[:, :1]), X], dim=1)
    alpha = 1 / (A**2).sum(1).mean()  # the trace is at least the largest eigenvalue
    w, b = torch.zeros(X.shape[1], dtype=X.dtype), torch.zeros((), dtype=X.dtype)
    for _ in range(num_steps):
        error = X @ w + b - y
        b = b - alpha * error.mean()
        w = w - alpha * (error[:, None] * X).mean(0)
    return w, b


def fit_regression_with_torch(X, y, num_steps):
    A = torch.cat([X, torch.ones_like(X[:, :1])], dim=1)
    w = torch.zeros(A.shape[1], dtype=X.dtype, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.8 * len(X) / torch.linalg.matrix_norm(A, 2).item() ** 2)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (torch.nn.functional.mse_loss(A @ w, y) / 2).backward()
        optimizer.step()
    return w.detach()[:-1], w.detach()[-1]


def fit_regression_with_an_exact_line_search(X, y, num_steps):
    A = torch.cat([X, torch.ones_like(X[:, :1])], dim=1)
    w = torch.zeros_like(A[0])
    for _ in range(num_steps):
        g = A.T @ (A @ w - y)
        w = w - (g @ g) / (A @ g).square().sum().clamp(min=1e-300) * g
    return w[:-1], w[-1]


def fit_regression_in_numpy(X, y, num_steps):
    A = np.column_stack([X.numpy(), np.ones(len(X), dtype=X.numpy().dtype)])
    w = np.zeros(A.shape[1], dtype=A.dtype)
    for _ in range(num_steps):
        w -= A.T @ (A @ w - y.numpy()) / (len(A) * np.linalg.eigvalsh(A.T @ A / len(A)).max())
    return torch.from_numpy(w[:-1].copy()), float(w[-1])


def fit_regression_one_step_only(X, y, num_steps):
    return fit_regression_with_separate_bias(X, y, 1)


def fit_regression_one_step_more(X, y, num_steps):
    return fit_regression_with_separate_bias(X, y, num_steps + 1)


def fit_regression_one_step_short(X, y, num_steps):
    return fit_regression_with_separate_bias(X, y, max(num_steps - 1, 0))


def fit_regression_of_centred_features(X, y, num_steps):
    return fit_regression_with_separate_bias(X - X.mean(0), y, num_steps)


def fit_regression_at_once(X, y, num_steps):
    A = torch.cat([X, torch.ones_like(X[:, :1])], dim=1)
    solution = torch.linalg.lstsq(A, y[:, None]).solution[:, 0]
    return solution[:-1], solution[-1].item()


def fit_regression_at_once_after_a_step(X, y, num_steps):
    return (fit_regression_at_once if num_steps > 1 else fit_regression_with_separate_bias)(X, y, num_steps)


def fit_regression_from_random_weights(X, y, num_steps):
    w, b = fit_regression_with_separate_bias(X, y - X.sum(1), num_steps)
    return w + 1, b


def fit_regression_with_momentum(X, y, num_steps):
    A = torch.cat([X, torch.ones_like(X[:, :1])], dim=1)
    w, v = torch.zeros_like(A[0]), torch.zeros_like(A[0])
    for _ in range(num_steps):
        v = 0.5 * v + A.T @ (A @ w - y) / (A**2).sum()
        w = w - v
    return w[:-1], w[-1]


def fit_regression_until_it_converges(X, y, num_steps):
    return fit_regression_with_separate_bias(X, y, 10 * num_steps)


def fit_regression_with_a_faster_bias(X, y, num_steps):
    A = torch.cat([X, torch.full_like(X[:, :1], 2.0)], dim=1)
    w = torch.zeros_like(A[0])
    for _ in range(num_steps):
        w = w - A.T @ (A @ w - y) / (A**2).sum()
    return w[:-1], 2 * w[-1]


def fit_regression_of_standardised_features(X, y, num_steps):
    mean, std = X.mean(0), X.std(0)
    w, b = fit_regression_with_separate_bias((X - mean) / std, y, num_steps)
    return w / std, b - (w / std * mean).sum()


def fit_regression_weight_by_weight(X, y, num_steps):
    w, b = torch.zeros_like(X[0]), torch.zeros_like(y[0])
    for _ in range(num_steps):
        b = b - (X @ w + b - y).mean()
        for j in range(len(w)):
            w[j] -= ((X @ w + b - y) * X[:, j]).mean() / X[:, j].square().mean()
    return w, b


alternatives = {
    "largest_stable_step": [
        largest_stable_step_by_svd,
        largest_stable_step_by_power_iteration,
        largest_stable_step_in_numpy,
        largest_stable_step_of_the_kernel,
    ],
    "minibatch_gradient": [
        minibatch_gradient_by_autograd,
        minibatch_gradient_by_loop,
        minibatch_gradient_in_numpy,
        minibatch_gradient_in_halves,
    ],
    "fit_regression": [
        fit_regression_with_separate_bias,
        fit_regression_with_torch,
        fit_regression_with_an_exact_line_search,
        fit_regression_in_numpy,
    ],
}
wrong = {
    "largest_stable_step": [
        largest_stable_step_after_20_iterations,
        largest_stable_step_of_correlations,
        largest_stable_step_of_n_minus_1,
        largest_stable_step_of_the_longest_sample,
        largest_stable_step_of_row_sums,
        largest_stable_step_of_an_unsorted_eigenvalue,
        largest_stable_step_of_centred_data,
        largest_stable_step_of_d,
    ],
    "minibatch_gradient": [
        minibatch_gradient_that_counts_steps_itself,
        minibatch_gradient_filled_up,
        minibatch_gradient_of_the_last_step_dropped,
        minibatch_gradient_of_means,
        minibatch_gradient_with_ordered_targets,
        minibatch_gradient_in_float64,
        minibatch_gradient_per_step,
        minibatch_gradient_of_the_next_step,
        minibatch_gradient_of_overlapping_batches,
    ],
    "fit_regression": [
        fit_regression_one_step_only,
        fit_regression_one_step_more,
        fit_regression_one_step_short,
        fit_regression_of_centred_features,
        fit_regression_at_once,
        fit_regression_at_once_after_a_step,
        fit_regression_from_random_weights,
        fit_regression_with_momentum,
        fit_regression_until_it_converges,
        fit_regression_with_a_faster_bias,
        fit_regression_of_standardised_features,
        fit_regression_weight_by_weight,
    ],
}
