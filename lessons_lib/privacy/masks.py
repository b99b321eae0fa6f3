"""Vectors as whole numbers modulo 2³², and masks that hide them there (lesson 25)."""

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import check_whole

MODULUS = 2**32


def to_fixed_point(values, num_terms, fraction_bits=16):
    """Write numbers as whole multiples of 2⁻ᵇ modulo 2³², so that `num_terms` of them can be added without overflow.

    Args:
        values: of floats, any shape; finite.
        num_terms: how many such vectors will be added.
        fraction_bits: b. Rounding moves each number by at most 2⁻ᵇ⁻¹.

    Returns:
        A NumPy array of uint32, of that shape: negative numbers count down from 2³².

    Raises:
        ValueError: a value is not finite, or a count is out of range.
        OverflowError: a sum could leave the range ±2³¹⁻ᵇ: it would wrap round to a wrong number, in silence.
    """
    check_whole("num_terms", num_terms, 1)
    check_whole("fraction_bits", fraction_bits, 0)
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("values: finite numbers are needed")
    whole = np.rint(values * 2.0**fraction_bits)
    largest = float(np.abs(whole).max(initial=0.0))
    if largest * num_terms >= MODULUS / 2:
        limit = MODULUS / 2 / num_terms / 2**fraction_bits
        raise OverflowError(
            f"values up to {largest / 2**fraction_bits:.6g}: below {limit:.6g} are needed, as {num_terms} terms with "
            f"{fraction_bits} bits behind the point must stay below 2³¹"
        )
    return whole.astype(np.int64).astype(np.uint32)


def from_fixed_point(whole, fraction_bits=16):
    """The numbers, float64, that a sum of what `to_fixed_point` gave stands for."""
    return np.asarray(whole, dtype=np.uint32).view(np.int32) / 2.0**fraction_bits


def expand(seed, numel, purpose=b""):
    """Stretch 32 secret bytes to `numel` numbers that nobody without them can tell from uniform ones.

    Args:
        seed: bytes.
        numel: how many.
        purpose: bytes; another purpose, such as another round, gives other numbers.

    Returns:
        A NumPy array of uint32, (numel,).

    Source: HKDF (RFC 5869) for the key, ChaCha20 (RFC 8439) for the stream.
    """
    key = HKDF(hashes.SHA256(), length=32, salt=None, info=b"lessons_lib mask " + purpose).derive(seed)
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()  # each key is used once
    return np.frombuffer(stream.update(bytes(4 * numel)), dtype="<u4").astype(np.uint32)
