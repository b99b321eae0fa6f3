"""Lesson 04: right answers written another way, and wrong answers beyond the listed mistakes."""

import graphlib

import torch
from torch.nn import functional


def matmul_by_torch(A, B, G):
    A, B = (M.clone().requires_grad_() for M in (A, B))
    return torch.autograd.grad(A @ B, (A, B), G)


def matmul_by_einsum(A, B, G):
    return [torch.einsum("ij,lj->il", G, B), torch.einsum("ij,il->lj", G, A)]


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
    "matmul_backward": [matmul_by_torch, matmul_by_einsum],
    "sum_to": [sum_by_torch, sum_at_once, sum_where_the_size_differs],
    "cross_entropy_backward": [cross_entropy_by_torch, cross_entropy_by_index],
    "gradients": [gradients_in_sorted_order, gradients_gathered_from_the_results],
}
wrong = {
    "matmul_backward": [matmul_one_transpose, matmul_divided],
    "sum_to": [sum_without_condition, sum_of_everything],
    "cross_entropy_backward": [cross_entropy_without_labels, cross_entropy_of_sigmoids],
    "gradients": [gradients_each_edge_twice, gradients_averaged],
}
