"""Pictures rebuilt from gradients, and what batch size, clipping and noise do to them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lessons_lib.data import digits
from lessons_lib.privacy import (
    clipped_sum,
    input_of_linear,
    label_of,
    match_gradients,
    per_sample_gradients,
    picture_distance,
)


def net():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 10)
    return nn.Sequential(*layers).double()


def data(num):
    x, y, _, _ = digits(torch.float64, flat=False)
    return x[:num], y[:num]


def gradient(module, x, y):
    return torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))


@pytest.mark.parametrize("dtype, off", [(torch.float64, 1e-15), (torch.float32, 1.2e-7)])
def test_one_sample_is_read_off_a_linear_layer(dtype, off):
    module, (x, y) = net().to(dtype), data(20)
    for k in range(20):
        weight, bias, _, last = gradient(module, x[k : k + 1].to(dtype), y[k : k + 1])
        assert (input_of_linear(weight, bias) - x[k].flatten().to(dtype)).abs().max() <= off
        assert label_of(last) == y[k]


def test_clipping_hides_nothing_and_a_batch_only_mixes():
    module, (x, y) = net(), data(2)
    clipped = clipped_sum(per_sample_gradients(module, cross_entropy, x[:1], y[:1]), 1e-3)
    found = input_of_linear(clipped["1.weight"], clipped["1.bias"])
    torch.testing.assert_close(found, x[0].flatten(), rtol=0, atol=1e-12)
    weight, bias, *_ = gradient(module, x, y)
    each = per_sample_gradients(module, cross_entropy, x, y)["1.bias"][:, bias.abs().argmax()]
    mixed = (each[:, None] * x.flatten(1)).sum(0) / each.sum()
    torch.testing.assert_close(input_of_linear(weight, bias), mixed, rtol=1e-9, atol=1e-12)


def test_noise_hides_it():
    module, (x, y) = net(), data(1)
    distances = []
    for sigma in (0.0, 1e-3, 1e-2, 1e-1):
        total = clipped_sum(per_sample_gradients(module, cross_entropy, x, y), 1.0)
        noise = torch.Generator().manual_seed(0)
        noisy = {k: g + sigma * torch.randn(g.shape, generator=noise, dtype=g.dtype) for k, g in total.items()}
        found = input_of_linear(noisy["1.weight"], noisy["1.bias"]).clamp(0, 1).view_as(x)
        distances.append(picture_distance(found, x).item())
    assert distances[0] < 1e-12 and distances == sorted(distances) and distances[-1] > 0.25


@pytest.mark.parametrize("by", ["squares", "cosine"])
@pytest.mark.parametrize("num", [1, 2])
def test_matching_gradients_rebuilds_the_pictures(by, num):
    module, (x, y) = net(), data(num)
    seen = gradient(module, x, y)
    found = match_gradients(module, cross_entropy, seen, y, x.shape, by=by, generator=torch.Generator().manual_seed(1))
    assert picture_distance(found.x, x).max() < 1e-3
    assert found.mismatch < 1e-7
    assert all(p.grad is None for p in module.parameters())


def test_a_batch_of_eight_is_not_found_in_as_many_steps():
    module, (x, y) = net(), data(8)
    seen = gradient(module, x, y)
    found = match_gradients(module, cross_entropy, seen, y, x.shape, 20, generator=torch.Generator().manual_seed(1))
    assert picture_distance(found.x.clamp(0, 1), x).mean() > 0.05


def test_what_scales_the_gradient_misleads_squares_and_not_the_cosine():
    module, (x, y) = net(), data(1)
    seen = [g / 10 for g in gradient(module, x, y)]
    squares, cosine = (
        match_gradients(
            module, cross_entropy, seen, y, x.shape, num_steps=30, by=by, generator=torch.Generator().manual_seed(1)
        )
        for by in ("squares", "cosine")
    )
    assert picture_distance(cosine.x, x) < 1e-3 < 0.05 < picture_distance(squares.x, x)


def test_a_wrong_label_and_another_model_rebuild_nothing():
    module, (x, y) = net(), data(1)
    seen, start = gradient(module, x, y), torch.Generator()
    wrong = match_gradients(module, cross_entropy, seen, (y + 1) % 10, x.shape, 20, generator=start.manual_seed(1))
    assert wrong.mismatch > 1e-3
    assert picture_distance(wrong.x, x) > 0.1
    with torch.no_grad():
        module[1].weight += 0.1 * torch.randn(32, 64, dtype=torch.float64, generator=start.manual_seed(2))
    moved = match_gradients(module, cross_entropy, seen, y, x.shape, 20, generator=start.manual_seed(1))
    assert picture_distance(moved.x, x) > 1e-2


def test_distance_finds_the_pairs():
    x, _ = data(5)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert picture_distance(x[order], x).max() == 0
    off = x[order].clone()
    off[0] += 0.1  # of picture 3
    torch.testing.assert_close(picture_distance(off, x), torch.tensor([0, 0, 0, 0.1, 0], dtype=torch.float64))
    grey = picture_distance(torch.full_like(x, 0.3), x)
    assert (grey > 0.2).all() and (grey < 0.5).all()


def test_more_starts_are_no_worse():
    module, (x, y) = net(), data(4)
    seen = gradient(module, x, y)
    one, three = (
        match_gradients(
            module, cross_entropy, seen, y, x.shape, 2, num_starts=starts, generator=torch.Generator().manual_seed(1)
        )
        for starts in (1, 3)
    )
    assert three.mismatch <= one.mismatch


def test_what_cannot_be():
    module, (x, y) = net(), data(1)
    seen = gradient(module, x, y)
    with pytest.raises(ValueError, match="bias_gradient is 0"):
        input_of_linear(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(\(3, 2\), \(2,\)\)"):
        input_of_linear(torch.ones(3, 2), torch.ones(2))
    with pytest.raises(ValueError, match="2 numbers below 0"):
        label_of(torch.tensor([-1.0, -0.5, 1.5]))
    for bad, match in (
        ({"seen": seen[:-1]}, "seen of 3 tensors"),
        ({"by": "angle"}, "by='angle'"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_starts": 0}, "num_starts=0"),
    ):
        arguments = {"seen": seen, "y": y, "shape": x.shape} | bad
        with pytest.raises(ValueError, match=match):
            match_gradients(module, cross_entropy, **arguments)
    with pytest.raises(ValueError, match="one shape is needed"):
        picture_distance(x, torch.cat([x, x]))
