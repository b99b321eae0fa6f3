"""The losses against torch's: values, gradients, shapes, extremes and errors, in float64."""

import math

import pytest
import torch
from torch.nn import functional

from lessons_lib import losses

EXTREMES = torch.tensor([-1e4, -800.0, -40.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 40.0, 800.0, 1e4]).double()


def value_and_gradient(loss, x, *arguments, **keywords):
    x = x.clone().requires_grad_()
    value = loss(x, *arguments, **keywords)
    value.sum().backward()
    return value.detach(), x.grad


def assert_same(ours, theirs, x, *arguments, **keywords):
    for a, b in zip(
        value_and_gradient(ours, x, *arguments, **keywords),
        value_and_gradient(theirs, x, *arguments, **keywords),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 3, 4)])
class TestElementwise:
    def test_mse(self, random, shape, reduction):
        x, y = (torch.randn(shape, generator=random).double() for _ in range(2))
        assert_same(losses.mse, functional.mse_loss, x, y, reduction=reduction)

    def test_bce(self, random, shape, reduction):
        p, y = (torch.rand(shape, generator=random).double() for _ in range(2))
        assert_same(losses.bce, functional.binary_cross_entropy, p, y, reduction=reduction)

    def test_bce_with_logits(self, random, shape, reduction):
        x, y = torch.randn(shape, generator=random).double() * 9, torch.rand(shape, generator=random).double()
        peer = functional.binary_cross_entropy_with_logits
        assert_same(losses.bce_with_logits, peer, x, y, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(6,), (5, 3), (4, 6, 2), (2, 3, 4, 5)])
def test_cross_entropy(random, shape, reduction):
    x = torch.randn(shape, generator=random).double() * 20
    dim = min(1, len(shape) - 1)
    y = torch.randint(shape[dim], shape[:dim] + shape[dim + 1 :], generator=random)
    assert_same(losses.cross_entropy, functional.cross_entropy, x, y, reduction=reduction)
    probabilities = torch.rand(shape, generator=random).double().softmax(dim)
    assert_same(losses.cross_entropy, functional.cross_entropy, x, probabilities, reduction=reduction)


@pytest.mark.parametrize("y", [0.0, 0.3, 1.0])
def test_logits_may_be_extreme(y):
    peer = functional.binary_cross_entropy_with_logits
    assert_same(losses.bce_with_logits, peer, EXTREMES, torch.full_like(EXTREMES, y), reduction="none")


def test_sigmoid_and_softmax_and_log_sum_exp_at_extremes():
    assert_same(losses.sigmoid, torch.sigmoid, EXTREMES)
    assert_same(losses.softmax, torch.softmax, EXTREMES, dim=0)
    table = torch.stack([EXTREMES, EXTREMES.flip(0) / 3, torch.zeros_like(EXTREMES)])
    for dim in (0, 1, -1):
        assert_same(losses.log_sum_exp, torch.logsumexp, table, dim=dim)
        assert_same(losses.log_sum_exp, torch.logsumexp, table, dim=dim, keepdim=True)
        torch.testing.assert_close(losses.softmax(table, dim), torch.softmax(table, dim), rtol=1e-12, atol=0)
    inf = math.inf
    assert losses.log_sum_exp(torch.tensor([-inf, -inf])).item() == -inf
    assert losses.log_sum_exp(torch.tensor([-inf, 2.0])).item() == 2
    assert losses.log_sum_exp(torch.tensor([inf, 2.0])).item() == inf


def test_bce_at_0_and_1_is_torchs_value_with_a_finite_gradient():
    p = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.5])
    y = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    value, gradient = value_and_gradient(losses.bce, p, y, reduction="none")
    torch.testing.assert_close(value, functional.binary_cross_entropy(p, y, reduction="none"))
    assert gradient.isfinite().all()


def test_half_sum_mse_has_the_difference_as_its_gradient():
    prediction, target = torch.tensor([1.0, 4.0, 2.0]), torch.tensor([0.0, 2.0, 2.0])
    value, gradient = value_and_gradient(losses.half_sum_mse, prediction, target)
    assert value.item() == 2.5
    assert torch.equal(gradient, prediction - target)


def test_gradients_pass_gradcheck(random):
    x = torch.randn(4, 3, generator=random).double().requires_grad_()
    y = torch.rand(4, 3, generator=random).double()
    for loss in (losses.mse, losses.half_sum_mse, losses.bce_with_logits, losses.cross_entropy):
        assert torch.autograd.gradcheck(loss, (x, y))
    assert torch.autograd.gradcheck(lambda x: losses.bce(losses.sigmoid(x), y), (x,))
    assert torch.autograd.gradgradcheck(losses.cross_entropy, (x, torch.tensor([0, 2, 1, 1])))


def test_dtype_is_kept_and_an_empty_batch_is_nan_as_in_torch():
    assert losses.cross_entropy(torch.randn(4, 3).bfloat16(), torch.zeros(4).long()).dtype == torch.bfloat16
    assert losses.cross_entropy(torch.randn(0, 3), torch.zeros(0).long()).isnan()
    assert losses.mse(torch.zeros(0), torch.zeros(0), reduction="sum") == 0


@pytest.mark.parametrize(
    "loss, arguments, words",
    [
        (losses.mse, (torch.ones(3, 1), torch.ones(3)), r"same shape, not \(3, 1\) and \(3,\)"),
        (losses.bce_with_logits, (torch.ones(2), torch.ones(3)), "logits and target must have the same shape"),
        (losses.mse, (torch.ones(3), torch.ones(3), "average"), "reduction must be .* not 'average'"),
        (losses.bce, (torch.tensor([1.5]), torch.ones(1)), "probability must lie in 0..1, not 1.5..1.5"),
        (losses.bce, (torch.tensor([math.nan]), torch.ones(1)), "probability"),
        (losses.bce_with_logits, (torch.ones(1), torch.tensor([2.0])), "target must lie in 0..1"),
        (losses.cross_entropy, (torch.ones(2, 3), torch.tensor([0, 3])), "target must lie in 0..2, not 0..3"),
        (losses.cross_entropy, (torch.ones(2, 3), torch.tensor([0, -1])), "not -1..0"),
        (losses.cross_entropy, (torch.ones(2, 3), torch.tensor([[0], [1]])), r"int64 of shape \(2, 1\)"),
        (losses.cross_entropy, (torch.ones(2, 3), torch.ones(2)), r"of shape \(2,\), or prob.* not torch.float32"),
        (losses.cross_entropy, (torch.tensor(1.0), torch.tensor(0)), "target must be class numbers"),
    ],
)
def test_bad_input_is_named(loss, arguments, words):
    with pytest.raises(ValueError, match=words):
        loss(*arguments)


def test_what_is_no_tensor_is_named():
    with pytest.raises(TypeError, match="target must be a tensor, not list"):
        losses.mse(torch.ones(1), [1.0])
    with pytest.raises(TypeError, match="logits must be a tensor, not float"):
        losses.cross_entropy(1.0, torch.tensor(0))
