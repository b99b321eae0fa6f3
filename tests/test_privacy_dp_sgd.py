"""DP-SGD beside a loop of single backward passes, its noise and its draws as distributions, and on several ranks."""

import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from lessons_lib import launch
from lessons_lib.data import digits
from lessons_lib.models import GPT, SimpleCNN
from lessons_lib.privacy import DPSGD, clipped_sum, norms, per_sample_gradients, poisson_batches


def mlp(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 10)).to(dtype)


def batch(num=12, dtype=torch.float64, flat=True):
    x, y, _, _ = digits(dtype, flat=flat)
    return x[:num], y[:num]


def by_loop(module, loss, x, y):
    """One backward pass per sample."""
    rows = {name: [] for name, p in module.named_parameters() if p.requires_grad}
    for k in range(len(x)):
        moving = [p for p in module.parameters() if p.requires_grad]
        for name, g in zip(rows, torch.autograd.grad(loss(module(x[k : k + 1]), y[k : k + 1]), moving), strict=True):
            rows[name].append(g)
    return {name: torch.stack(each) for name, each in rows.items()}


def next_token(logits, y):
    return cross_entropy(logits.flatten(0, -2), y.flatten())


def assert_alike(found, expected, atol=1e-13):
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=atol)


def test_per_sample_gradients_equal_a_loop():
    x, y = batch()
    assert_alike(per_sample_gradients(mlp(), cross_entropy, x, y), by_loop(mlp(), cross_entropy, x, y))


def test_also_of_convolutions_of_tied_weights_and_with_frozen_parameters():
    x, y = batch(5, flat=False)
    cnn = SimpleCNN(size=8).double()
    assert_alike(per_sample_gradients(cnn, cross_entropy, x, y), by_loop(cnn, cross_entropy, x, y), 1e-11)
    gpt = GPT(vocabulary=11, width=8, num_layers=2, num_heads=2, context=6).double()
    tokens = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(0))
    x, y = tokens[:, :-1], tokens[:, 1:]
    assert_alike(per_sample_gradients(gpt, next_token, x, y), by_loop(gpt, next_token, x, y), 1e-11)
    frozen = mlp()
    frozen[0].weight.requires_grad_(False)
    x, y = batch()
    found = per_sample_gradients(frozen, cross_entropy, x, y)
    assert_alike(found, by_loop(frozen, cross_entropy, x, y))
    assert "0.weight" not in found


def test_the_module_is_left_alone_and_dropout_draws_for_each_sample():
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 10))
    x, y = torch.ones(6, 64), torch.zeros(6, dtype=torch.long)
    found = per_sample_gradients(module, cross_entropy, x, y)
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert len({tuple(row.tolist()) for row in (found["1.weight"][:, 1] != 0)}) == 6


def clip_the_mean(gradients, max_norm):
    mean = {name: g.mean(0) for name, g in gradients.items()}
    size = torch.linalg.vector_norm(torch.cat([g.flatten() for g in mean.values()]))
    num = len(next(iter(gradients.values())))
    return {name: num * g * (max_norm / size).clamp(max=1) for name, g in mean.items()}


def clip_each_layer(gradients, max_norm):
    return {name: clipped_sum({name: g}, max_norm)[name] for name, g in gradients.items()}


def clip_after_adding(gradients, max_norm):
    return clipped_sum({name: g.sum(0, keepdim=True) for name, g in gradients.items()}, max_norm)


def no_clip(gradients, max_norm):
    return {name: g.sum(0) for name, g in gradients.items()}


def check_moves_by_at_most_c(clip, max_norm=0.5):
    """One sample more moves the sum by C at most, even one that shouts; and the sum is that of a loop."""
    x, y = batch()
    loud = torch.cat([x, 1e4 * x[:1]]), torch.cat([y, (y[:1] + 1) % 10])
    module = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    without, with_it = (clip(per_sample_gradients(module, cross_entropy, *data), max_norm) for data in ((x, y), loud))
    moved = torch.cat([(with_it[name] - without[name]).flatten() for name in without])
    assert torch.linalg.vector_norm(moved) <= max_norm * (1 + 1e-12)
    expected = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    rows = by_loop(module, cross_entropy, x, y)
    for k in range(len(x)):
        own = {name: g[k] for name, g in rows.items()}
        size = math.sqrt(sum(float((g**2).sum()) for g in own.values()))
        for name, g in own.items():
            expected[name] += g * min(1.0, max_norm / size)
    assert_alike(without, expected)


def test_one_sample_moves_the_clipped_sum_by_c_at_most():
    check_moves_by_at_most_c(clipped_sum)


@pytest.mark.parametrize("mistake", [clip_the_mean, clip_each_layer, clip_after_adding, no_clip])
def test_a_mistaken_clip_is_rejected(mistake):
    with pytest.raises(AssertionError):
        check_moves_by_at_most_c(mistake)


