"""The autograd of lesson 04 against torch's, in float64."""

import pytest
import torch
from torch.nn import functional

from lessons_lib.autograd import Tensor, results_first, sum_to

SHAPES = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 4), (3, 1)), ((3, 4), ()), ((1, 4), (3, 1)), ((2, 3, 4), (1, 4))]


def draw(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def agrees(function, *arrays):
    """`function`, written with operators and methods that both have, gives torch's value and gradients."""
    own = [Tensor(array, requires_grad=True) for array in arrays]
    torchs = [array.clone().requires_grad_() for array in arrays]
    loss, expected = function(*own), function(*torchs)
    loss.backward()
    expected.backward()
    assert torch.allclose(loss.data, expected, rtol=1e-12, atol=0)
    for mine, theirs in zip(own, torchs, strict=True):
        assert mine.grad.shape == theirs.grad.shape
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_arithmetic_with_broadcasting(shapes):
    agrees(lambda a, b: ((a + b) * (a - b) * b).tanh().mean(), *draw(*shapes))


@pytest.mark.parametrize("shapes", [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((4, 5), (2, 5, 3))], ids=str)
def test_matmul(shapes):
    agrees(lambda a, b: (a @ b * (a @ b)).sum(), *draw(*shapes))


def test_relu_and_log_softmax():
    x, weights = draw((5, 7), (5, 7))
    agrees(lambda a: a.relu().mean(), x)
    own, theirs = Tensor(x, requires_grad=True), x.clone().requires_grad_()
    (own.log_softmax() * weights).sum().backward()
    (theirs.log_softmax(-1) * weights).sum().backward()
    assert torch.allclose(own.grad, theirs.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [1, 1e3])
def test_cross_entropy(scale):
    (x,), target = draw((6, 10)), torch.tensor([3, 0, 9, 9, 1, 5])
    own, theirs = Tensor(scale * x, requires_grad=True), (scale * x).requires_grad_()
    loss, expected = own.cross_entropy(target), functional.cross_entropy(theirs, target)
    loss.backward()
    expected.backward()
    assert torch.allclose(loss.data, expected, rtol=1e-12)
    assert torch.allclose(own.grad, theirs.grad, rtol=1e-12, atol=1e-16)


def test_forks_join_and_constants_get_nothing():
    x, c = draw((3,), (3,))
    a, constant = Tensor(x, requires_grad=True), Tensor(c)
    b = a * constant
    loss = (b + b * a).sum() + a.sum()
    loss.backward()
    assert torch.allclose(a.grad, c + 2 * c * x + 1)
    assert torch.allclose(b.grad, 1 + x)
    assert constant.grad is None and not (constant * constant).requires_grad


def test_leaves_add_up_over_calls_and_nothing_is_shared():
    a, b = (Tensor(torch.ones(2), requires_grad=True) for _ in range(2))
    total = a + b
    loss = (total + a).sum()
    loss.backward()
    loss.backward()
    assert a.grad.tolist() == [4, 4] and b.grad.tolist() == [2, 2] and total.grad.tolist() == [1, 1]


def test_a_deep_graph_of_forks_is_visited_once():
    h = Tensor(torch.tensor(1.0, dtype=torch.float64), requires_grad=True)
    first = h
    for _ in range(5000):
        h = (h + h) * 0.5
    order = results_first(h)
    assert len(order) == 10_001 and order[0] is h and order[-1] is first
    h.backward()
    assert first.grad == 1


def test_sum_to():
    g = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(sum_to(g, (3, 4)), g.sum(0))
    assert torch.equal(sum_to(g, (1, 4)), g.sum((0, 1)).view(1, 4))
    assert torch.equal(sum_to(g, ()), g.sum())
    assert sum_to(g, (2, 3, 4)) is g


def test_a_number_takes_the_dtype_of_its_partner():
    a = Tensor(torch.ones(2, dtype=torch.float64), requires_grad=True)
    assert (a * 0.1).data.tolist() == [0.1, 0.1]


def test_bad_input_is_named():
    a = Tensor(torch.ones(2, 2), requires_grad=True)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        a.backward()
    with pytest.raises(ValueError, match="requires_grad=False"):
        Tensor(1.0).backward()
    with pytest.raises(ValueError, match=r"of shapes \(2, 2\) and \(2,\): two matrices"):
        a @ torch.ones(2)
    with pytest.raises(TypeError, match=r"torch\.int64"):
        Tensor(torch.arange(3), requires_grad=True)
