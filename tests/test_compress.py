"""Smaller models: int8, pruning and distillation beside what they replace, and torch's own."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lessons_lib.compress import (
    Int8Linear,
    calibrate,
    distillation_loss,
    drop_units,
    prune,
    quantize,
    quantize_linears,
    sparsity,
)
from lessons_lib.models import GPT


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- int8 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), [((7,), None), ((), None), ((5, 3), 0), ((5, 3), 1), ((2, 3, 4), -1)])
def test_each_number_is_off_by_at_most_half_a_step_and_the_largest_is_127(shape, dim, dtype):
    x = drawn(*shape, dtype=dtype)
    small = quantize(x, dim)
    assert small.values.dtype == torch.int8 and small.values.shape == x.shape
    assert small.values.abs().max() == 127 and small.values.min() >= -127
    step = small.scale.double()
    rounding = 1e-6 * x.double().abs()
    assert ((small.dequantize().double() - x.double()).abs() <= step / 2 + rounding).all()
    assert small.nbytes == x.numel() + small.scale.numel() * max(4, x.itemsize)
    if dim is not None:
        each = [quantize(part).scale for part in x.unbind(dim)]
        torch.testing.assert_close(small.scale.flatten(), torch.stack(each))


def test_weights_are_the_whole_numbers_that_torch_takes():
    x = drawn(33, 17)
    theirs = torch.quantize_per_tensor(x, (x.abs().max() / 127).item(), 0, torch.qint8)
    assert torch.equal(quantize(x).values, theirs.int_repr())
    scales = x.abs().amax(1) / 127
    theirs = torch.quantize_per_channel(x, scales, torch.zeros(33), 0, torch.qint8)
    assert torch.equal(quantize(x, 0).values, theirs.int_repr())


def test_zeros_tiny_numbers_and_nothing_are_ordinary_and_what_is_not_finite_is_refused():
    assert quantize(torch.zeros(3)).dequantize().tolist() == [0, 0, 0]
    assert quantize(torch.zeros(0)).values.shape == (0,)
    assert [quantize(torch.zeros(0, 4), dim).scale.shape for dim in (0, 1, None)] == [(0, 1), (1, 4), ()]
    assert torch.isfinite(quantize(torch.tensor([1e-45, -1e-45])).dequantize()).all()
    assert quantize(torch.tensor([3.0, -0.5]), largest=1.0).values.tolist() == [127, -64]
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite numbers"):
            quantize(torch.tensor([1.0, wrong]))
    with pytest.raises(TypeError, match=r"x is torch\.int64"):
        quantize(torch.arange(3))


def test_an_int8_layer_of_half_precision_answers_in_it():
    layer, x = nn.Linear(40, 9).bfloat16(), drawn(5, 40).bfloat16()
    for ours in (Int8Linear(layer), Int8Linear(layer, largest_input=4.0)):
        assert ours(x).dtype == torch.bfloat16
        torch.testing.assert_close(ours(x), layer(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_computes_what_its_rounded_weights_do(bias):
    layer, x = nn.Linear(40, 9, bias=bias), drawn(2, 5, 40)
    ours = Int8Linear(layer)
    rounded = quantize(layer.weight.detach(), 0).dequantize()
    torch.testing.assert_close(ours(x), functional.linear(x, rounded, layer.bias))
    both = Int8Linear(layer, largest_input=2.5)
    inputs = quantize(x, largest=2.5).dequantize()
    torch.testing.assert_close(both(x), functional.linear(inputs, rounded, layer.bias))
    assert both(x[:0]).shape == (0, 5, 9)
    assert not list(ours.parameters()) and sum(b.nbytes for b in ours.buffers()) == 360 + 36 + 36 * bias


def test_a_saved_int8_model_is_a_quarter_and_gives_the_same():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    batches = [drawn(8, 64, seed=seed) for seed in range(3)]
    largest = calibrate(net, batches)
    assert largest["0"] == max(batch.abs().max().item() for batch in batches)
    small = quantize_linears(net, largest_inputs=largest)
    again = quantize_linears(net.apply(lambda m: None), largest_inputs=dict.fromkeys(largest, 1.0))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(batches[0]), small(batches[0]))
    size = {each: sum(t.nbytes for t in each.state_dict().values()) for each in (net, small)}
    assert size[small] < 0.3 * size[net]
    assert sum(t.numel() for n, t in small.state_dict().items() if "values" in n) == 64 * 256 + 2560


def test_a_channel_with_large_weights_spoils_one_scale_for_all_and_not_scales_of_their_own():
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 16), drawn(50, 32)
    with torch.no_grad():
        layer.weight[3] *= 1000
    others = torch.arange(16) != 3
    error = {
        per_channel: (Int8Linear(layer, per_channel)(x) - layer(x))[:, others].norm() for per_channel in (True, False)
    }
    assert error[True] < error[False] / 50


def test_calibration_leaves_the_model_as_it_was_and_what_was_not_seen_is_told():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    largest = calibrate(net, [drawn(4, 3)])
    assert net.training and not net[0]._forward_pre_hooks
    assert calibrate(net, [torch.arange(12.0).view(4, 3)], share=0.5)["0"] == 5
    with pytest.raises(ValueError, match="at least one"):
        calibrate(net, [])
    with pytest.raises(ValueError, match=r"has no \['2'\]"):
        quantize_linears(net, largest_inputs={"0": largest["0"]})
    with pytest.raises(ValueError, match=r"skip=\['head'\]"):
        quantize_linears(net, skip=["head"])
    with pytest.raises(TypeError, match="linear is a ReLU"):
        Int8Linear(nn.ReLU())
    assert isinstance(quantize_linears(net[0]), Int8Linear)


def test_a_language_model_keeps_its_tied_table_and_still_answers_alike():
    torch.manual_seed(0)
    model = GPT(30, 32, num_layers=2, num_heads=4, context=16)
    tokens = torch.randint(30, (3, 16))
    small = quantize_linears(model)
    assert isinstance(small.blocks[0].mlp[0], Int8Linear)
    assert small.head.logits.weight is small.embed.tokens.weight
    with torch.no_grad():
        torch.testing.assert_close(small(tokens), model(tokens), atol=0.02, rtol=0)


# --- pruning ----------------------------------------------------------------------------------------------------------


def test_pruning_keeps_the_largest_weights_of_all_layers_together():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 10))
    before = torch.cat([net[0].weight.detach().flatten(), net[2].weight.detach().flatten()])
    biases = [net[0].bias.clone(), net[2].bias.clone()]
    masks = prune(net, 0.9)
    after = torch.cat([net[0].weight.detach().flatten(), net[2].weight.detach().flatten()])
    kept = after != 0
    assert kept.sum() == len(before) - round(0.9 * len(before)) and torch.equal(after[kept], before[kept])
    assert before[kept].abs().min() > before[~kept].abs().max()
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), kept) and list(masks) == [
        "0.weight",
        "2.weight",
    ]
    assert all(torch.equal(a, b) for a, b in zip(biases, [net[0].bias, net[2].bias], strict=True))
    assert sparsity(net) == round(0.9 * len(before)) / (len(before) + 14)


def test_pruning_everything_nothing_and_ties():
    net = nn.Linear(4, 4)
    nn.init.ones_(net.weight)
    assert prune(net, 0)["weight"].all() and prune(net, 0.5)["weight"].sum() == 8
    assert not prune(net, 1)["weight"].any()
    with pytest.raises(ValueError, match=r"share=1.5"):
        prune(net, 1.5)
    with pytest.raises(ValueError, match="nothing to prune"):
        prune(nn.ReLU(), 0.5)


@pytest.mark.parametrize("bias", [True, False])
def test_units_that_do_nothing_go_first_and_the_function_stays(bias):
    torch.manual_seed(0)
    first, second = nn.Linear(6, 8, bias=bias), nn.Linear(8, 3)
    with torch.no_grad():
        second.weight[:, [1, 4, 6]] = 0
        first.weight[1] *= 1e6
    x = drawn(5, 6)
    smaller, after = drop_units(first, second, keep=5)
    assert smaller.weight.shape == (5, 6) and after.weight.shape == (3, 5) and smaller.out_features == 5
    torch.testing.assert_close(after(smaller(x).relu()), second(first(x).relu()))
    assert smaller.weight.requires_grad and first.weight.shape == (8, 6)


def test_scaling_a_unit_up_and_down_does_not_change_which_stay():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 8, bias=False), nn.Linear(8, 3)
    kept = drop_units(first, second, 4)[0].weight
    factors = torch.tensor([100.0, 0.01, 1, 1, 10, 0.1, 1, 1])
    with torch.no_grad():
        first.weight.mul_(factors[:, None])
        second.weight.div_(factors)
    ratio = drop_units(first, second, 4)[0].weight / kept
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    for keep in (0, 9, 2.5):
        with pytest.raises(ValueError, match="keep="):
            drop_units(first, second, keep)


# --- distillation -----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_formula_and_its_gradient_keeps_its_size():
    student, teacher, labels = drawn(4, 5), 2 * drawn(4, 5, seed=1), torch.tensor([0, 1, 4, 2])
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    soft = 9 * (p * (p / q).log()).sum(1).mean()
    hard = functional.cross_entropy(student, labels)
    torch.testing.assert_close(distillation_loss(student, teacher, labels, 3.0, 0.7), 0.7 * soft + 0.3 * hard)
    torch.testing.assert_close(distillation_loss(student, teacher, temperature=3.0, weight=1), soft)
    gradients = []
    for temperature in (20.0, 40.0):
        ours = student.clone().requires_grad_()
        theirs = teacher.clone().requires_grad_()
        distillation_loss(ours, theirs, temperature=temperature, weight=1).backward()
        gradients.append(ours.grad)
        assert theirs.grad is None
    assert 0.9 < gradients[1].norm() / gradients[0].norm() < 1.1


@pytest.mark.parametrize(
    ("options", "words"),
    [({"temperature": 0}, "temperature=0"), ({"weight": 1.5}, "weight=1.5"), ({"labels": None}, "labels=None")],
)
def test_bad_arguments_are_named(options, words):
    settings = {"labels": torch.zeros(2, dtype=torch.long)} | options
    with pytest.raises(ValueError, match=words):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), **settings)
    with pytest.raises(ValueError, match=r"student \(2, 3\), teacher \(2, 4\)"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4), labels=torch.zeros(2, dtype=torch.long))
