"""Exercises of lesson 04: backward of a matrix product, of broadcasting, of the loss, and of a whole graph."""

import functools
import random

import torch
from torch.nn import functional

from lessons_lib.exercises.cases import drawn
from lessons_lib.exercises.core import Exercise, Outcome, edit


def _draw(*shapes):
    return tuple(drawn(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate(shapes))


def matmul_backward(A, B, G):
    """The gradients (of A, of B), given that of C = A @ B.

    A: (n, k), B: (k, m). G: (n, m), the derivative of the loss with respect to each element of C.
    Each gradient has the shape of the array that it belongs to. All three arrays stay as they are.
    """
    return G @ B.T, A.T @ G


def _matmul_cases():
    """By hand; three sizes; each size 1 in turn; square and drawn; one number; transposed and in float32."""
    hand = ([[1, 2], [3, 4]], [[0, 1], [5, 2]], [[1, 0], [2, 3]])
    sizes = [(4, 3, 5), (1, 6, 1), (5, 1, 3), (1, 2, 7), (7, 2, 1), (3, 3, 3), (1, 1, 1)]
    others = [_draw((n, k), (k, m), (n, m)) for n, k, m in sizes]
    turned = tuple(matrix.T.float() for matrix in _draw((2, 4), (3, 2), (3, 4)))
    return [tuple(torch.tensor(rows, dtype=torch.float64) for rows in hand), *others, turned]


matmul_backward = Exercise(
    matmul_backward,
    _matmul_cases,
    [
        edit(
            "G @ B.T, A.T @ G",
            "G @ B, A @ G",
            "The factors are the right ones, not transposed. Shapes tell: G is (n, m), B (k, m), A's gradient (n, k), "
            "so m must be summed over: G @ B.T. Likewise A.T on the other side.",
        ),
        edit(
            "G @ B.T, A.T @ G",
            "B.T @ G, G @ A.T",
            "The factors are transposed and on the wrong side. A stood on the left of B, so its gradient has B.T on "
            "the right: G @ B.T. And B's has A.T on the left.",
        ),
        edit(
            "G @ B.T, A.T @ G", "A.T @ G, G @ B.T", "Both gradients are right, in the wrong order: A's first, then B's."
        ),
        edit(
            "G @ B.T, A.T @ G",
            "G * B, G * A",
            "That is the rule of ×, element by element. In a matrix product A[i, l] acts on a whole row of C, so its "
            "gradient is a sum over that row.",
        ),
        edit(
            "return",
            "G = torch.ones_like(G)\n    return",
            "G is not used: that would be right if the loss were the sum of C. In general each element of C counts "
            "with its own weight, G[i, j].",
        ),
        edit(
            "G @ B.T, A.T @ G",
            "B @ G.T, G.T @ A",
            "Each gradient comes out transposed. It must have the shape of its own array, A's (n, k) and B's (k, m): "
            "(X Y).T = Y.T X.T.",
        ),
    ],
    [
        "C[i, j] = Σ_l A[i, l] · B[l, j]. Which elements of C contain A[i, l], and with what factor?",
        "A's gradient at [i, l] is Σ_j G[i, j] · B[l, j]: a matrix product with one of the two transposed.",
        "G @ B.T has the shape (n, m)(m, k) = (n, k). B's is a product of A.T and G.",
    ],
)


def sum_to(g, shape):
    """g, summed over every dimension along which an array of `shape` was broadcast.

    g: a tensor, which stays as it is. shape: a tuple that broadcasts to g.shape: dimensions may be missing
    on the left, and a size may be 1 where g has more. Returns a tensor of exactly `shape`.
    """
    while g.dim() > len(shape):
        g = g.sum(0)
    for i, size in enumerate(shape):
        if size == 1:
            g = g.sum(i, keepdim=True)
    return g


def _first_of_each(g, shape):
    """You keep one copy's gradient and drop the others'. All copies are the same element: sum over them."""
    while g.dim() > len(shape):
        g = g[0]
    for i, size in enumerate(shape):
        g = g.narrow(i, 0, 1) if size == 1 else g
    return g


def _sum_to_cases():
    """By hand; a cube, whose wrong sides fit too; four sizes; 1 in g; one size twice; empty; float32, transposed."""
    cube, table, box, row, twin = _draw((3, 3, 3), (2, 4), (2, 3, 1, 4), (1, 5), (2, 3, 2))
    small = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    shapes = {
        small: [(2,), (2, 1), ()],
        cube: [(3,), (1, 3), (3, 1), (1, 3, 1), (3, 1, 1), (), (3, 3, 3), (1, 1, 1)],
        box: [(4,), (3, 1, 1), (3, 1, 4), (1, 1, 1, 1), (2, 1, 1, 1), (1, 3, 1, 4), (1,)],
        row: [(5,), (1, 5), (1, 1), (1,), ()],
        twin: [(2,), (2, 1, 1)],
        table[0]: [(4,), (1,), ()],
        table[0, 0]: [()],
        table[:0]: [(4,), (1, 4), (0, 1)],
        cube[0].T.float(): [(3,), (3, 1)],
    }
    return [(g, shape) for g, own in shapes.items() for shape in own]


sum_to = Exercise(
    sum_to,
    _sum_to_cases,
    [
        edit(
            "if size == 1",
            "if False",
            "Missing dimensions are summed; sizes of 1 are not. An array of shape (3, 1) was stretched along its last "
            "dimension: sum over that one too, with keepdim=True.",
        ),
        edit(
            "    while g.dim() > len(shape):\n        g = g.sum(0)\n",
            "",
            "enumerate(shape)",
            "enumerate(shape, -len(shape))",
            "Sizes of 1 are summed; missing dimensions are not. A bias of shape (m,) under a batch (N, m) was repeated "
            "N times: while g has more dimensions than shape, sum over the first.",
        ),
        edit(
            "enumerate(shape)",
            "reversed([*enumerate(shape)])",
            ", keepdim=True",
            "",
            "The sums are right, but dimensions of size 1 are gone: (3, 1) is not (3,). Sum with keepdim=True.",
        ),
        edit(
            "g.sum(0)",
            "g.mean(0)",
            "g.sum(i",
            "g.mean(i",
            "You average. Each copy of a repeated element adds its own part to the loss, so their gradients add: sum.",
        ),
        edit(
            "g.sum(0)",
            "g.sum(-1)",
            "Broadcasting lines shapes up from the right: what is missing is missing on the left. Sum over the first "
            "dimensions of g, not the last.",
        ),
        _first_of_each,
    ],
    [
        "Two kinds of dimension were stretched: those that `shape` does not have at all, on the left, and those where "
        "it has size 1.",
        "Missing ones: `g = g.sum(0)` while g.dim() > len(shape).",
        "Then for every i with shape[i] == 1: `g = g.sum(i, keepdim=True)`.",
    ],
)


def cross_entropy_backward(z, y, g):
    """The gradient of the logits, (N, C), given g, that of the loss.

    The loss is the mean over N samples of -log softmax(z)[i, y[i]]. z: logits (N, C), of any size.
    y: class numbers (N,). g: one number (a 0-dim tensor). The result has z's dtype; z, y and g stay as they are.
    """
    N, C = z.shape
    P = z.softmax(1)
    Y = functional.one_hot(y, C)
    return g * (P - Y) / N


def _overflows(z, y, g):
    """Right for small logits; for large ones exp overflows and inf/inf is not a number. Use z.softmax(1), or subtract
    each row's maximum first."""
    e = z.exp()
    return g * (e / e.sum(1, keepdim=True) - functional.one_hot(y, z.shape[1])) / len(z)


def _cross_entropy_cases():
    """Two samples; other g; huge logits; one sample; the last class in no sample, or in all; one class; float32."""
    z, small, square = _draw((6, 10), (2, 3), (4, 4))
    y, one = torch.tensor([3, 0, 9, 9, 1, 5]), torch.tensor(1.0, dtype=torch.float64)
    return [
        (small, torch.tensor([2, 0]), one),
        (z, y, one),
        (z, y, -2.5 * one),
        (z, y, 0 * one),
        (1e30 * z, y, one),
        (z[:1], y[:1], one),
        (square, torch.tensor([0, 1, 0, 1]), one / 3),
        (square.T, torch.tensor([3, 3, 3, 3]), one),
        (square[:, :1], torch.tensor([0, 0, 0, 0]), one),
        (z.float(), y, one.float() / 7),
    ]


cross_entropy_backward = Exercise(
    cross_entropy_backward,
    _cross_entropy_cases,
    [
        edit(" / N", "", "N times too large: the loss is a mean over N samples, so each contributes a share of 1/N."),
        edit(
            "/ N",
            "/ z.numel()",
            "Divided by N · C. The mean is over samples; a sample's loss is one number, however many the classes.",
        ),
        edit(
            "P - Y",
            "Y - P",
            "The sign is turned round: raising the logit of the right class must lower the loss, so its gradient p − 1 "
            "is negative.",
        ),
        edit(
            "g * ",
            "",
            "g is not used. The loss may stand inside something larger, such as a weighted sum: multiply by g.",
        ),
        edit(
            "softmax(1)",
            "softmax(0)",
            "Your softmax runs down the batch. Each sample, a row, has its own probabilities: dim=1.",
        ),
        edit(
            "(P - Y)",
            "Y * (P - 1)",
            "Only the right class gets a gradient. The log of the sum depends on every logit: the wrong classes get p, "
            "and are pushed down.",
        ),
        edit("P - Y", "z - Y", "The logits stand where their softmax belongs: P − Y, with P = z.softmax(1)."),
        _overflows,
    ],
    [
        "Write the loss of one sample as log Σ_k exp(z_k) − z_y, and differentiate with respect to z_k.",
        "The first part gives softmax(z)_k, the second −1 where k = y.",
        "(P − Y), divided by N, times g; P = z.softmax(1), and Y has the labels as ones among zeros.",
    ],
)


def gradients(loss):
    """{node: gradient of `loss` with respect to it}, for the loss and every node that it was made from.

    node.edges is a list of pairs (source, pull): pull(g) gives what the gradient g of the node
    contributes to the gradient of the source. loss.data is one number. Each pull may be called once.
    The graph may be 10,000 nodes deep, and two edges may lead to one source. A gradient of 0 counts like any other.
    """
    missing, found = {}, [loss]
    for node in found:  # the list grows while we walk along it
        for source, _ in node.edges:
            if source not in missing:
                found.append(source)
            missing[source] = missing.get(source, 0) + 1
    grads, ready = {loss: torch.ones_like(loss.data)}, [loss]
    while ready:
        node = ready.pop()
        for source, pull in node.edges:
            part = pull(grads[node])
            grads[source] = grads[source] + part if source in grads else part
            missing[source] -= 1
            if missing[source] == 0:
                ready.append(source)
    return grads


def _as_soon_as_reached(loss):
    """A node hands its gradient on each time something arrives, so what came first is handed on again. Let it wait
    until all its results have delivered, and then hand on once."""
    grads, waiting = {loss: torch.ones_like(loss.data)}, [loss]
    while waiting:
        node = waiting.pop()
        for source, pull in node.edges:
            grads[source] = grads.get(source, 0) + pull(grads[node])
            waiting.append(source)
    return grads


def _nearest_first(loss):
    """Each node hands on once, but in the order of discovery, and a shortcut lets a node be found before all its
    results are done. Count the edges that lead to a node, and wait for the last."""
    grads, order = {loss: torch.ones_like(loss.data)}, [loss]
    for node in order:
        for source, pull in node.edges:
            if source not in grads:
                order.append(source)
            grads[source] = grads.get(source, 0) + pull(grads[node])
    return grads


def _every_path(loss):
    """You walk every path, and each fork doubles their number. Add up at a node first; then each edge is needed
    once."""
    grads, waiting = {}, [(loss, torch.ones_like(loss.data))]
    while waiting:
        node, g = waiting.pop()
        grads[node] = grads.get(node, 0) + g
        waiting += [(source, pull(g)) for source, pull in node.edges]
    return grads


def _every_path_by_recursion(loss):
    """Your function calls itself along every path, and each fork doubles their number. Add up at a node first, and go
    on from there once, with a list of nodes that are ready in place of the calls."""
    grads = {}

    def visit(node, g):
        grads[node] = grads.get(node, 0) + g
        for source, pull in node.edges:
            visit(source, pull(g))

    visit(loss, torch.ones_like(loss.data))
    return grads


def _by_recursion(loss):
    """Values and order are right; the depth is not: Python stops nested calls at about a thousand. Keep a list of nodes
    still to be visited instead."""
    grads = {loss: torch.ones_like(loss.data)}

    @functools.cache  # each node once
    def visit(node):
        return [*[each for source, _ in node.edges for each in visit(source)], node]

    for node in reversed(dict.fromkeys(visit(loss))):
        for source, pull in node.edges:
            grads[source] = grads.get(source, 0) + pull(grads[node])
    return grads


class _Node:
    """A number whose pulls are counted. edges: pairs (source, factor), the derivative with respect to it."""

    def __init__(self, edges):
        self.pulls, self.data = 0, torch.tensor(-2.0, dtype=torch.float64)
        self.edges = [(source, functools.partial(self._pull, factor)) for source, factor in edges]

    def _pull(self, factor, g):
        self.pulls += 1
        return g if factor == 1 else g * factor  # 1: as + does, the same tensor again


_GRAPHS = {
    "chain": {"a": [], "h": [("a", 2.0)], "loss": [("h", 3.0)]},
    "loss alone": {"loss": []},
    "fork": {"a": [], "h": [("a", 2.0)], "k": [("a", 5.0)], "loss": [("h", 1), ("k", 1)]},
    "two sums": {"a": [], "b": [], "h": [("a", 1), ("b", 1)], "loss": [("h", 1), ("a", 1)]},
    "zeros": {
        "a": [],
        "h": [("a", 3.0)],
        "k": [("h", 1)],
        "m": [("h", -1.0)],
        "loss": [("k", 1), ("m", 1), ("a", 0.0)],
    },
    "zero times inf": {"a": [], "h": [("a", float("inf"))], "loss": [("h", 0.0)]},
    "behind a zero": {"a": [], "h": [("a", 2.0)], "k": [("h", 3.0)], "loss": [("k", 0.0)]},
    "shortcuts": {
        "a": [],
        "b": [],
        "h": [("a", 2.0), ("b", 3.0)],
        "k": [("h", 5.0)],
        "loss": [("a", 1), ("h", 1), ("k", 7.0), ("b", 1)],
    },
    "ladder of 10 forks": {"h0": []} | {f"h{i + 1}": [(f"h{i}", 1), (f"h{i}", 0.5)] for i in range(10)},
    "chain of 10,000": {"h0": []} | {f"h{i + 1}": [(f"h{i}", 1)] for i in range(10_000)},
}


def _drawn_graph(seed):
    """Twelve nodes; each has edges to a few earlier ones, the same one twice at times."""
    dice = random.Random(seed)
    edges = {i: dice.choices(range(i), k=dice.randint(1, 4)) if i > 2 else [] for i in range(12)}
    return {f"n{i}": [(f"n{source}", dice.choice([1, 2.0, -0.5])) for source in own] for i, own in edges.items()}


def _try_on(fn, graph):
    nodes = {}
    for name, edges in (_GRAPHS.get(graph) or _drawn_graph(graph)).items():
        nodes[name] = _Node([(nodes[source], factor) for source, factor in edges])
    value = {}
    for when in ("", " the second time"):  # an answer may remember the nodes
        grads = fn(nodes[name])
        if not isinstance(grads, dict):
            return grads
        value |= {f"{each}{when}": _number(grads[nodes[each]]) for each in [*nodes][:12] if nodes[each] in grads}
        value[f"nodes{when}"] = len(grads)
    value["numbers in the nodes afterwards"] = sorted({node.data.item() for node in nodes.values()})
    return Outcome(value, {"calls of a pull": sum(node.pulls for node in nodes.values()) / 2})


def _number(g):
    return g.item() if isinstance(g, torch.Tensor) and g.numel() == 1 else g


gradients = Exercise(
    gradients,
    [*((name,) for name in _GRAPHS), *((seed,) for seed in range(4))],
    [
        edit(
            "grads[source] + part if source in grads else part",
            "part",
            "A node with several results keeps the part of the last one only. Parts add: keep what has arrived and add "
            "to it.",
        ),
        edit(
            "grads[source] = grads[source] + part if source in grads else part",
            "grads[source] = grads[source].add_(part) if source in grads else part",
            "`+=` writes into the tensor that is there, and a pull may hand on the very tensor it was given (that of + "
            "does): then other nodes' gradients change too. Write `a = a + part`, which makes a new one.",
        ),
        _as_soon_as_reached,
        _nearest_first,
        _every_path,
        _every_path_by_recursion,
        _by_recursion,
        edit("ones_like", "zeros_like", "All gradients are zero: the loss's own gradient, with which it begins, is 1."),
        edit(
            "return grads",
            "return {node: g for node, g in grads.items() if not node.edges}",
            "The values are right, but only for nodes without edges. The gradients in between are asked for too.",
        ),
    ],
    [
        "A node may hand its gradient on when all its results have delivered theirs. How can it know that?",
        "Walk twice. First from the loss to all sources: count, for each node, the edges that lead to it. Then from "
        "the loss again: take a node that is ready, pull each edge, add the part to the source, lower its count by 1.",
        "A source whose count has come to 0 is ready. The first walk needs a list that grows, the second a list of "
        "ready nodes; neither calls itself.",
    ],
    outcome=_try_on,
)
