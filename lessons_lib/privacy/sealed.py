"""Files that only a key opens, and in which any change is found: sealed checkpoints (lesson 25).

    magic (8 bytes) | file number (16, random) | chunks: AES-256-GCM of up to 1 MiB each, with its tag of 16 bytes

Each file has a key of its own, HKDF(key, file number), so that no nonce comes twice. The nonce of a chunk is its number
and whether it is the last: a chunk that is moved, left out, doubled, or taken from another file does not open, and
neither does a file that was cut between two chunks. An older file of the same key is whole, and opens: a label, such as
the step, says which one is meant.

Source: AES-GCM, NIST SP 800-38D; the stream, Hoang et al., Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance (2015), §7 (STREAM).
"""

import base64
import binascii
import os
import secrets
import tempfile
from pathlib import Path

import safetensors.torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAGIC = b"sealed01"
CHUNK_BYTES, TAG_BYTES, NUMBER_BYTES = 2**20, 16, 16


class NotSealed(ValueError):
    """What was read is no sealed file of this key as it was written: another key, or bytes changed, cut or moved."""


def new_key():
    """Draw a key, as text for an environment variable or a file that only its owner reads."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def load_key(source):
    """Read a key that `new_key` made; never write one into code.

    Args:
        source: the text itself as the caller took it from the environment, or the `Path` of a file that holds it.

    Returns:
        32 bytes.

    Raises:
        ValueError: it is no such key; the message does not show what it is. Or its file can be read by others.
    """
    if isinstance(source, Path):
        if os.name == "posix" and source.stat().st_mode & 0o077:
            raise ValueError(f"source={source.name!r} can be read by others than its owner: chmod 600 is needed")
        source = source.read_text(encoding="ascii")
    try:
        key = base64.b64decode(source.strip().encode(), altchars=b"-_", validate=True)
    except (AttributeError, binascii.Error, UnicodeError):
        key = b""
    if len(key) != 32:
        raise ValueError("source holds no key: 44 characters are needed, as new_key gives them")
    return key


def seal(data, key, label=""):
    """Encrypt bytes so that a change is found.

    Args:
        data: bytes.
        key: 32 bytes, from `load_key`.
        label: text that whoever opens it must know, such as "model 7, step 300". It is not in the file.

    Returns:
        Bytes, 24 longer and 16 more per chunk.

    Raises:
        ValueError: the key is not 32 bytes.
    """
    number, view = secrets.token_bytes(NUMBER_BYTES), memoryview(data)
    cipher, starts = _cipher(key, number), range(0, len(data), CHUNK_BYTES) or range(1)
    chunks = [
        cipher.encrypt(_nonce(k, k == len(starts) - 1), view[start : start + CHUNK_BYTES], label.encode())
        for k, start in enumerate(starts)
    ]
    return b"".join([MAGIC, number, *chunks])


def unseal(sealed, key, label=""):
    """Give back the bytes that were sealed, all of them or none.

    Raises:
        NotSealed: another key or label, or anything was changed, cut, added or moved.
        ValueError: the key is not 32 bytes.
    """
    view, start = memoryview(sealed), len(MAGIC) + NUMBER_BYTES
    cipher = _cipher(key, bytes(view[len(MAGIC) : start]))
    places = range(start, len(view), CHUNK_BYTES + TAG_BYTES)
    if bytes(view[: len(MAGIC)]) != MAGIC or not places:
        raise NotSealed("no sealed file: its beginning is not that of one")
    opened = []
    for k, place in enumerate(places):
        try:
            chunk = view[place : place + CHUNK_BYTES + TAG_BYTES]
            opened.append(cipher.decrypt(_nonce(k, k == len(places) - 1), chunk, label.encode()))
        except InvalidTag:
            raise NotSealed(
                f"chunk {k} of {len(places)} does not open: another key or label, or changed bytes"
            ) from None
    return b"".join(opened)


def save_sealed(state, path, key, label=""):
    """Write a state dict to a file, sealed; the file is whole or is not there, and only its owner can read it.

    Args:
        state: {name: tensor}, as safetensors holds it: no code runs when it is read.
        path: of the file.
        key: 32 bytes.
        label: as for `seal`.

    Raises:
        ValueError: the key is not 32 bytes, or safetensors cannot hold `state`.
    """
    data, path = seal(safetensors.torch.save(state), key, label), Path(path)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def load_sealed(path, key, label=""):
    """Read what `save_sealed` wrote.

    Raises:
        NotSealed, ValueError: as `unseal`.
    """
    return safetensors.torch.load(unseal(Path(path).read_bytes(), key, label))


def _cipher(key, number):
    if not isinstance(key, bytes) or len(key) != 32:
        raise ValueError("key: 32 bytes are needed, from load_key")
    return AESGCM(HKDF(hashes.SHA256(), length=32, salt=number, info=b"lessons_lib sealed file").derive(key))


def _nonce(number, is_last):
    return number.to_bytes(11, "big") + bytes([is_last])
