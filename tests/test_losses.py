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


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("x", "right", "gradient"),
    [
        ([-INF, -INF], -INF, None),
        ([-INF, 2.0], 2.0, [0.0, 1.0]),
        ([INF, 2.0], INF, None),
        ([INF, INF], INF, None),
        ([INF, -INF], INF, None),
        ([NAN, 1.0], NAN, None),
        ([NAN, INF], NAN, None),
        ([1e308, 1e308], 1e308 + math.log(2), [0.5, 0.5]),
        ([-1e308, -1e308], -1e308, [0.5, 0.5]),
        ([1e308, -1e308], 1e308, [1.0, 0.0]),
        ([700.0, 710.0], 710 + math.log1p(math.exp(-10)), None),
        ([0.0, -800.0], 0.0, [1.0, 0.0]),
        ([3.0], 3.0, [1.0]),
    ],
)
def test_log_sum_exp_is_exact_at_extremes_whatever_torch_does(x, right, gradient):
    value, found = value_and_gradient(losses.log_sum_exp, torch.tensor(x, dtype=torch.float64))
    assert value.item() == pytest.approx(right, rel=1e-15, nan_ok=True)
    assert gradient is None or found.tolist() == gradient
    table = torch.tensor([x, [0.0] * len(x)], dtype=torch.float64)
    rows = losses.log_sum_exp(table, dim=1)
    assert rows[0].item() == pytest.approx(right, rel=1e-15, nan_ok=True), "a row does not touch its neighbour"
    assert rows[1].item() == pytest.approx(math.log(len(x)), abs=1e-15)


@pytest.mark.parametrize(
    ("x", "right"),
    [
        ([-INF, 2.0], [0.0, 1.0]),
        ([1e308, 1e308], [0.5, 0.5]),
        ([-1e308, 1e308], [0.0, 1.0]),
        ([-INF, -INF], [NAN, NAN]),
        ([INF, 2.0], [NAN, NAN]),
        ([NAN, 2.0], [NAN, NAN]),
    ],
)
def test_softmax_at_extremes(x, right):
    assert losses.softmax(torch.tensor(x, dtype=torch.float64)).tolist() == pytest.approx(right, nan_ok=True)


def test_sigmoid_at_extremes():
    x = torch.tensor([-INF, -1e308, -800.0, 0.0, 800.0, 1e308, INF, NAN], dtype=torch.float64)
    value, gradient = value_and_gradient(losses.sigmoid, x)
    assert value.tolist() == pytest.approx([0, 0, 0, 0.5, 1, 1, 1, NAN], nan_ok=True, abs=1e-300)
    assert gradient[:-1].tolist() == pytest.approx([0, 0, 0, 0.25, 0, 0, 0], abs=1e-300)


@pytest.mark.parametrize(
    ("x", "y", "right", "gradient"),
    [
        (INF, 1.0, 0.0, 0.0),
        (-INF, 0.0, 0.0, 0.0),
        (INF, 0.0, INF, 1.0),
        (-INF, 1.0, INF, -1.0),
        (1e308, 0.0, 1e308, 1.0),
        (1e308, 1.0, 0.0, 0.0),
        (-1e308, 1.0, 1e308, -1.0),
        (NAN, 1.0, NAN, None),
    ],
)
def test_a_sure_logit_costs_nothing_or_all(x, y, right, gradient):
    found = value_and_gradient(losses.bce_with_logits, *torch.tensor([[x], [y]], dtype=torch.float64))
    assert found[0].item() == pytest.approx(right, nan_ok=True)
    assert gradient is None or found[1].item() == gradient