def test_norms_and_what_is_small_stays():
    gradients = {"w": torch.tensor([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0]]), "b": torch.tensor([4.0, 0.4, 0.0])}
    torch.testing.assert_close(norms(gradients), torch.tensor([5.0, 0.5, 0.0]))
    found = clipped_sum(gradients, 1.0)
    torch.testing.assert_close(found["w"], torch.tensor([0.6 + 0.3, 0.0]))
    torch.testing.assert_close(found["b"], torch.tensor(0.8 + 0.4))


# --- a step ----------------------------------------------------------------------------------------------------------


def private(module, **options):
    options = {"max_norm": 0.5, "noise_multiplier": 0.0, "expected_batch_size": 8} | options
    return DPSGD(module, torch.optim.SGD(module.parameters(), lr=1.0), cross_entropy, **options)


def moved(module, before):
    return torch.cat([(old - p).detach().flatten() for old, p in zip(before, module.parameters(), strict=True)])


def step_of(options, num, kind=DPSGD):
    module, (x, y) = mlp(), batch(num)
    before = [p.detach().clone() for p in module.parameters()]
    kind(
        module,
        torch.optim.SGD(module.parameters(), lr=1.0),
        cross_entropy,
        **{"max_norm": 0.5, "noise_multiplier": 0.0, "expected_batch_size": 8} | options,
    ).step(x, y)
    return moved(module, before)


def check_divides_by_what_is_expected(kind):
    """Twelve drawn where eight are expected: the step is the sum over eight."""
    x, y = batch(12)
    total = clipped_sum(per_sample_gradients(mlp(), cross_entropy, x, y), 0.5)
    expected = torch.cat([g.flatten() for g in total.values()]) / 8
    torch.testing.assert_close(step_of({}, 12, kind=kind), expected, rtol=1e-9, atol=1e-12)


class DividesByWhatWasDrawn(DPSGD):
    def step(self, x, y):
        self.expected_batch_size = len(x)
        super().step(x, y)


def test_a_step_divides_by_the_expected_batch_size():
    check_divides_by_what_is_expected(DPSGD)
    with pytest.raises(AssertionError):
        check_divides_by_what_is_expected(DividesByWhatWasDrawn)


