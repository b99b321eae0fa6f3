"""Lesson 04: right answers written another way, and wrong answers beyond the listed mistakes."""

import graphlib

import numpy as np
import torch
from torch.nn import functional

from lessons_lib.autograd import results_first


def matmul_by_torch(A, B, G):
    A, B = (M.clone().requires_grad_() for M in (A, B))
    return torch.autograd.grad(A @ B, (A, B), G)


def matmul_by_einsum(A, B, G):
    return [torch.einsum("ij,lj->il", G, B), torch.einsum("ij,il->lj", G, A)]


def matmul_in_numpy(A, B, G):
    A, B, G = A.numpy(), B.numpy(), G.numpy()
    return torch.from_numpy(np.dot(G, B.transpose())), torch.from_numpy(np.dot(A.transpose(), G))


def matmul_entry_by_entry(A, B, G):
    of_a, of_b = torch.zeros_like(A), torch.zeros_like(B)
    for i, j in np.ndindex(*G.shape):
        of_a[i] += G[i, j] * B[:, j]
        of_b[:, j] += G[i, j] * A[i]
    return of_a, of_b


def matmul_in_float64(A, B, G):
    return G.double() @ B.double().T, A.double().T @ G.double()


def matmul_of_one_dtype(A, B, G):
    return (G @ B.T).float().double(), (A.T @ G).float().double()


def matmul_reshaped(A, B, G):
    return G @ B.reshape(B.shape[::-1]), A.reshape(A.shape[::-1]) @ G


def matmul_symmetric(A, B, G):
    return G @ B if len(B) == B.shape[1] else G @ B.T, A.T @ G


def matmul_of_the_sum(A, B, G):
    return G.sum(1, keepdim=True) * B.sum(1), A.sum(0)[:, None] * G.sum(0)


def matmul_of_the_product(A, B, G):
    C = A @ B
    return (G * C) @ B.T, A.T @ (G * C)


def matmul_turned_round(A, B, G):
    return -G @ B.T, -A.T @ G


def matmul_by_inverse(A, B, G):
    return G @ torch.linalg.pinv(B), torch.linalg.pinv(A) @ G


def matmul_of_b_alone(A, B, G):
    return torch.zeros_like(A), A.T @ G


def matmul_that_weighs_its_arguments(A, B, G):
    return G.mul_(1) @ B.T, A.mul_(2).T @ G / 2


def matmul_one_transpose(A, B, G):
    return G @ B.T, A @ G


def matmul_divided(A, B, G):
    return G @ B.T / len(A), A.T @ G / len(A)


def sum_by_torch(g, shape):
    return g.sum_to_size(shape)


def sum_at_once(g, shape):
    missing = g.dim() - len(shape)
    dims = [*range(missing), *(missing + i for i, size in enumerate(shape) if size == 1)]
    return (g.sum(dims) if dims else g).reshape(shape)


def sum_where_the_size_differs(g, shape):
    padded = (1,) * (g.dim() - len(shape)) + tuple(shape)
    for i, (size, wanted) in enumerate(zip(g.shape, padded, strict=True)):
        g = g.sum(i, keepdim=True) if size != wanted else g
    return g.view(shape)


def sum_by_autograd(g, shape):
    source = torch.zeros(shape, dtype=g.dtype, requires_grad=True)
    return torch.autograd.grad(source.expand(g.shape), source, g)[0]


def sum_in_numpy(g, shape):
    shape, array = tuple(shape), g.numpy()
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    stretched = tuple(i for i, size in enumerate(shape) if size == 1)
    return torch.from_numpy(np.asarray(array.sum(axis=stretched, keepdims=True)))


def sum_recursively(g, shape):
    if g.dim() > len(shape):
        return sum_recursively(g.sum(0), shape)
    if not shape:
        return g
    part = g.sum(0, keepdim=True) if shape[0] == 1 else g
    return torch.stack([sum_recursively(row, shape[1:]) for row in part]) if len(part) else part.view(shape)


