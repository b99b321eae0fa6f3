"""The models: their parameter counts, shapes and errors."""

import pytest
import torch
from torch import nn

from lessons_lib.models import LeNet, SimpleCNN, linear, mlp, parameter_count


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