def test_without_clipping_and_noise_it_is_sgd_of_the_mean_also_in_chunks():
    x, y = batch(8)
    module = mlp()
    expected = torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))
    expected = torch.cat([g.flatten() for g in expected])
    for options in ({}, {"chunk_size": 3}, {"chunk_size": 100}):
        found = step_of({"max_norm": 1e6, **options}, 8)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_an_empty_draw_is_a_step_of_noise():
    found = step_of({"noise_multiplier": 2.0, "generator": torch.Generator().manual_seed(5)}, 0)
    noise = torch.randn(len(found), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, 2.0 * 0.5 * noise / 8, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_it_trains_with_any_optimiser(make):
    x, y, x_test, y_test = digits()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = make(module.parameters(), lr=0.5 if make is torch.optim.SGD else 0.01)
    trained = DPSGD(module, optimizer, cross_entropy, max_norm=1.0, noise_multiplier=1.0, expected_batch_size=128)
    for drawn in poisson_batches(len(x), 128 / len(x), 60):
        trained.step(x[drawn], y[drawn])
    assert trained.num_steps == 60
    assert (module(x_test).argmax(1) == y_test).float().mean() > 0.75


# --- draws -----------------------------------------------------------------------------------------------------------


def check_poisson(make, num=200, q=0.1, steps=4000):
    """Sizes are binomial, every sample comes equally often, and two samples come together as often as chance has it."""
    drawn = torch.zeros(steps, num)
    for row, indices in zip(drawn, make(num, q, steps, torch.Generator().manual_seed(0)), strict=True):
        assert len(indices) == len(set(indices.tolist()))
        row[indices] = 1
    sizes = drawn.sum(1)
    assert abs(sizes.mean() - q * num) < 5 * math.sqrt(num * q * (1 - q) / steps)
    assert 0.9 < sizes.var() / (num * q * (1 - q)) < 1.1
    z = (drawn.mean(0) - q) / math.sqrt(q * (1 - q) / steps)
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4


def fixed_size(num, q, steps, generator):
    return (torch.randperm(num, generator=generator)[: round(q * num)] for _ in range(steps))


def shuffled(num, q, steps, generator):
    size = round(q * num)
    order = torch.cat([torch.randperm(num, generator=generator) for _ in range(steps * size // num + 1)])
    return (order[k * size : (k + 1) * size] for k in range(steps))


def test_poisson_batches_are_drawn_one_by_one():
    check_poisson(poisson_batches)
    for mistake in (fixed_size, shuffled):
        with pytest.raises(AssertionError):
            check_poisson(mistake)


def test_the_ends_of_poisson_batches():
    assert [len(drawn) for drawn in poisson_batches(5, 0.0, 3)] == [0, 0, 0]
    assert [drawn.tolist() for drawn in poisson_batches(3, 1.0, 2)] == [[0, 1, 2]] * 2
    assert list(poisson_batches(5, 0.5, 0)) == []


# --- ranks -----------------------------------------------------------------------------------------------------------


def noises(comm, kind, num_steps):
    """What 2 · 200 · num_steps numbers of noise are, after they were added over the ranks."""
    module = nn.Linear(200, 2, bias=False, dtype=torch.float64)
    nn.init.zeros_(module.weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    options = {"max_norm": 0.5, "noise_multiplier": 3.0, "expected_batch_size": 1}
    trained = kind(module, optimizer, cross_entropy, **options, num_ranks=comm.world_size, all_reduce=comm.all_reduce)
    seen, none = [], (torch.zeros(0, 200, dtype=torch.float64), torch.zeros(0, dtype=torch.long))
    for _ in range(num_steps):
        before = [p.detach().clone() for p in module.parameters()]
        trained.step(*none)
        seen.append(moved(module, before))
    return torch.cat(seen)


class NoiseOfEveryRank(DPSGD):
    def noise(self, like):
        return super().noise(like) * math.sqrt(self.num_ranks)


class NoiseDividedByRanks(DPSGD):
    def noise(self, like):
        return super().noise(like) / math.sqrt(self.num_ranks)


class TheSameNoiseOnEveryRank(DPSGD):
    def noise(self, like):
        self.generator = torch.Generator().manual_seed(self.num_steps)
        return super().noise(like)


def check_noise_is_that_of_one_process(kind, ranks=3):
    torch.manual_seed(3)
    results = launch(noises, kind, 20, world_size=ranks)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert stats.kstest((results[0] / (3.0 * 0.5)).numpy(), "norm").pvalue > 1e-3


def test_ranks_together_make_the_noise_of_one_process():
    check_noise_is_that_of_one_process(DPSGD)


@pytest.mark.parametrize("mistake", [NoiseOfEveryRank, NoiseDividedByRanks, TheSameNoiseOnEveryRank])
def test_mistaken_noise_on_ranks_is_rejected(mistake):
    with pytest.raises(AssertionError):
        check_noise_is_that_of_one_process(mistake)


def sum_over_ranks(comm):
    x, y = batch(13)
    own, module = slice(comm.rank, None, comm.world_size), mlp()
    trained = private(module, expected_batch_size=13, num_ranks=comm.world_size, all_reduce=comm.all_reduce)
    for _ in range(3):
        trained.step(x[own], y[own])
    return [p.detach() for p in module.parameters()]


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_the_sum_of_clipped_gradients_over_ranks_is_that_of_one_process(transport):
    alone, (x, y) = mlp(), batch(13)
    trained = private(alone, expected_batch_size=13)
    for _ in range(3):
        trained.step(x, y)
    results = launch(sum_over_ranks, world_size=3, transport=transport)
    for parameters in results:
        for found, expected in zip(parameters, alone.parameters(), strict=True):
            torch.testing.assert_close(found, expected.detach(), rtol=1e-11, atol=1e-13)


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(64), nn.SyncBatchNorm(64), nn.InstanceNorm1d(64, track_running_stats=True)]
)
def test_a_module_in_which_samples_meet_is_refused(layer):
    module, (x, y) = nn.Sequential(nn.Sequential(layer), nn.Linear(64, 10)), batch()
    with pytest.raises(ValueError, match=rf"module\.0\.0 is a {type(layer).__name__}, in which samples share"):
        private(module)
    with pytest.raises(ValueError, match="such as GroupNorm or LayerNorm"):
        per_sample_gradients(module, cross_entropy, x, y)


def test_what_cannot_be():
    x, y = batch()
    for options, match in (
        ({"max_norm": 0}, "max_norm=0: a finite number above 0"),
        ({"max_norm": math.inf}, "max_norm=inf"),
        ({"noise_multiplier": -1}, "noise_multiplier=-1: a finite number of at least 0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"expected_batch_size": 0}, "expected_batch_size=0"),
        ({"num_ranks": 2}, "num_ranks=2, all_reduce=None"),
        ({"num_ranks": 0}, "num_ranks=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
    ):
        with pytest.raises(ValueError, match=match):
            private(mlp(), **options)
    with pytest.raises(ValueError, match="x of 12 samples, y of 11"):
        per_sample_gradients(mlp(), cross_entropy, x, y[:11])
    with pytest.raises(ValueError, match="at least one parameter"):
        per_sample_gradients(mlp().requires_grad_(False), cross_entropy, x, y)
    with pytest.raises(ValueError, match="max_norm=-1"):
        clipped_sum({"w": torch.ones(2, 3)}, -1)
    with pytest.raises(ValueError, match=r"gradients\['w'\] is torch.bfloat16"):
        clipped_sum({"w": torch.ones(2, 3, dtype=torch.bfloat16)}, 1.0)
    with pytest.raises(RuntimeError, match="sample 1 has norm inf"):
        clipped_sum({"w": torch.tensor([[1.0], [math.inf]])}, 1.0)
    with pytest.raises(ValueError, match=r"sample_rate=1\.5"):
        poisson_batches(5, 1.5, 1)
    with pytest.raises(ValueError, match="num_samples=0"):
        poisson_batches(0, 0.5, 1)
