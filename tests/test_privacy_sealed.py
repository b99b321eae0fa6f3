"""Sealed files: what was written comes back, and every change is found."""

import os
import secrets
from pathlib import Path

import pytest
import torch

from lessons_lib.privacy import NotSealed, load_key, load_sealed, new_key, save_sealed, seal, unseal
from lessons_lib.privacy import sealed as module

KEY = secrets.token_bytes(32)
OLD = "569a56e553d52aa33a5cbdae06056fbf8065fd93dc5b0efca3a5064cb01c115d2ae625a321f06f86a2f2218f"


@pytest.fixture
def small(monkeypatch):
    """Chunks of 32 bytes, so that a file has many."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 32)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 64, 1000])
def test_what_was_sealed_comes_back(small, size):
    data = secrets.token_bytes(size)
    sealed = seal(data, KEY)
    assert unseal(sealed, KEY) == data
    assert len(sealed) == 24 + size + 16 * max(1, -(-size // 32))
    assert size < 8 or data[:8] not in sealed
    assert seal(data, KEY) != sealed


def test_large_ones_too_and_what_was_written_once_opens_for_ever():
    data = bytes(2 * 2**20 + 5)
    sealed = seal(data, KEY)
    assert unseal(sealed, KEY) == data and len(sealed) == len(data) + 24 + 3 * 16
    old = "7365616c65643031" + OLD
    assert unseal(bytes.fromhex(old), bytes(range(32)), "step 3") == b"written once"


def check_every_change_is_found(seal, unseal):
    """Every bit, every cut, chunks moved, doubled, left out, taken from another file, another key."""
    data = secrets.token_bytes(100)
    sealed, other = seal(data, KEY), seal(data[::-1], KEY)
    wrong = [sealed[:k] for k in range(len(sealed))]
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        wrong.append(bytes(changed))
    start, step = 24, 48
    chunks = [sealed[k : k + step] for k in range(start, len(sealed), step)]
    others = [other[k : k + step] for k in range(start, len(sealed), step)]
    first = sealed[:start]
    for k in range(len(chunks)):
        wrong += [first + b"".join(each) for each in (chunks[:k] + chunks[k + 1 :], [*chunks[: k + 1], *chunks[k:]])]
        wrong.append(first + b"".join([*chunks[:k], others[k], *chunks[k + 1 :]]))
    wrong += [first + b"".join([chunks[1], chunks[0], *chunks[2:]]), other[:start] + b"".join(chunks)]
    wrong += [sealed + b"\0", sealed + chunks[-1], sealed + bytes(48), sealed + sealed]
    full = seal(data[:96], KEY)  # its last chunk is a whole one
    wrong += [full + b"\0", full + bytes(16), full[:-1], full[:-step]]
    for attempt in wrong:
        with pytest.raises(NotSealed):
            unseal(attempt, KEY)
    for key in (secrets.token_bytes(32), bytes(32), KEY[::-1]):
        with pytest.raises(NotSealed, match="another key"):
            unseal(sealed, key)
    return len(wrong) + 3


def test_every_change_is_found(small):
    assert check_every_change_is_found(seal, unseal) > 1500


def test_a_label_says_which_file_is_meant(tmp_path):
    path = tmp_path / "model.sealed"
    save_sealed({"w": torch.ones(2)}, path, KEY, label="step 300")
    assert load_sealed(path, KEY, label="step 300")["w"].tolist() == [1, 1]
    for label in ("", "step 200", "step 3000"):
        with pytest.raises(NotSealed, match="another key or label"):
            load_sealed(path, KEY, label)
    assert b"step" not in path.read_bytes()


def no_last(number, is_last):
    return number.to_bytes(12, "big")


def no_number(number, is_last):
    return bytes(11) + bytes([is_last])


@pytest.mark.parametrize("mistake", [no_last, no_number])
def test_nonces_that_do_not_say_where_a_chunk_belongs_are_rejected(small, mistake, monkeypatch):
    monkeypatch.setattr(module, "_nonce", mistake)
    with pytest.raises(pytest.fail.Exception):
        check_every_change_is_found(seal, unseal)


def test_one_key_for_all_files_is_rejected(small, monkeypatch):
    real = module._cipher
    monkeypatch.setattr(module, "_cipher", lambda key, number: real(key, bytes(16)))
    with pytest.raises(pytest.fail.Exception):
        check_every_change_is_found(seal, unseal)


def test_a_state_dict_comes_back_whole_and_for_its_owner_alone(tmp_path):
    state = {"w": torch.randn(3, 5), "n": torch.arange(4), "b": torch.randn(2).bfloat16()}
    path = tmp_path / "model.sealed"
    save_sealed(state, path, KEY)
    found = load_sealed(path, KEY)
    assert set(found) == set(state) and all(torch.equal(found[name], state[name]) for name in state)
    assert path.stat().st_mode & 0o077 == 0
    assert os.listdir(tmp_path) == ["model.sealed"]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="32 bytes"):
        save_sealed(state, path, b"short")
    with pytest.raises(ValueError, match="invalid"):
        save_sealed({"w": "text"}, path, KEY)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.sealed"]
    path.write_bytes(before[:-1])
    with pytest.raises(NotSealed):
        load_sealed(path, KEY)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.sealed"
    save_sealed({"w": torch.ones(2)}, path, KEY)

    def fails(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no space"):
        save_sealed({"w": torch.zeros(2)}, path, KEY)
    assert load_sealed(path, KEY)["w"].tolist() == [1, 1] and os.listdir(tmp_path) == ["model.sealed"]


def test_keys_come_from_text_or_a_file_of_the_owner(tmp_path):
    text = new_key()
    assert len(load_key(text)) == 32 and load_key(text + "\n") == load_key(text) and new_key() != text
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    assert load_key(path) == load_key(text)
    for mode in (0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o777):
        path.chmod(mode)
        with pytest.raises(ValueError, match="chmod 600"):
            load_key(path)
    assert load_key("-_-_" * 10 + "-_8=") == bytes([0xFB, 0xFF, 0xBF] * 10 + [0xFB, 0xFF])
    for wrong in ("", "short", text[:-2], f"{text[:5]}!{text[5:]}", "!" * 44, "é" * 44, None):
        with pytest.raises(ValueError, match="44 characters") as caught:
            load_key(wrong)
        assert not wrong or wrong not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        load_key(Path(tmp_path / "none"))
    for wrong in (b"", KEY[:16], "text"):
        with pytest.raises(ValueError, match="32 bytes"):
            seal(b"", wrong)
