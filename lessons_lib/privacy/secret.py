"""Shamir's secret sharing: any t of n shares give a secret, and t − 1 of them give nothing (lesson 25)."""

import secrets
from typing import NamedTuple

from ..errors import check_whole

PRIME = 2**521 - 1  # a Mersenne prime: any secret of up to 65 bytes is below it


class Share(NamedTuple):
    """A point of the polynomial that hides a secret.

    Attributes:
        x: which share, from 1.
        y: the polynomial there, modulo `prime`.
        threshold: t, how many shares it takes.
        prime: p.
    """

    x: int
    y: int
    threshold: int
    prime: int = PRIME


def split_secret(secret, threshold, num_shares, prime=PRIME):
    """Hide a number as f(0) of a polynomial of degree t − 1 whose other coefficients are drawn: share k is f(k).

    Args:
        secret: a whole number from 0 to p − 1.
        threshold: t, from 1 to n.
        num_shares: n, below p.
        prime: p, the size of the field; it is taken for a prime.

    Returns:
        A list of n `Share`. Fewer than t of them go with every secret equally well.

    Raises:
        ValueError: an argument is out of range.

    Source: Shamir, How to Share a Secret (1979).
    """
    check_whole("secret", secret, 0)
    check_whole("threshold", threshold, 1)
    check_whole("num_shares", num_shares, threshold)
    if secret >= prime or num_shares >= prime:
        raise ValueError(f"secret and {num_shares=} must be below prime={prime}")
    coefficients = [secret, *(secrets.randbelow(prime) for _ in range(threshold - 1))]
    return [Share(x, _value(coefficients, x, prime), threshold, prime) for x in range(1, num_shares + 1)]


def join_secret(shares):
    """Find f(0) of the polynomial through t of the shares (Lagrange).

    Args:
        shares: of one secret, at least t different ones. One that was changed gives another secret: nothing here tells.

    Returns:
        The secret.

    Raises:
        ValueError: too few shares, two of one number, or shares of several secrets by their t or p.
    """
    shares = sorted(set(shares))
    if not shares or len({(share.threshold, share.prime) for share in shares}) > 1:
        raise ValueError(f"shares={len(shares)} of them: shares of one secret are needed")
    if len({share.x for share in shares}) < len(shares):
        raise ValueError(f"shares of numbers {[share.x for share in shares]}: each number once is needed")
    threshold, prime = shares[0].threshold, shares[0].prime
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares: {threshold} are needed")
    secret, used = 0, shares[:threshold]
    for share in used:
        above, below = 1, 1
        for other in used:
            if other.x != share.x:
                above, below = above * other.x % prime, below * (other.x - share.x) % prime
        secret += share.y * above * pow(below, -1, prime)
    return secret % prime


def _value(coefficients, x, prime):
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value
