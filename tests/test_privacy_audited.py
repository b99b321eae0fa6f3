"""DP-SGD under attack, run after run: what is achieved stays below the accountant's ε, and mistakes exceed it."""

import pytest
import torch
from torch import nn

from lessons_lib.privacy import (
    DPSGD,
    Accountant,
    epsilon_lower_bound,
    per_sample_gradients,
    poisson_batches,
    threshold_attack,
)

NUM_RUNS, DELTA, MAX_NORM, NUM_OTHERS = 800, 1e-2, 1.0, 9


def product(output, y):
    """A loss whose gradient is the sample itself."""
    return (output * y).sum()


def score(kind, with_it, sigma, rate, num_steps, generator):
    """How far training moved against the sample that shouts: a member's score is low."""
    x = torch.full((NUM_OTHERS + with_it, 1), 0.1)
    x[NUM_OTHERS:] = 1000.0
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    options = {"max_norm": MAX_NORM, "noise_multiplier": sigma, "expected_batch_size": 1.0, "generator": generator}
    private = kind(module, torch.optim.SGD(module.parameters(), lr=1.0), product, **options)
    for drawn in poisson_batches(len(x), rate, num_steps, generator):
        private.step(x[drawn], torch.ones(len(drawn), 1))
    return module.weight.item()


def achieved(kind, sigma=1.0, rate=1.0, num_steps=1):
    generator = torch.Generator().manual_seed(0)
    members, others = (
        [score(kind, with_it, sigma, rate, num_steps, generator) for _ in range(NUM_RUNS)] for with_it in (1, 0)
    )
    return epsilon_lower_bound(threshold_attack(members, others), DELTA)


def promised(sigma=1.0, rate=1.0, num_steps=1):
    accountant = Accountant()
    accountant.step(rate, sigma, num_steps)
    return accountant.epsilon(DELTA)[0]


@pytest.mark.parametrize("run", [{}, {"sigma": 1.0, "rate": 0.5, "num_steps": 3}], ids=["one step", "three, sampled"])
def test_no_attack_achieves_more_than_was_promised(run):
    found = achieved(DPSGD, **run)
    assert 0.3 < found <= promised(**run)


class ClipsTheMean(DPSGD):
    def clipped_sum(self, x, y):
        total = {name: g.sum(0) for name, g in per_sample_gradients(self.module, self.loss, x, y).items()}
        size = max(1, len(x)) * self.max_norm
        return {name: g * min(1.0, size / max(1e-12, float(g.norm()))) for name, g in total.items()}


class ClipsNothing(DPSGD):
    def clipped_sum(self, x, y):
        return {name: g.sum(0) for name, g in per_sample_gradients(self.module, self.loss, x, y).items()}


class NoiseOfOneSample(DPSGD):
    """Divides the noise by the batch size once more, as if it were on the mean already."""

    def noise(self, like):
        return super().noise(like) / (NUM_OTHERS + 1)


@pytest.mark.parametrize("mistake", [ClipsTheMean, ClipsNothing, NoiseOfOneSample])
def test_a_mistaken_dp_sgd_is_found_out(mistake):
    assert achieved(mistake) > promised()