def sum_reshaped(g, shape):
    return g.reshape(-1, *shape).sum(0) if 1 not in shape else g.sum_to_size(shape)


def sum_of_missing_sizes_only_once(g, shape):
    g = g.sum(0) if g.dim() > len(shape) else g
    return g.sum([i for i, size in enumerate(shape) if size == 1], keepdim=True) if 1 in shape else g


def sum_of_the_first_one(g, shape):
    while g.dim() > len(shape):
        g = g.sum(0)
    return g.sum(shape.index(1), keepdim=True) if 1 in shape else g


def sum_with_squeezes(g, shape):
    return g.sum_to_size(shape).squeeze()


def sum_where_a_size_is_found(g, shape):
    dims = [i for i, size in enumerate(g.shape) if size not in shape]
    return g.sum(dims).reshape(shape) if dims else g


def sum_over_the_root(g, shape):
    out = g.sum_to_size(shape)
    return out / (g.numel() / max(out.numel(), 1)) ** 0.5


def sum_as_a_float64(g, shape):
    return g.double().sum_to_size(shape)


def sum_with_a_maximum(g, shape):
    g = g.sum([*range(g.dim() - len(shape))]) if g.dim() > len(shape) else g
    for i, size in enumerate(shape):
        g = g.amax(i, keepdim=True) if size == 1 and g.shape[i] > 0 else g
    return g


def sum_of_empty_sizes_as_they_are(g, shape):
    return g.sum_to_size(shape) if g.numel() else g


def sum_of_g_times_its_copies(g, shape):
    out = g.sum_to_size(shape)
    return out * (1 if out.shape == g.shape else 2)


def sum_without_condition(g, shape):
    return g.sum(0)


def sum_of_everything(g, shape):
    return g.sum().expand(shape)


def cross_entropy_by_torch(z, y, g):
    z = z.clone().requires_grad_()
    (functional.cross_entropy(z, y) * g).backward()
    return z.grad


def cross_entropy_by_index(z, y, g):
    P = (z - z.amax(1, keepdim=True)).exp()
    P = P / P.sum(1, keepdim=True)
    P[range(len(y)), y] -= 1
    return P * (g / len(y))


def cross_entropy_in_numpy(z, y, g):
    scores = z.numpy()
    P = np.exp(scores - scores.max(1, keepdims=True))
    P /= P.sum(1, keepdims=True)
    P[np.arange(len(P)), y.numpy()] -= 1
    return torch.from_numpy(P * (g.item() / len(P)))


def cross_entropy_sample_by_sample(z, y, g):
    rows = [row.softmax(0) - torch.eye(len(row), dtype=row.dtype)[label] for row, label in zip(z, y, strict=True)]
    return torch.stack([row * g / len(z) for row in rows])


def cross_entropy_up_to_the_largest_label(z, y, g):
    return g * (z.softmax(1) - functional.one_hot(y)) / len(z)


def cross_entropy_in_float32(z, y, g):
    return cross_entropy_by_torch(z.float(), y, g)


def cross_entropy_in_float64(z, y, g):
    return cross_entropy_by_torch(z.double(), y, g)


def cross_entropy_clamped(z, y, g):
    return cross_entropy_by_torch(z.clamp(-30, 30), y, g)


def cross_entropy_of_the_size_of_g(z, y, g):
    return cross_entropy_by_torch(z, y, g.abs())


def cross_entropy_plus_g(z, y, g):
    return cross_entropy_by_torch(z, y, 1) + g - 1


def cross_entropy_over_distinct_labels(z, y, g):
    return cross_entropy_by_torch(z, y, g) * len(z) / len(y.unique())


def cross_entropy_with_one_row_of_labels(z, y, g):
    P = z.softmax(1)
    P[0, y] -= 1
    return g * P / len(z)


def cross_entropy_with_one_column_of_labels(z, y, g):
    P = z.softmax(1)
    P[:, y] -= 1
    return g * P / len(z)


