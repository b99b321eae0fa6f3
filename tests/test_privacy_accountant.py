"""The accountant beside dp-accounting, numbers that were published, the integral itself, and a tighter method."""

import logging
import math

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from lessons_lib.privacy import ORDERS, Accountant, epsilon, sampled_gaussian_rdp, sigma_for, to_epsilon

WHOLE = range(2, 257)
SOME = (*range(2, 33), 64, 256, 1024)
MNIST = {"sample_rate": 256 / 60000, "noise_multiplier": 1.1, "steps": 60 * 60000 // 256, "delta": 1e-5}


def theirs(accountant, q, sigma, steps):
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of orders whose series does not converge
    return accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma)), steps)


@pytest.mark.parametrize("q", [0.0, 1e-4, 256 / 60000, 0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("sigma", [0.5, 1.1, 5.0, 20.0])
def test_whole_orders_equal_dp_accounting(q, sigma):
    rdp = [sampled_gaussian_rdp(q, sigma, order) for order in SOME]
    np.testing.assert_allclose(rdp, theirs(RdpAccountant(list(SOME)), q, sigma, 1).rdp, rtol=1e-8, atol=1e-15)
    for steps in (1, 100, 10_000):
        other = theirs(RdpAccountant(list(SOME)), q, sigma, steps)
        for delta in (1e-3, 1e-5, 1e-8):
            ours = epsilon(q, sigma, steps, delta, orders=SOME)
            assert ours == pytest.approx(other.get_epsilon(delta), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "q, sigma, order", [(0.05, 0.5, 1.1), (0.3, 0.1, 1.5), (0.004, 1.1, 1.3), (0.9, 20.0, 2.5), (0.05, 0.12, 2.5)]
)
def test_orders_between_equal_the_integral(q, sigma, order):
    with mpmath.workdps(40):
        a = mpmath.quad(
            lambda z: mpmath.npdf(z, 0, sigma) * (1 - q + q * mpmath.exp((2 * z - 1) / (2 * sigma**2))) ** order,
            [-15 * sigma, *(k / 4 for k in range(int(4 * order) + 5)), order + 1 + 15 * sigma],
        )
        expected = float(mpmath.log(a)) / (order - 1)
    assert sampled_gaussian_rdp(q, sigma, order) == pytest.approx(expected, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("q, sigma", [(1e-3, 0.005), (0.02, 0.3), (0.05, 1.1), (0.4, 3.0), (0.999, 2.0)])
def test_rdp_grows_with_the_order(q, sigma):
    rdp = np.array([sampled_gaussian_rdp(q, sigma, order) for order in ORDERS])
    assert (np.diff(rdp) >= -1e-14).all()
    assert (rdp <= np.array(ORDERS) / (2 * sigma**2) * (1 + 1e-12)).all()  # sampling can only hide


@pytest.mark.parametrize(
    "q, sigma, steps", [(0.01, 1.0, 300), (0.05, 0.8, 100), (0.3, 5.0, 100), (256 / 60000, 1.1, 14062)]
)
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_all_orders_lie_between_two_accountants_of_others(q, sigma, steps, delta):
    ours, classic = (epsilon(q, sigma, steps, delta, conversion=name) for name in ("tight", "classic"))
    assert ours <= theirs(RdpAccountant(list(ORDERS)), q, sigma, steps).get_epsilon(delta) + 1e-9
    tightest = theirs(PLDAccountant(), q, sigma, steps).get_epsilon(delta)
    assert tightest <= ours < classic < 2.2 * tightest


def test_what_was_published():
    assert epsilon(**MNIST, conversion="classic") == pytest.approx(3.01, abs=0.005)
    assert epsilon(**MNIST) == pytest.approx(2.60, abs=0.005)


def test_few_orders_give_too_large_an_epsilon():
    # Opacus' compute_dp_sgd_privacy.py shows 2.39 for this call
    run = {"sample_rate": 0.01, "noise_multiplier": 1.0, "steps": 300, "delta": 1e-5}
    assert epsilon(**run, orders=(2, 5, 10, 20, 100)) == pytest.approx(2.39, abs=0.005)
    assert epsilon(**run, orders=WHOLE) == pytest.approx(1.48, abs=0.005)


def test_steps_of_several_kinds_add_up_and_name_their_order():
    mixed = Accountant(WHOLE)
    mixed.step(0.01, 1.0, 100)
    mixed.step(0.02, 2.0, 50)
    other = theirs(theirs(RdpAccountant(list(WHOLE)), 0.01, 1.0, 100), 0.02, 2.0, 50)
    assert mixed.epsilon(1e-5) == pytest.approx(other.get_epsilon_and_optimal_order(1e-5), rel=1e-9)
    before = mixed.rdp.copy()
    mixed.step(0.5, 0.1, 0)
    np.testing.assert_array_equal(mixed.rdp, before)
    assert Accountant().epsilon(1e-5)[0] == 0.0


@pytest.mark.parametrize("target", [0.5, 2.0, 8.0])
def test_sigma_for_is_the_smallest_that_keeps_the_promise(target):
    sigma = sigma_for(target, 0.02, 1000, 1e-5)
    assert epsilon(0.02, sigma, 1000, 1e-5) <= target < epsilon(0.02, sigma - 2e-4, 1000, 1e-5)


def test_edges():
    assert sampled_gaussian_rdp(0, 0.0, 2) == 0.0
    assert sampled_gaussian_rdp(0.1, 0.0, 2) == epsilon(0.1, 0.0, 1, 1e-5) == math.inf
    assert sampled_gaussian_rdp(1, 2.0, 3) == 3 / 8
    tiny = sampled_gaussian_rdp(1e-9, 1.0, 2)
    assert tiny == pytest.approx(
        1e-18 * math.expm1(1), rel=1e-9
    )  # 1 + 1e-18 is 1: taken as it stands, all would be lost
    assert sampled_gaussian_rdp(0.5, 0.001, 1024) == pytest.approx(1024 / 2e-6, rel=1e-3)
    assert 0 < sampled_gaussian_rdp(0.5, 1e-4, 1.5) <= 1.5 / 2e-8


def no_sampling(q, sigma, order):
    return order / (2 * sigma**2)


def rdp_times_q(q, sigma, order):
    return q * order / (2 * sigma**2)


def rdp_times_q_squared(q, sigma, order):
    """What Abadi et al. give for small q and large σ, taken for all."""
    return q**2 * order / sigma**2 / 2


@pytest.mark.parametrize("mistake", [no_sampling, rdp_times_q, rdp_times_q_squared])
def test_a_mistaken_accountant_is_told_from_dp_accounting(mistake):
    rdp = [mistake(0.05, 1.1, order) for order in WHOLE]
    other = theirs(RdpAccountant(list(WHOLE)), 0.05, 1.1, 1).rdp
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(rdp, other, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: Accountant([]), "orders=.*at least one"),
        (lambda: Accountant([1, 2]), "above 1"),
        (lambda: Accountant([2, math.inf]), "finite"),
        (lambda: Accountant().step(1.5, 1.0), "sample_rate=1.5: a probability"),
        (lambda: Accountant().step(0.1, -1.0), "noise_multiplier=-1.0"),
        (lambda: Accountant().step(0.1, math.nan), "noise_multiplier=nan"),
        (lambda: Accountant().step(0.1, 1.0, 2.5), "steps=2.5"),
        (lambda: sampled_gaussian_rdp(0.1, 1.0, 1.0), "order=1.0"),
        (lambda: Accountant().epsilon(0), "delta=0: a number above 0"),
        (lambda: Accountant().epsilon(1.0), "delta=1.0"),
        (lambda: to_epsilon(1.0, 2, 1e-5, "best"), "conversion='best'"),
        (lambda: sigma_for(0, 0.1, 10, 1e-5), "target_epsilon=0"),
        (lambda: sigma_for(1.0, 0.1, 10, 1e-5, tolerance=0), "tolerance=0"),
        (lambda: sigma_for(0.5, 0.1, 10, 1e-5, orders=(2,), conversion="classic"), "not shown by these orders"),
    ],
)
def test_what_cannot_be(call, match):
    with pytest.raises(ValueError, match=match):
        call()
