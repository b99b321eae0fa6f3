"""Secure aggregation: a server learns the sum of its clients' vectors and nothing else, also if some leave (lesson 25).

    y_u = x_u + m(b_u) + Σ_{v > u} m(s_uv) − Σ_{v < u} m(s_uv)      modulo 2³²

s_uv is known to u and v alone (X25519), and what one adds the other takes away. b_u is u's own: without it, a server
that calls a slow client lost, and has the others open that client's key, could read its vector when it comes after all.
Shares of both are held by all. For each client the server asks for shares of one of the two, and clients see to that:
b_u if y_u came, the key behind s_uv if not.

It holds against a server that follows the protocol and looks at all it sees. One that lies about who is there, or hands
out keys of its own, needs signed keys and one round more.

Source: Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning (2017), figure 4.
"""

import secrets
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ..errors import check_whole
from .masks import expand, to_fixed_point
from .secret import PRIME, Share, split_secret

SHARE_BYTES = -(-PRIME.bit_length() // 8)


class PublicKeys(NamedTuple):
    """What a client shows of itself: keys (32 bytes each) to `send` it shares in secret, and to `mask` with it."""

    send: bytes
    mask: bytes


class Client:
    """One who has a vector. Its methods are the protocol's rounds, in order; each takes what the server passed on.

    Args:
        number: from 0, its own among all.
        threshold: t, at least 2: how many clients must stay to the end, and how many, acting together with the server,
            could open a vector. More than half of all, or a server could ask two halves for different things.
        fraction_bits: see `to_fixed_point`.

    Attributes:
        public_keys: round 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, number, threshold, fraction_bits=16):
        check_whole("number", number, 0)
        check_whole("threshold", threshold, 2)
        self.number, self.threshold, self.fraction_bits = int(number), int(threshold), fraction_bits
        self._send, self._mask = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._own = secrets.token_bytes(32)
        self.public_keys = PublicKeys(*(key.public_key().public_bytes_raw() for key in (self._send, self._mask)))
        self._everyone, self._held, self._has_sent, self._revealed = None, {}, False, None

    def share_keys(self, everyone):
        """Round 1: give each other client a share of both secrets, sealed so that the server carries them unread.

        Args:
            everyone: {number: `PublicKeys`} of all that take part, this one included.

        Returns:
            {number of the receiver: bytes}.

        Raises:
            ValueError: this client is not among them, two have one key, or fewer than `threshold`.
            RuntimeError: it has shared before.
        """
        if self._everyone is not None:
            raise RuntimeError(f"client {self.number} has shared its keys: a new client is needed for another sum")
        keys = [key for both in everyone.values() for key in both]
        if everyone.get(self.number) != self.public_keys or len(set(keys)) < len(keys):
            raise ValueError(f"everyone={sorted(everyone)}: client {self.number}, and keys that differ, are needed")
        if len(everyone) < self.threshold:
            raise ValueError(f"everyone has {len(everyone)} clients: at least threshold={self.threshold} are needed")
        self._everyone = dict(everyone)
        secret = [int.from_bytes(each, "big") for each in (self._own, self._mask.private_bytes_raw())]
        shares = zip(*(split_secret(each, self.threshold, len(everyone)) for each in secret), strict=True)
        shares = dict(zip(sorted(everyone), shares, strict=True))
        self._held[self.number] = shares.pop(self.number)
        return {other: self._seal(other, own, key) for other, (own, key) in shares.items()}

    def masked(self, values, sealed):
        """Round 2: this client's vector under its masks.

        Args:
            values: a vector of floats, (D,), as long as everybody's.
            sealed: {number of the sender: bytes}, of the others that have shared. Who is missing leaves no mask.

        Returns:
            A NumPy array of uint32, uniform to everyone who lacks the masks.

        Raises:
            ValueError: too few senders, or one that is not of `everyone`; values that are no vector.
            OverflowError: see `to_fixed_point`.
            cryptography.exceptions.InvalidTag: a share was changed on its way, or was for somebody else.
            RuntimeError: it has sent a vector: two vectors under one mask show their difference; or shared no keys.
        """
        if self._has_sent or self._everyone is None:
            raise RuntimeError(f"client {self.number} sends one vector, after it has shared its keys")
        senders = {*sealed, self.number}
        if len(senders) < self.threshold or not senders <= set(self._everyone):
            raise ValueError(f"sealed from {sorted(sealed)}: {self.threshold - 1} or more of {sorted(self._everyone)}")
        vector = to_fixed_point(values, len(senders), self.fraction_bits)
        if vector.ndim != 1:  # masks would be spread over a table: rows under one mask show their differences
            raise ValueError(f"values of shape {vector.shape}: a vector is needed")
        self._held |= {sender: self._open(sender, note) for sender, note in sealed.items() if sender != self.number}
        self._has_sent = True
        others = {sender: self._everyone[sender].mask for sender in senders}
        return vector + expand(self._own, vector.size) + pairwise_masks(self.number, self._mask, others, vector.size)

    def reveal(self, survivors):
        """Round 3: a share of one secret of each: of those whose vector came the own mask's, of the lost the key's.

        Args:
            survivors: the numbers of those whose vector came.

        Returns:
            {number: `Share`}.

        Raises:
            ValueError: fewer than `threshold` survivors, or some that did not take part.
            RuntimeError: no vector was sent; or it has answered for other survivors: both secrets open a vector.
        """
        survivors = frozenset(survivors)
        if not self._has_sent or self._revealed not in (None, survivors):
            raise RuntimeError(f"client {self.number} answers for one set of survivors, after it has sent its vector")
        if len(survivors) < self.threshold or not survivors <= set(self._held):
            raise ValueError(
                f"survivors={sorted(survivors)}: {self.threshold} or more of {sorted(self._held)} are needed"
            )
        self._revealed = survivors
        return {sender: own if sender in survivors else key for sender, (own, key) in self._held.items()}

    def _seal(self, other, own, key):
        sizes = (
            (own.x, 4),
            (own.y, SHARE_BYTES),
            (key.y, SHARE_BYTES),
        )  # always as long: a length would tell of its value
        note = b"".join(value.to_bytes(size, "big") for value, size in sizes)
        return self._box(other, self.number, other).encrypt(bytes(12), note, None)

    def _open(self, other, note):
        note = self._box(other, other, self.number).decrypt(bytes(12), note, None)
        parts = note[:4], note[4 : 4 + SHARE_BYTES], note[4 + SHARE_BYTES :]
        x, own, key = (int.from_bytes(part, "big") for part in parts)
        return Share(x, own, self.threshold), Share(x, key, self.threshold)

    def _box(self, other, sender, receiver):
        """What seals the one message of this direction: with one key for both, both would lie under one stream."""
        agreed = self._send.exchange(X25519PublicKey.from_public_bytes(self._everyone[other].send))
        return ChaCha20Poly1305(expand(agreed, 8, f"box {sender} to {receiver}".encode()).tobytes())


def pairwise_masks(number, private_key, public_keys, numel):
    """Σ_{v > u} m(s_uv) − Σ_{v < u} m(s_uv) modulo 2³², of client u = `number` with all others v.

    Args:
        number: u.
        private_key: u's, an `X25519PrivateKey`.
        public_keys: {v: 32 bytes}; u itself is passed over.
        numel: the length of the vectors.

    Returns:
        A NumPy array of uint32. Those of all clients add up to 0.
    """
    total = np.zeros(numel, dtype=np.uint32)
    for other, public in public_keys.items():
        if other != number:
            mask = expand(private_key.exchange(X25519PublicKey.from_public_bytes(public)), numel, b"pair")
            total += mask if other > number else -mask
    return total