def cross_entropy_that_writes_into_the_logits(z, y, g):
    z[:] = z.softmax(1)
    z[range(len(y)), y] -= 1
    return g * z / len(z)


def cross_entropy_of_log_softmax(z, y, g):
    return g * (z.log_softmax(1) - torch.eye(z.shape[1], dtype=z.dtype)[y]) / len(z)


def cross_entropy_of_n_minus_1(z, y, g):
    return cross_entropy_by_torch(z, y, g) * len(z) / max(len(z) - 1, 1)


def cross_entropy_without_labels(z, y, g):
    return g * z.softmax(1) / len(z)


def cross_entropy_of_sigmoids(z, y, g):
    return g * (z.sigmoid() - torch.eye(z.shape[1], dtype=z.dtype)[y]) / len(z)


def gradients_in_sorted_order(loss):
    sources, waiting = {}, [loss]
    while waiting:
        node = waiting.pop()
        if node not in sources:
            sources[node] = {source for source, _ in node.edges}
            waiting.extend(sources[node])
    grads = dict.fromkeys(sources, 0)
    grads[loss] = torch.ones(())
    for node in reversed([*graphlib.TopologicalSorter(sources).static_order()]):
        for source, pull in node.edges:
            grads[source] = grads[source] + pull(grads[node])
    return grads


