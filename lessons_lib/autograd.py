"""Reverse-mode automatic differentiation on a page: arrays that remember what they were made from (lesson 04).

Every function stands beside its own backward: an edge `(source, pull)` leads from a result back to one of its
sources, and `pull(g)` turns g = ∂L/∂result into the part of ∂L/∂source that passes through this result.
"""

import torch


class Tensor:
    """An array and the edges to what it was made from; `loss.backward()` fills `.grad` of all that require it.

    Args:
        data: a torch tensor, used as a plain array.
        edges: (source, pull) pairs. Those whose source requires no gradient are dropped.
        op: the name that a drawing shows.
        requires_grad: True for what is to be learnt.

    Raises:
        TypeError: what requires a gradient is not of a float dtype.

    Source: Griewank and Walther (2008), chapter 3.
    """

    def __init__(self, data, edges=(), op="", requires_grad=False):
        self.data, self.op, self.grad = torch.as_tensor(data).detach(), op, None
        self.edges = [(source, pull) for source, pull in edges if source.requires_grad]
        self.requires_grad = requires_grad or bool(self.edges)
        if self.requires_grad and not self.data.is_floating_point():
            raise TypeError(f"data is of {self.data.dtype}: a float dtype is needed to have a gradient")

    def __add__(self, other):
        other = _lift(other, self.data)
        return Tensor(self.data + other.data, [(self, lambda g: g), (other, lambda g: g)], "+")

    def __sub__(self, other):
        other = _lift(other, self.data)
        return Tensor(self.data - other.data, [(self, lambda g: g), (other, lambda g: -g)], "−")

    def __mul__(self, other):
        other = _lift(other, self.data)
        return Tensor(self.data * other.data, [(self, lambda g: g * other.data), (other, lambda g: g * self.data)], "×")

    def __matmul__(self, other):
        """A @ B, of shapes (..., n, k) and (..., k, m)."""
        other = _lift(other, self.data)
        if min(self.data.dim(), other.data.dim()) < 2:
            raise ValueError(
                f"@ of shapes {tuple(self.data.shape)} and {tuple(other.data.shape)}: two matrices are needed"
            )
        return Tensor(
            self.data @ other.data, [(self, lambda g: g @ other.data.mT), (other, lambda g: self.data.mT @ g)], "@"
        )

    def tanh(self):
        t = self.data.tanh()
        return Tensor(t, [(self, lambda g: g * (1 - t * t))], "tanh")

    def relu(self):
        return Tensor(self.data.clamp(min=0), [(self, lambda g: g * (self.data > 0))], "relu")

    def sum(self):
        """The sum of all elements."""
        return Tensor(self.data.sum(), [(self, lambda g: g.expand(self.data.shape))], "sum")

    def mean(self):
        """The mean of all elements."""
        n = self.data.numel()
        return Tensor(self.data.mean(), [(self, lambda g: (g / n).expand(self.data.shape))], "mean")

    def log_softmax(self, dim=-1):
        """x − log Σ exp x along `dim`."""
        out = self.data.log_softmax(dim)
        return Tensor(out, [(self, lambda g: g - out.exp() * g.sum(dim, keepdim=True))], "log softmax")

    def cross_entropy(self, target):
        """The mean over samples of −log softmax(x)[target], for logits x (N, C) and class numbers `target` (N,)."""
        N, C = self.data.shape
        return (self.log_softmax() * torch.eye(C, dtype=self.data.dtype)[target]).sum() * (-1 / N)

    def backward(self):
        """Add ∂self/∂leaf to `.grad` of every leaf; what lies between keeps the gradient of the last call only.

        Each edge is pulled once, after all parts of the gradient have arrived at its result. Unlike in torch, the
        gradients in between are kept, and so is the graph.

        Raises:
            ValueError: self is more than one number, or requires no gradient.
        """
        if self.data.numel() != 1 or not self.requires_grad:
            have = f"shape {tuple(self.data.shape)}, requires_grad={self.requires_grad}"
            raise ValueError(f"backward starts at one number that requires a gradient, not at {have}")
        grads = {self: torch.ones_like(self.data)}
        for node in results_first(self):
            g = grads.pop(node)
            node.grad = g if node.grad is None or node.edges else node.grad + g
            for source, pull in node.edges:
                part = sum_to(pull(g), source.data.shape)
                grads[source] = grads[source] + part if source in grads else part


def results_first(root):
    """List all nodes that `root` was made from, and `root` itself; each stands before its sources."""
    waiting, order, ready, stack = {root: 0}, [], [root], [root]
    while stack:  # count at every node the edges that lead to it
        for source, _ in stack.pop().edges:
            if source not in waiting:
                stack.append(source)
            waiting[source] = waiting.get(source, 0) + 1
    while ready:
        order.append(ready.pop())
        for source, _ in order[-1].edges:
            waiting[source] -= 1
            if not waiting[source]:
                ready.append(source)
    return order


def sum_to(g, shape):
    """Undo a broadcast: sum g over the dimensions along which an array of `shape` was repeated, back to that shape."""
    for _ in range(g.dim() - len(shape)):
        g = g.sum(0)
    for i, size in enumerate(shape):
        g = g.sum(i, keepdim=True) if size == 1 else g
    return g


def _lift(value, like):
    """`value` as a Tensor; a plain number takes the dtype of `like`."""
    if isinstance(value, Tensor):
        return value
    return Tensor(value if torch.is_tensor(value) else like.new_tensor(value))
