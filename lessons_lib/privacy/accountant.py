"""What training with noise has given away so far: the RDP accountant of the sampled Gaussian mechanism (lesson 25)."""

import math

import numpy as np

from ..errors import check_whole

ORDERS = (*(1 + k / 10 for k in range(1, 100)), *range(11, 65), 80, 96, 128, 192, 256, 512, 1024)


class Accountant:
    """Adds up Rényi differential privacy step by step, and says what it comes to as (ε, δ).

    A mechanism has RDP (α, r) if the Rényi divergence of order α between what it gives with a sample and without it is
    at most r. Of mechanisms that follow each other, the r of an order add up (Mironov 2017, proposition 1).

    Args:
        orders: the orders α to keep, each above 1. The answer is right for any, and the smaller the more there are.

    Attributes:
        orders: a tuple of them.
        rdp: r of each order so far, a NumPy array of float64.

    Raises:
        ValueError: no order, or one that is not above 1.
    """

    def __init__(self, orders=ORDERS):
        self.orders = tuple(orders)
        if not self.orders or not all(1 < order < math.inf for order in self.orders):
            raise ValueError(f"orders={orders!r}: at least one is needed, each finite and above 1")
        self.rdp = np.zeros(len(self.orders))

    def step(self, sample_rate, noise_multiplier, steps=1):
        """Count `steps` steps of DP-SGD.

        Args:
            sample_rate: q, the probability with which each sample is in a step, from 0 to 1, independently of others.
            noise_multiplier: σ, the noise's standard deviation divided by the norm that a sample's gradient may have.
            steps: how many.

        Raises:
            ValueError: an argument is out of range.
        """
        check_whole("steps", steps, 0)
        one = [sampled_gaussian_rdp(sample_rate, noise_multiplier, order) for order in self.orders]
        if steps:
            self.rdp = self.rdp + steps * np.array(one)

    def epsilon(self, delta, conversion="tight"):
        """The smallest ε so that all steps together are (ε, δ)-differentially private, as far as these orders tell.

        Args:
            delta: δ, above 0 and below 1; well below 1 / number of samples.
            conversion: from RDP, see `to_epsilon`.

        Returns:
            (ε, the order α that gave it).

        Raises:
            ValueError: an argument is out of range.
        """
        found = [to_epsilon(r, order, delta, conversion) for r, order in zip(self.rdp, self.orders, strict=True)]
        best = int(np.argmin(found))
        return found[best], self.orders[best]


def sampled_gaussian_rdp(sample_rate, noise_multiplier, order):
    """RDP of one step that takes each sample with probability q and adds noise σ to a sum of parts of norm at most 1.

        r(α) = log A(α) / (α − 1),   A(α) = E over z ~ N(0, σ²) of (1 − q + q exp((2z − 1) / (2σ²)))^α

    for neighbours that differ by one sample. For whole α, A is a sum of α + 1 terms (§3.3; what adds up to 1 is taken
    out first, so that no digits are lost); else the integral is summed on a grid.

    Args:
        sample_rate: q, from 0 to 1.
        noise_multiplier: σ, at least 0.
        order: α, above 1.

    Returns:
        r, at least 0; infinite without noise.

    Raises:
        ValueError: an argument is out of range.

    Source: Mironov, Talwar and Zhang, Rényi Differential Privacy of the Sampled Gaussian Mechanism (2019), theorem 4,
    §3.3.
    """
    q, sigma, alpha = _check(sample_rate, noise_multiplier, order)
    if q == 0:
        return 0.0
    if sigma == 0:
        return math.inf
    without_sampling = alpha / (2 * sigma**2)
    return without_sampling if q == 1 else min(max(0.0, _log_a(q, sigma, alpha) / (alpha - 1)), without_sampling)


def _log_a(q, sigma, alpha):
    if alpha == int(alpha):
        return _log_a_whole(q, sigma, int(alpha))
    if sigma >= 0.01:
        return _log_a_by_grid(q, sigma, alpha)
    below = int(alpha)  # the grid would be endless; log A is convex in α, so that this is a bound
    at_below = _log_a_whole(q, sigma, below) if below > 1 else 0.0
    return at_below + (alpha - below) * (_log_a_whole(q, sigma, below + 1) - at_below)