def gradients_gathered_from_the_results(loss):
    order, seen, stack = [], set(), [(loss, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((source, False) for source, _ in node.edges)
    parts = {loss: [torch.ones_like(loss.data)]}
    grads = {}
    for node in reversed(order):
        grads[node] = sum(parts.pop(node))
        for source, pull in node.edges:
            parts.setdefault(source, []).append(pull(grads[node]))
    return grads


def gradients_by_marks(loss):
    """A walk in depth with marks in a list of its own; the reversed order of leaving is a good one."""
    order, state, stack = [], {}, [loss]
    while stack:
        node = stack[-1]
        if node not in state:
            state[node] = iter([source for source, _ in node.edges])
        following = next((source for source in state[node] if source not in state), None)
        if following is None:
            order.append(stack.pop())
        else:
            stack.append(following)
    totals = {id(node): 0.0 for node in order}
    totals[id(loss)] = torch.ones_like(loss.data)
    for node in reversed(order):
        for source, pull in node.edges:
            totals[id(source)] = totals[id(source)] + pull(totals[id(node)])
    return {node: totals[id(node)] for node in order}


def gradients_in_tensors_of_their_own(loss):
    grads = {node: torch.zeros_like(node.data) for node in results_first(loss)}
    grads[loss] += 1
    for node in results_first(loss):
        for source, pull in node.edges:
            grads[source] += pull(grads[node])
    return grads


def walk(loss, use):
    """The gradients in a good order, each part going through `use(gradients so far, node, source, pull)`."""
    grads = {loss: torch.ones_like(loss.data)}
    for node in results_first(loss):
        for source, pull in node.edges:
            use(grads, node, source, pull)
    return grads


def gradients_without_zeros(loss):
    def use(grads, node, source, pull):
        part = pull(grads[node])
        if part:
            grads[source] = grads.get(source, 0) + part

    return {node: g for node, g in walk(loss, use).items() if g} if loss.edges else walk(loss, use)


def gradients_of_distinct_sources(loss):
    def use(grads, node, source, pull):
        if pull is dict(node.edges)[source]:
            grads[source] = grads.get(source, 0) + pull(grads[node])

    return walk(loss, use)


def gradients_multiplied(loss):
    def use(grads, node, source, pull):
        grads[source] = grads[source] * pull(grads[node]) if source in grads else pull(grads[node])

    return walk(loss, use)


def gradients_of_the_largest_part(loss):
    def use(grads, node, source, pull):
        part = pull(grads[node])
        grads[source] = max(grads.get(source, part), part)

    return walk(loss, use)


def gradients_from_one(loss):
    def use(grads, node, source, pull):
        grads[source] = grads.get(source, 0) + pull(torch.ones_like(loss.data))

    return walk(loss, use)


def gradients_without_the_loss(loss):
    grads = gradients_by_marks(loss)
    del grads[loss]
    return grads


def gradients_by_name(loss):
    return {id(node): g for node, g in gradients_by_marks(loss).items()}


def gradients_of_the_sources_of_the_loss(loss):
    keep = {loss, *(source for source, _ in loss.edges)}
    return {node: g for node, g in gradients_by_marks(loss).items() if node in keep}


def gradients_with_a_deeper_stack(loss):
    """Deep enough for a thousand nodes, not for ten thousand."""
    order = []

    def visit(node):
        if node not in order:
            for source, _ in node.edges:
                visit(source)
            order.append(node)

    visit(loss)
    return gradients_by_marks(loss)


def gradients_from_two(loss):
    return {node: 2 * g for node, g in gradients_by_marks(loss).items()}


def gradients_each_edge_twice(loss):
    grads = gradients_in_sorted_order(loss)
    for node in grads:
        for _, pull in node.edges:
            pull(grads[node])
    return grads


def gradients_averaged(loss):
    grads, order = {loss: torch.ones_like(loss.data)}, [loss]
    for node in order:
        for source, pull in node.edges:
            if source not in grads:
                order.append(source)
            part = pull(grads[node])
            grads[source] = (grads[source] + part) / 2 if source in grads else part
    return grads


alternatives = {
    "matmul_backward": [matmul_by_torch, matmul_by_einsum, matmul_in_numpy, matmul_entry_by_entry],
    "sum_to": [
        sum_by_torch,
        sum_at_once,
        sum_where_the_size_differs,
        sum_by_autograd,
        sum_in_numpy,
        sum_recursively,
        sum_reshaped,
    ],
    "cross_entropy_backward": [
        cross_entropy_by_torch,
        cross_entropy_by_index,
        cross_entropy_in_numpy,
        cross_entropy_sample_by_sample,
    ],
    "gradients": [
        gradients_in_sorted_order,
        gradients_gathered_from_the_results,
        gradients_by_marks,
        gradients_in_tensors_of_their_own,
    ],
}
wrong = {
    "matmul_backward": [
        matmul_in_float64,
        matmul_of_one_dtype,
        matmul_reshaped,
        matmul_symmetric,
        matmul_of_the_sum,
        matmul_of_the_product,
        matmul_turned_round,
        matmul_by_inverse,
        matmul_of_b_alone,
        matmul_that_weighs_its_arguments,
        matmul_one_transpose,
        matmul_divided,
    ],
    "sum_to": [
        sum_of_missing_sizes_only_once,
        sum_of_the_first_one,
        sum_with_squeezes,
        sum_where_a_size_is_found,
        sum_over_the_root,
        sum_as_a_float64,
        sum_with_a_maximum,
        sum_of_empty_sizes_as_they_are,
        sum_of_g_times_its_copies,
        sum_without_condition,
        sum_of_everything,
    ],
    "cross_entropy_backward": [
        cross_entropy_up_to_the_largest_label,
        cross_entropy_in_float32,
        cross_entropy_in_float64,
        cross_entropy_clamped,
        cross_entropy_of_the_size_of_g,
        cross_entropy_plus_g,
        cross_entropy_over_distinct_labels,
        cross_entropy_with_one_row_of_labels,
        cross_entropy_with_one_column_of_labels,
        cross_entropy_that_writes_into_the_logits,
        cross_entropy_of_log_softmax,
        cross_entropy_of_n_minus_1,
        cross_entropy_without_labels,
        cross_entropy_of_sigmoids,
    ],
    "gradients": [
        gradients_without_zeros,
        gradients_of_distinct_sources,
        gradients_multiplied,
        gradients_of_the_largest_part,
        gradients_from_one,
        gradients_without_the_loss,
        gradients_by_name,
        gradients_of_the_sources_of_the_loss,
        gradients_with_a_deeper_stack,
        gradients_from_two,
        gradients_each_edge_twice,
        gradients_averaged,
    ],
}
