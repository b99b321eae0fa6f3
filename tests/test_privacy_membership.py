"""The bounds of membership attacks beside mechanisms whose ε is known, and mistakes that claim too much."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq
from torch import nn
from torch.nn.functional import cross_entropy

from lessons_lib.data import digits
from lessons_lib.privacy import (
    DPSGD,
    Attack,
    epsilon_from_one_run,
    epsilon_lower_bound,
    poisson_batches,
    threshold_attack,
)
from lessons_lib.privacy.membership import at_least

SEEDS = 200


def gaussian_epsilon(sigma, delta):
    """The exact ε of the Gaussian mechanism of sensitivity 1: Balle and Wang (2018), theorem 8."""

    def delta_of(epsilon):
        parts = stats.norm.cdf([1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma])
        return parts[0] - math.exp(epsilon) * parts[1] - delta

    return brentq(delta_of, 0, 50)


def told_by_noise(rng, num, sigma=1.0):
    return rng.normal(0, sigma, num), rng.normal(1, sigma, num)  # members score low


def told_by_coin(rng, num, epsilon=1.0):
    keep = math.exp(epsilon) / (1 + math.exp(epsilon))
    return (rng.random(num) > keep).astype(float), (rng.random(num) < keep).astype(float)


def point_estimate(attack, delta=0.0):
    ratios = (attack.tpr - delta) / max(attack.fpr, 1e-9), (1 - attack.fpr - delta) / max(1 - attack.tpr, 1e-9)
    return math.log(max(ratios))


def no_delta(attack, delta=0.0):
    return epsilon_lower_bound(attack)


def wrong_ends(attack, delta=0.0):
    tpr, tnr = (
        1 - at_least(num - hits, num, 0.975)
        for hits, num in (
            (attack.true_positives, attack.num_members),
            (attack.num_others - attack.false_positives, attack.num_others),
        )
    )
    return math.log(max((tpr - delta) / (1 - tnr), (tnr - delta) / (1 - tpr)))


def share_above(bound, true, draw, num=400, seeds=SEEDS):
    """In how many of the seeds a bound exceeds the true ε, and the median bound."""
    found = [bound(*draw(np.random.default_rng(seed), num)) for seed in range(seeds)]
    return np.mean(np.array(found) > true), np.median(found)


def sound(members, others):
    return epsilon_lower_bound(threshold_attack(members, others))


def test_the_bound_holds_in_nearly_all_seeds_and_says_something():
    above, median = share_above(sound, 1.0, told_by_coin)
    assert above <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / SEEDS)
    assert 0.4 < median < 1.0
    true = gaussian_epsilon(1.0, 1e-2)
    above, median = share_above(lambda *s: epsilon_lower_bound(threshold_attack(*s), 1e-2), true, told_by_noise)
    assert above <= 0.05
    assert 0.4 < median < true


def test_it_comes_close_with_more_trials():
    few, many = (share_above(sound, 1.0, told_by_coin, num, seeds=20)[1] for num in (200, 20_000))
    assert few < many and 0.9 < many < 1.0


@pytest.mark.parametrize("mistake", [point_estimate, no_delta, wrong_ends])
def test_a_mistaken_bound_claims_too_much(mistake):
    delta, sigma = 0.2, 1.0
    true = gaussian_epsilon(sigma, delta)
    above = share_above(lambda *s: mistake(threshold_attack(*s), delta), true, told_by_noise, seeds=60)[0]
    assert above > 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)
    assert (
        share_above(lambda *s: epsilon_lower_bound(threshold_attack(*s), delta), true, told_by_noise, seeds=60)[0]
        <= 0.05
    )


def test_delta_lowers_the_bound_as_the_definition_says():
    attack = Attack(0.0, 50, 1000, 0, 1000)
    high = 1 - at_least(1000, 1000, 0.975)
    low = at_least(50, 1000, 0.975)
    assert epsilon_lower_bound(attack) == pytest.approx(math.log(low / high))
    assert epsilon_lower_bound(attack, delta=0.02) == pytest.approx(math.log((low - 0.02) / high))
    assert epsilon_lower_bound(attack, delta=0.9) == 0.0
    assert epsilon_lower_bound(Attack(0.0, 950, 1000, 1000, 1000)) == 0.0  # nothing but "member": no attack


def test_at_least_is_clopper_and_pearsons():
    for successes, trials in ((0, 10), (3, 10), (10, 10), (137, 1000)):
        expected = stats.binomtest(successes, trials).proportion_ci(0.9, "exact").low
        assert at_least(successes, trials, 0.95) == pytest.approx(expected, abs=1e-12)


def test_one_run_is_enough_for_many_coins():
    found = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        keep = rng.random(1000) < math.e / (1 + math.e)  # each sample's membership told with ε = 1
        found.append(epsilon_from_one_run(int(keep.sum()), 1000))
    assert np.mean(np.array(found) > 1.0) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / SEEDS)
    assert 0.8 < np.median(found) < 1.0
    assert epsilon_from_one_run(0, 10) == epsilon_from_one_run(5, 10) == 0.0


def test_the_threshold_is_judged_on_scores_it_has_not_seen():
    attack = threshold_attack([0.1, 0.9, 0.2, 0.8], [0.5, 0.1, 0.6, 0.1])
    assert attack == Attack(0.2, 0, 2, 2, 2)
    assert (attack.tpr, attack.fpr) == (0.0, 1.0)


def trained(private):
    """A net that knows 150 digits by heart, or one that has learned from them in private; scores of both halves."""
    x, y, _, _ = digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    inside, outside = slice(0, 150), slice(150, 300)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    if private:
        step = DPSGD(net, optimizer, cross_entropy, max_norm=0.5, noise_multiplier=4.0, expected_batch_size=75).step
        for drawn in poisson_batches(150, 0.5, 60):
            step(x[inside][drawn], y[inside][drawn])
    else:
        wrong = torch.randint(0, 10, (300,))
        y = torch.where(torch.rand(300) < 0.5, wrong, y[:300])  # half the labels cannot be learned, only remembered
        for _ in range(150):
            optimizer.zero_grad()
            cross_entropy(net(x[inside]), y[inside]).backward()
            optimizer.step()
    with torch.no_grad():
        return [cross_entropy(net(x[part]), y[:300][part], reduction="none") for part in (inside, outside)]


def test_what_is_known_by_heart_is_found_and_what_was_learned_in_private_is_not():
    by_heart = threshold_attack(*trained(private=False))
    assert by_heart.tpr - by_heart.fpr > 0.4
    in_private = threshold_attack(*trained(private=True))
    assert abs(in_private.tpr - in_private.fpr) < 0.25
    assert epsilon_lower_bound(in_private) < 0.3 < epsilon_lower_bound(by_heart)


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"members of shape \(1,\)"):
        threshold_attack([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="others"):
        threshold_attack([1.0, 2.0], [1.0, math.nan])
    attack = Attack(0.0, 5, 10, 5, 10)
    with pytest.raises(ValueError, match="delta=1"):
        epsilon_lower_bound(attack, delta=1)
    with pytest.raises(ValueError, match="confidence=1"):
        epsilon_from_one_run(1, 2, confidence=1)
    with pytest.raises(ValueError, match="successes=3 of trials=2"):
        at_least(3, 2, 0.95)
    with pytest.raises(ValueError, match="trials=0"):
        epsilon_from_one_run(0, 0)