def _log_a_whole(q, sigma, alpha):
    """log Σ_k C(α, k) (1 − q)^(α−k) q^k exp((k² − k) / 2σ²): binomial weights, whose sum is 1, times exp(exponent)."""
    k = np.arange(2, alpha + 1)  # the exponent of k = 0 and 1 is 0
    log_choose = math.lgamma(alpha + 1) - np.array([math.lgamma(i + 1) + math.lgamma(alpha - i + 1) for i in k])
    exponent = k * (k - 1) / (2 * sigma**2)
    log_expm1 = exponent + np.log(-np.expm1(-exponent))
    log_above_1 = np.logaddexp.reduce(log_choose + (alpha - k) * math.log1p(-q) + k * math.log(q) + log_expm1)
    return float(np.logaddexp(0, log_above_1))


def _log_a_by_grid(q, sigma, alpha):
    """log A by the trapezoid rule, whose error falls exponentially with the grid for functions this smooth."""
    # σ² matters too: 1 − q + q exp(…) has zeros at a distance πσ² from the line, of no weight where σ is below 0.1.
    width = min(sigma, max(sigma**2, 0.01)) / 8
    z = np.arange(-12 * sigma, alpha + 12 * sigma, width)  # the integrand is a mixture of N(k, σ²), 0 ≤ k ≤ α
    log_weight = -(z**2) / (2 * sigma**2)
    log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * z - 1) / (2 * sigma**2))
    return float(np.logaddexp.reduce(log_weight + alpha * log_ratio) - np.logaddexp.reduce(log_weight))


def to_epsilon(rdp, order, delta, conversion="tight"):
    """ε of what has RDP r of order α, at δ.

        classic:  ε = r + log(1/δ) / (α − 1)                                   Mironov (2017), proposition 3
        tight:    ε = r + log((α − 1)/α) − (log δ + log α) / (α − 1)           Canonne et al. (2020), proposition 12

    Args:
        rdp: r, at least 0.
        order: α, above 1.
        delta: δ, above 0 and below 1.
        conversion: "classic" or "tight". The second, also theorem 21 of Balle et al. (2020), is never larger; and it is
            0 where δ² ≥ 1 − exp(−r), as then δ covers all that can be told apart (Bretagnolle and Huber 1979).

    Returns:
        ε, at least 0.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta!r}: a number above 0 and below 1 is needed")
    if conversion == "classic":
        return max(0.0, float(rdp - math.log(delta) / (order - 1)))
    if conversion != "tight":
        raise ValueError(f'conversion={conversion!r}: "classic" or "tight" is needed')
    if delta**2 >= -math.expm1(-rdp):
        return 0.0
    return max(0.0, float(rdp + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)))


def epsilon(sample_rate, noise_multiplier, steps, delta, orders=ORDERS, conversion="tight"):
    """ε of `steps` equal steps of DP-SGD: `Accountant` in one call; arguments and errors as there."""
    accountant = Accountant(orders)
    accountant.step(sample_rate, noise_multiplier, steps)
    return accountant.epsilon(delta, conversion)[0]


def sigma_for(target_epsilon, sample_rate, steps, delta, orders=ORDERS, conversion="tight", tolerance=1e-4):
    """The smallest noise multiplier σ that keeps `steps` steps within ε, or up to `tolerance` more: by halving.

    Args:
        target_epsilon, tolerance: above 0; the others as in `epsilon`.

    Raises:
        ValueError: an argument is out of range, or these orders cannot show so small an ε, however large the noise.
    """
    if not 0 < target_epsilon < math.inf or not tolerance > 0:
        raise ValueError(f"{target_epsilon=}, {tolerance=}: finite numbers above 0 are needed")

    def is_enough(sigma):
        return epsilon(sample_rate, sigma, steps, delta, orders, conversion) <= target_epsilon

    low, high = 0.0, 1.0
    while not is_enough(high):
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(f"target_epsilon={target_epsilon!r}: not shown by these orders, take larger ones as well")
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _check(q, sigma, alpha):
    if not 0 <= q <= 1:
        raise ValueError(f"sample_rate={q!r}: a probability from 0 to 1 is needed")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"noise_multiplier={sigma!r}: a finite number of at least 0 is needed")
    if not 1 < alpha < math.inf:
        raise ValueError(f"order={alpha!r}: a finite number above 1 is needed")
    return float(q), float(sigma), alpha
