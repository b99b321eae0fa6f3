"""Samples dealt to clients that are not alike (lesson 25)."""

import math

import numpy as np
import torch

from ...errors import check_whole


def dirichlet_split(y, num_clients, alpha, seed=0):
    """Deal samples to clients: each class by shares of its own, drawn from a Dirichlet distribution.

    Args:
        y: class numbers, (N,).
        num_clients: K.
        alpha: α > 0. At 0.1 most clients know few classes, at 100 all are nearly alike; at infinity each class is dealt
            evenly.
        seed: of the draw and of the order.

    Returns:
        K tensors of indices, int64, sorted: each sample is in exactly one. With a small α some may be empty.

    Raises:
        ValueError: an argument is out of range.

    Source: after Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution (2019), §3; there clients
    have equally many samples, and draw the shares of classes.
    """
    check_whole("num_clients", num_clients, 1)
    check_whole("seed", seed, 0)
    if not alpha > 0:
        raise ValueError(f"alpha={alpha!r}: a number above 0 is needed")
    random, dealt = np.random.default_rng(seed), [[] for _ in range(num_clients)]
    for k, label in enumerate(np.unique(y := np.asarray(y))):
        members = random.permutation(np.flatnonzero(y == label))
        shares = np.full(num_clients, 1 / num_clients) if alpha == math.inf else random.dirichlet([alpha] * num_clients)
        cuts = np.rint(shares.cumsum()[:-1] * len(members)).astype(int)
        # The classes take turns in whom they round up for, or the same clients would have all that is left over.
        for place, part in enumerate(np.split(members, cuts)):
            dealt[(place + k) % num_clients].append(part)
    return [torch.from_numpy(np.sort(np.concatenate(parts)).astype(np.int64)) for parts in dealt]