def test_a_class_that_is_ruled_out_costs_nothing_unless_it_is_the_answer():
    x = torch.tensor([[-INF, 0.0, 0.0], [0.0, -INF, 1.0]]).double()
    value, gradient = value_and_gradient(losses.cross_entropy, x, torch.tensor([1, 1]), reduction="none")
    assert value.tolist() == pytest.approx([math.log(2), INF])
    assert gradient[0].tolist() == pytest.approx([0, -0.5, 0.5])
    soft = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]).double()
    value, gradient = value_and_gradient(losses.cross_entropy, x, soft, reduction="none")
    assert value.tolist() == pytest.approx([math.log(2), math.log1p(math.exp(-1))])
    assert gradient.isfinite().all() and gradient[0].tolist() == pytest.approx([0, 0, 0])


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
        (
            losses.mse,
            (torch.ones(3, 1), torch.ones(3)),
            r"of shape \(3, 1\) and target of shape \(3,\): the same shape is",
        ),
        (losses.bce_with_logits, (torch.ones(2), torch.ones(3)), r"logits of shape \(2,\) and target of shape \(3,\)"),
        (losses.mse, (torch.ones(3), torch.ones(3), "average"), "reduction='average': .*mean.* is needed"),
        (
            losses.bce,
            (torch.tensor([1.5]), torch.ones(1)),
            r"probability in 1\.5\.\.1\.5: numbers in 0\.\.1 are needed",
        ),
        (losses.bce, (torch.tensor([math.nan]), torch.ones(1)), "probability"),
        (losses.bce_with_logits, (torch.ones(1), torch.tensor([2.0])), r"target in 2\.0\.\.2\.0: numbers in 0\.\.1"),
        (losses.cross_entropy, (torch.ones(2, 3), torch.tensor([0, 3])), r"target in 0\.\.3: numbers in 0\.\.2"),
        (losses.cross_entropy, (torch.ones(2, 3), torch.tensor([0, -1])), r"target in -1\.\.0"),
        (
            losses.cross_entropy,
            (torch.ones(2, 3), torch.tensor([[0], [1]])),
            r"int64 and shape \(2, 1\): class numbers",
        ),
        (
            losses.cross_entropy,
            (torch.ones(2, 3), torch.ones(2)),
            r"float32 and shape \(2,\): .* of shape \(2,\), or prob",
        ),
        (losses.cross_entropy, (torch.tensor(1.0), torch.tensor(0)), "class numbers"),
    ],
)
def test_bad_input_is_named(loss, arguments, words):
    with pytest.raises(ValueError, match=words):
        loss(*arguments)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.mse(torch.ones(1), [1.0]), r"target is a list: a torch\.Tensor is needed"),
        (lambda: losses.cross_entropy(1.0, torch.tensor(0)), r"logits is a float: a torch\.Tensor is needed"),
        (lambda: losses.cross_entropy((torch.ones(2, 2),), torch.zeros(2)), "logits is a tuple"),
        (lambda: losses.cross_entropy(torch.ones(2, 2), [0, 1]), "target is a list"),
        (
            lambda: losses.cross_entropy(torch.ones(2, 2).long(), torch.zeros(2).long()),
            r"logits is a tensor of torch\.int",
        ),
        (lambda: losses.log_sum_exp("x"), "x is a str"),
        (lambda: losses.log_sum_exp(torch.ones(2).long()), r"x is a tensor of torch\.int64: one of floats is needed"),
        (lambda: losses.softmax([1.0]), "x is a list"),
        (lambda: losses.softmax(torch.ones(2).cfloat()), r"x is a tensor of torch\.complex64"),
        (lambda: losses.sigmoid(2), "x is a int"),
        (lambda: losses.mse(torch.ones(2).int(), torch.ones(2).int()), r"prediction is a tensor of torch\.int32"),
        (lambda: losses.mse(torch.ones(2).bool(), torch.ones(2)), r"prediction is a tensor of torch\.bool"),
        (lambda: losses.half_sum_mse(torch.ones(2), torch.ones(2).cfloat()), "target is a tensor of torch.complex64"),
        (lambda: losses.bce(None, torch.ones(2)), "probability is a NoneType"),
        (lambda: losses.bce_with_logits(torch.ones(2).long(), torch.ones(2)), "logits is a tensor"),
    ],
)
def test_what_is_no_tensor_of_floats_is_named(call, words):
    with pytest.raises(TypeError, match=words):
        call()


def test_whole_numbers_are_targets_too():
    x = torch.tensor([0.5, 2.0], dtype=torch.float64)
    for y in (torch.tensor([0, 1]), torch.tensor([0, 1], dtype=torch.int32), torch.tensor([False, True])):
        assert losses.mse(x, y.long()) == functional.mse_loss(x, y.double())
        assert losses.bce_with_logits(x, y.long()) == losses.bce_with_logits(x, y.double())
