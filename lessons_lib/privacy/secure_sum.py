"""The server's side of secure aggregation, and the whole of it in one process (lesson 25)."""

from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from .masks import expand, from_fixed_point
from .secret import join_secret
from .secure_aggregation import Client, pairwise_masks


def unmask(vectors, revealed, everyone, fraction_bits=16):
    """Take the masks off the sum of the vectors that came: the own ones of those, and the lost ones' halves of pairs.

    Args:
        vectors: {number: uint32 array} as `Client.masked` gave them.
        revealed: a list of what `Client.reveal` gave, from at least `threshold` clients.
        everyone: {number: `PublicKeys`}.
        fraction_bits: as the clients'.

    Returns:
        The sum of their values, float64.

    Raises:
        ValueError: too few shares; or those of a lost client's key are wrong.
    """
    total = np.zeros_like(next(iter(vectors.values())))
    for vector in vectors.values():
        total += vector
    for number in sorted({number for shares in revealed for number in shares}):
        secret = join_secret([shares[number] for shares in revealed if number in shares])
        if secret >= 2**256:
            raise ValueError(f"shares of client {number}: some are wrong")
        secret = secret.to_bytes(32, "big")
        if number in vectors:
            total -= expand(secret, total.size)
        else:
            key = X25519PrivateKey.from_private_bytes(secret)
            if key.public_key().public_bytes_raw() != everyone[number].mask:
                raise ValueError(f"shares of client {number}: they give another key than its own")
            total += pairwise_masks(number, key, {other: everyone[other].mask for other in vectors}, total.size)
    return from_fixed_point(total, fraction_bits)


class SecureSum(NamedTuple):
    """What a server ends up with.

    Attributes:
        total: the sum of the survivors' vectors, float64.
        survivors: their numbers.
        seen: {number: uint32 array}: all that it has ever held of single vectors.
    """

    total: np.ndarray
    survivors: tuple
    seen: dict


def secure_sum(vectors, threshold, lost_early=(), lost_late=(), fraction_bits=16):
    """Run the protocol among clients of this process.

    Args:
        vectors: one for each client, floats, of one length.
        threshold: how many must stay.
        lost_early: numbers of clients that leave before they have shared their keys.
        lost_late: that leave after that, before their vector comes.
        fraction_bits: see `to_fixed_point`.

    Returns:
        `SecureSum`.

    Raises:
        ValueError: fewer clients than `threshold` stay.
        OverflowError: see `to_fixed_point`.

    Communication: per client in all about 2 keys to the server and N back, N sealed shares each way, its vector once
    (4 bytes a number), and N shares: the vector is the only part that grows with the model.
    """
    clients = {number: Client(number, threshold, fraction_bits) for number in range(len(vectors))}
    everyone = {number: client.public_keys for number, client in clients.items()}
    sharing = [number for number in clients if number not in lost_early]
    sealed = {number: clients[number].share_keys(everyone) for number in sharing}
    survivors = [number for number in sharing if number not in lost_late]
    seen = {}
    for number in survivors:
        mine = {sender: notes[number] for sender, notes in sealed.items() if sender != number}
        seen[number] = clients[number].masked(vectors[number], mine)
    revealed = [clients[number].reveal(survivors) for number in survivors]
    return SecureSum(unmask(seen, revealed, everyone, fraction_bits), tuple(survivors), seen)
