"""The models: their parameter counts, shapes and errors."""

import pytest
import torch
from torch import nn

from lessons_lib.models import GPT, LeNet, MixtureOfExperts, SimpleCNN, linear, mlp, parameter_count


@pytest.mark.parametrize(
    "model, count",
    [
        (linear(64), 65),
        (linear(64, 10), 650),
        (mlp([784, 100, 10]), 79_510),
        (mlp([784, 128, 10]), 101_770),
        (LeNet(), 61_706),
        (LeNet(size=28), 61_706),
        (SimpleCNN(), 2_770_634),
        (SimpleCNN(size=8, num_classes=3), 320 + (32 * 36 + 1) * 128 + 129 * 3),
    ],
)
def test_parameter_count(model, count):
    assert parameter_count(model) == count


def test_parameter_count_of_shared_and_frozen_parameters():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, layer, nn.Linear(3, 1), nn.BatchNorm1d(1))
    assert parameter_count(model) == 12 + 4 + 2
    layer.weight.requires_grad_(False)
    assert parameter_count(model, trainable_only=True) == 3 + 4 + 2


@pytest.mark.parametrize(
    "model, shape, outputs",
    [
        (linear(4, 2), (5, 4), 2),
        (mlp([784, 20, 10]), (5, 1, 28, 28), 10),
        (mlp([784, 20, 10], activation=nn.Tanh), (5, 784), 10),
        (LeNet(), (5, 1, 32, 32), 10),
        (LeNet(28, num_classes=7), (5, 1, 28, 28), 7),
        (SimpleCNN(), (5, 1, 28, 28), 10),
        (SimpleCNN(8), (0, 1, 8, 8), 10),
    ],
)
def test_shapes_and_gradients(model, shape, outputs):
    out = model(torch.randn(shape))
    assert out.shape == (shape[0], outputs)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_mlp_has_activations_between_linear_layers_only():
    kinds = [type(layer) for layer in mlp([8, 6, 4, 2], nn.Tanh)]
    assert kinds == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]


def test_lenet_layers_have_the_papers_shapes():
    shapes, x = {}, torch.zeros(1, 1, 32, 32)
    for name, layer in LeNet().named_children():
        x = layer(x)
        shapes[name] = tuple(x.shape[1:])
    assert shapes["c1"] == (6, 28, 28) and shapes["s2"] == (6, 14, 14)
    assert shapes["c3"] == (16, 10, 10) and shapes["s4"] == (16, 5, 5)
    assert shapes["c5"] == (120, 1, 1) and shapes["f6"] == (84,)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: linear(0), "num_features"),
        (lambda: mlp([10]), r"sizes=\[10\]: a list of at least two whole numbers"),
        (lambda: mlp([10, 0]), "sizes"),
        (lambda: LeNet(30), "size=30: 28 or 32 is needed"),
        (lambda: SimpleCNN(2), "size=2: a whole number of at least 3 is needed"),
        (lambda: LeNet()(torch.zeros(2, 1, 28, 28)), r"LeNet\(size=32\) takes .* not \(2, 1, 28, 28\)"),
        (lambda: SimpleCNN()(torch.zeros(2, 784)), r"not \(2, 784\)"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_experts_compute_the_weighted_sum_over_the_chosen_ones():
    torch.manual_seed(0)
    layer = MixtureOfExperts(8, num_experts=5, top_k=2).double()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    for token, out in zip(x.flatten(0, 1), layer(x).flatten(0, 1), strict=True):
        scores, chosen = layer.router(token).topk(2)
        expected = sum(w * layer.experts[e](token) for w, e in zip(scores.softmax(0), chosen.tolist(), strict=True))
        torch.testing.assert_close(out, expected)
    with pytest.raises(ValueError, match="top_k=6: at most num_experts=5"):
        MixtureOfExperts(8, 5, top_k=6)


def test_gpt_is_causal_counts_its_table_once_and_refuses_what_does_not_fit():
    torch.manual_seed(0)
    model = GPT(31, 16, num_layers=6, num_heads=2, context=8, num_experts=3).double()
    x = torch.randint(31, (2, 8))
    changed = x.clone()
    changed[:, 5:] = 0
    torch.testing.assert_close(model(x)[:, :5], model(changed)[:, :5])
    assert model.head.logits.weight is model.embed.tokens.weight
    with pytest.raises(ValueError, match="num_heads=3: a divisor of width=16"):
        GPT(31, 16, 1, 3, 8)
    with pytest.raises(ValueError, match="tokens has 9 positions: at most 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (2, 2), (5, 2)])
def test_gpt_sends_each_token_to_two_experts_or_to_the_only_one(num_experts, top_k):
    model = GPT(31, 16, num_layers=2, num_heads=2, context=8, num_experts=num_experts)
    assert [block.mlp.top_k for block in model.blocks] == [top_k, top_k]
    model(torch.randint(31, (2, 8))).sum().backward()
    with pytest.raises(ValueError, match="num_experts=-1: a whole number of at least 0"):
        GPT(31, 16, 1, 2, 8, num_experts=-1)
