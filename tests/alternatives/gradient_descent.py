"""Other answers to the exercises of lesson 01."""

import numpy as np
import torch


def largest_stable_step_by_svd(X):
    return 2 * len(X) / torch.linalg.svdvals(X).max() ** 2


def largest_stable_step_by_power_iteration(X):
    v = torch.linspace(1, 2, X.shape[1], dtype=X.dtype)
    for _ in range(10_000):
        v = X.T @ (X @ v) / len(X)
        size = v.norm()
        v = v / size
    return (2 / size).item()


def largest_stable_step_in_numpy(X):
    covariance = np.einsum("ni,nj->ij", X.numpy(), X.numpy()) / X.shape[0]
    return 2.0 / np.linalg.eigvals(covariance).real.max()


def largest_stable_step_of_centred_data(X):
    centred = X - X.mean(0)
    return 2 / torch.linalg.eigvalsh(centred.T @ centred / len(X))[-1].item()


def largest_stable_step_of_d(X):
    return 2 / torch.linalg.eigvalsh(X.T @ X / X.shape[1])[-1].item()


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


def fit_regression_one_step_only(X, y, num_steps):
    return fit_regression_with_separate_bias(X, y, 1)


def fit_regression_of_centred_features(X, y, num_steps):
    return fit_regression_with_separate_bias(X - X.mean(0), y, num_steps)


alternatives = {
    "largest_stable_step": [
        largest_stable_step_by_svd,
        largest_stable_step_by_power_iteration,
        largest_stable_step_in_numpy,
    ],
    "minibatch_gradient": [minibatch_gradient_by_autograd, minibatch_gradient_by_loop],
    "fit_regression": [fit_regression_with_separate_bias, fit_regression_with_torch],
}
wrong = {
    "largest_stable_step": [largest_stable_step_of_centred_data, largest_stable_step_of_d],
    "minibatch_gradient": [minibatch_gradient_of_the_next_step, minibatch_gradient_of_overlapping_batches],
    "fit_regression": [fit_regression_one_step_only, fit_regression_of_centred_features],
}
