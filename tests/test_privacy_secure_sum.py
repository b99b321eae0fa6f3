"""Secret sharing, fixed point, masks: sums that are right, views that tell nothing, and mistakes that show."""

import itertools
import math
import secrets

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from scipy import stats

from lessons_lib.privacy import (
    Client,
    Share,
    expand,
    from_fixed_point,
    join_secret,
    pairwise_masks,
    secure_sum,
    split_secret,
    to_fixed_point,
    unmask,
)
from lessons_lib.privacy import secure_aggregation as protocol

# --- sharing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold, num", [(1, 1), (1, 4), (2, 3), (3, 5), (5, 5)])
def test_any_t_shares_give_the_secret_and_fewer_are_refused(threshold, num):
    secret = secrets.randbelow(2**256)
    shares = split_secret(secret, threshold, num)
    for chosen in itertools.combinations(shares, threshold):
        assert join_secret(chosen) == secret
    assert join_secret(shares[::-1]) == secret
    if threshold > 1:
        with pytest.raises(ValueError, match=rf"{threshold - 1} shares: {threshold} are needed"):
            join_secret(shares[: threshold - 1])


def test_t_minus_1_shares_go_with_every_secret_equally():
    prime, counts = 11, np.zeros((2, 11, 11), dtype=int)
    for row, secret in enumerate((0, 7)):
        for _ in range(6000):
            one, two, _ = split_secret(secret, 3, 3, prime)
            counts[row, one.y, two.y] += 1
    for row in counts:
        assert stats.chisquare(row.flatten()).pvalue > 1e-4
    honest = [Share(1, 4, 3, prime), Share(2, 9, 3, prime)]
    assert {join_secret([*honest, Share(3, y, 3, prime)]) for y in range(prime)} == set(range(prime))


def test_what_is_no_set_of_shares_is_refused():
    a, b = split_secret(5, 2, 3), split_secret(5, 3, 3)
    for shares, match in (
        ([], "shares of one secret"),
        ([a[0], b[1], b[2]], "shares of one secret"),
        ([a[0], a[0]], "1 shares: 2 are needed"),
        ([a[0], a[0]._replace(y=1)], "each number once"),
    ):
        with pytest.raises(ValueError, match=match):
            join_secret(shares)
    for arguments, match in (
        ((-1, 2, 3), "secret=-1"),
        ((1, 0, 3), "threshold=0"),
        ((1, 4, 3), "num_shares=3"),
        ((11, 2, 3, 11), "must be below prime=11"),
        ((1, 2, 11, 11), "must be below prime=11"),
    ):
        with pytest.raises(ValueError, match=match):
            split_secret(*arguments)


# --- fixed point and masks -------------------------------------------------------------------------------------------


def test_fixed_point_keeps_sums_and_refuses_what_wraps_round():
    values = np.random.default_rng(0).normal(0, 50, (7, 200))
    total = np.zeros(200, dtype=np.uint32)
    for row in values:
        total += to_fixed_point(row, 7)
    assert np.abs(from_fixed_point(total) - values.sum(0)).max() <= 7 * 2**-17
    assert from_fixed_point(to_fixed_point([-1.5, 0.0, 2.25], 1)).tolist() == [-1.5, 0.0, 2.25]
    limit = 2**15 / 4
    to_fixed_point([limit - 0.001, -limit + 0.001], 4)
    for bad in (limit, -limit, 1e9):
        with pytest.raises(OverflowError, match="below 8192 are needed, as 4 terms"):
            to_fixed_point([0.0, bad], 4)
    assert to_fixed_point([limit], 4, fraction_bits=15).tolist() == [2**28]
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            to_fixed_point([bad], 1)
    assert to_fixed_point([], 1).shape == (0,)
    assert to_fixed_point([7.4], 1, fraction_bits=0).tolist() == [7]
    for arguments, match in ((([1.0], 0), "num_terms=0"), (([1.0], 1, -1), "fraction_bits=-1")):
        with pytest.raises(ValueError, match=match):
            to_fixed_point(*arguments)


def uniform(words):
    """How likely bytes like these are if all are equally likely (χ²)."""
    return stats.chisquare(np.bincount(words.view(np.uint8), minlength=256)).pvalue


def test_a_mask_is_uniform_and_its_own():
    seed = secrets.token_bytes(32)
    assert uniform(expand(seed, 50_000)) > 1e-5
    assert np.array_equal(expand(seed, 10), expand(seed, 20)[:10])
    assert not np.array_equal(expand(seed, 10), expand(seed, 10, b"other"))
    assert not np.array_equal(expand(seed, 10), expand(secrets.token_bytes(32), 10))


def keys_of(num):
    private = [protocol.X25519PrivateKey.generate() for _ in range(num)]
    return private, {k: key.public_key().public_bytes_raw() for k, key in enumerate(private)}


@pytest.mark.parametrize("num", [2, 3, 6])
def test_pairwise_masks_cancel_in_the_sum_and_in_no_part_of_it(num):
    private, public = keys_of(num)
    masks = [pairwise_masks(k, key, public, 1000) for k, key in enumerate(private)]
    assert not sum(masks[1:], masks[0].copy()).any()
    for chosen in itertools.chain.from_iterable(itertools.combinations(masks, size) for size in range(1, num)):
        assert uniform(sum(chosen[1:], chosen[0].copy())) > 1e-6


# --- the whole protocol ----------------------------------------------------------------------------------------------

VECTORS = np.random.default_rng(1).normal(0, 1, (6, 500))


@pytest.mark.parametrize("early, late", [((), ()), ((2,), ()), ((), (0,)), ((), (1, 5)), ((3,), (4,))])
def test_the_sum_of_those_that_stay_is_right(early, late):
    found = secure_sum(VECTORS, 4, lost_early=early, lost_late=late)
    stay = [k for k in range(6) if k not in early + late]
    assert found.survivors == tuple(stay) == tuple(found.seen)
    assert np.abs(found.total - VECTORS[stay].sum(0)).max() <= 6 * 2**-17


def test_all_may_be_needed():
    assert np.abs(secure_sum(VECTORS[:3], 3).total - VECTORS[:3].sum(0)).max() <= 3 * 2**-17
    assert np.abs(secure_sum(VECTORS[:4], 3, lost_late=(1,)).total - VECTORS[[0, 2, 3]].sum(0)).max() <= 4 * 2**-17


def test_too_few_that_stay_end_it():
    with pytest.raises(ValueError, match=r"survivors=\[0, 1, 2\]: 4 or more"):
        secure_sum(VECTORS, 4, lost_late=(3, 4, 5))
    with pytest.raises(ValueError, match="3 or more of"):
        secure_sum(VECTORS, 4, lost_early=(3, 4, 5))


def check_server_sees_nothing(run):
    """Each vector that the server holds has uniform bytes, and those of two inputs are of one distribution."""
    zeros, ones = np.zeros((3, 20_000)), np.full((3, 20_000), 100.0)
    views = [run(vectors) for vectors in (zeros, ones)]
    for view in views:
        assert min(uniform(words) for words in view.values()) > 1e-6
    counts = [np.bincount(np.concatenate(list(view.values())).view(np.uint8), minlength=256) for view in views]
    assert stats.chi2_contingency(counts).pvalue > 1e-6


def view(vectors, lost_late=()):
    return secure_sum(vectors, 2, lost_late=lost_late).seen


def test_the_server_sees_nothing_but_sums():
    check_server_sees_nothing(view)
    check_server_sees_nothing(lambda vectors: view(vectors, lost_late=(1,)))
    all_but_one = secure_sum(np.zeros((3, 20_000)), 2).seen
    assert uniform(all_but_one[0] + all_but_one[1]) > 1e-6


def no_masks(vectors):
    return {k: to_fixed_point(row, len(vectors)) for k, row in enumerate(vectors)}


def one_byte_masks(vectors):
    return {
        k: to_fixed_point(row, 3) + expand(secrets.token_bytes(32), row.size) % 256 for k, row in enumerate(vectors)
    }


def one_number_for_all(vectors):
    return {k: to_fixed_point(row, 3) + expand(secrets.token_bytes(32), 1) for k, row in enumerate(vectors)}


@pytest.mark.parametrize("mistake", [no_masks, one_byte_masks, one_number_for_all])
def test_a_view_that_tells_is_rejected(mistake):
    with pytest.raises(AssertionError):
        check_server_sees_nothing(mistake)


def masks_that_all_add(number, private_key, public_keys, numel):
    total = np.zeros(numel, dtype=np.uint32)
    for other, public in public_keys.items():
        if other != number:
            seed = private_key.exchange(protocol.X25519PublicKey.from_public_bytes(public))
            total += expand(seed, numel, b"pair")
    return total


def masks_by_place(number, private_key, public_keys, numel):
    """Signs by the place in a list without oneself: alike on both sides for some pairs."""
    total, others = np.zeros(numel, dtype=np.uint32), [k for k in sorted(public_keys) if k != number]
    for place, other in enumerate(others):
        seed = private_key.exchange(protocol.X25519PublicKey.from_public_bytes(public_keys[other]))
        total += expand(seed, numel, b"pair") * np.uint32(1 if place >= number else 2**32 - 1) * np.uint32(place + 1)
    return total


@pytest.mark.parametrize("mistake", [masks_that_all_add, masks_by_place])
def test_masks_that_do_not_cancel_are_rejected(mistake, monkeypatch):
    monkeypatch.setattr(protocol, "pairwise_masks", mistake)
    found = secure_sum(VECTORS, 4)
    assert np.abs(found.total - VECTORS.sum(0)).max() > 1


def test_own_masks_keep_a_vector_that_comes_late():
    """A server that called a slow client lost holds its key. Its vector, when it comes, is still under its own mask."""
    clients = {k: Client(k, 2) for k in range(3)}
    everyone = {k: client.public_keys for k, client in clients.items()}
    sealed = {k: client.share_keys(everyone) for k, client in clients.items()}
    arrived = {k: {s: notes[k] for s, notes in sealed.items() if s != k} for k in clients}
    values = np.zeros((3, 20_000))
    vectors = {k: clients[k].masked(values[k], arrived[k]) for k in clients}
    revealed = [clients[k].reveal([0, 1]) for k in (0, 1)]  # client 2 is said to be lost
    total = unmask({k: vectors[k] for k in (0, 1)}, revealed, everyone)
    assert not total.any()
    key = join_secret([shares[2] for shares in revealed]).to_bytes(32, "big")
    opened = protocol.X25519PrivateKey.from_private_bytes(key)
    others = {k: everyone[k].mask for k in (0, 1)}
    left = vectors[2] - pairwise_masks(2, opened, others, 20_000)
    assert uniform(left) > 1e-6
    for k in (0, 1):
        with pytest.raises(RuntimeError, match="one set of survivors"):
            clients[k].reveal([0, 1, 2])


def three(threshold=2):
    clients = {k: Client(k, threshold) for k in range(3)}
    everyone = {k: client.public_keys for k, client in clients.items()}
    sealed = {k: client.share_keys(everyone) for k, client in clients.items()}
    return clients, everyone, sealed


def test_shares_that_were_changed_or_sent_elsewhere_are_found():
    clients, _, sealed = three()
    note = bytearray(sealed[1][0])
    note[3] ^= 1
    for wrong in ({1: bytes(note)}, {1: sealed[1][2]}, {1: sealed[2][0]}, {1: b""}):
        with pytest.raises(InvalidTag):
            clients[0].masked([0.0], wrong)


def test_no_two_sealed_notes_lie_under_one_stream(monkeypatch):
    keys, real = [], protocol.ChaCha20Poly1305

    def watched(key):
        keys.append(key)
        return real(key)

    monkeypatch.setattr(protocol, "ChaCha20Poly1305", watched)
    _, _, sealed = three()
    assert len(keys) == 6 and len(set(keys)) == 6
    assert {len(note) for notes in sealed.values() for note in notes.values()} == {4 + 2 * 66 + 16}


def test_the_masks_open_also_if_some_leave_after_their_vector():
    clients, everyone, sealed = three()
    vectors = {k: clients[k].masked([1.0], {s: sealed[s][k] for s in clients if s != k}) for k in clients}
    for stay in itertools.combinations(clients, 2):
        revealed = [clients[k].reveal(list(clients)) for k in stay]
        assert unmask(vectors, revealed, everyone).tolist() == [3.0]


def test_wrong_shares_of_a_lost_client_are_found():
    clients, everyone, sealed = three()
    vectors = {k: clients[k].masked([1.0], {s: sealed[s][k] for s in clients if s != k}) for k in (0, 1)}
    revealed = [clients[k].reveal([0, 1]) for k in (0, 1)]
    assert unmask(vectors, revealed, everyone).tolist() == [2.0]
    revealed[0][2] = revealed[0][2]._replace(y=(revealed[0][2].y + 1))
    with pytest.raises(ValueError, match="shares of client 2"):
        unmask(vectors, revealed, everyone)
    with pytest.raises(ValueError, match="1 shares: 2 are needed"):
        unmask(vectors, revealed[:1], everyone)


def test_what_breaks_the_order_or_the_rules_is_refused():
    clients, everyone, sealed = three()
    with pytest.raises(RuntimeError, match="has shared its keys"):
        clients[0].share_keys(everyone)
    with pytest.raises(RuntimeError, match="after it has sent its vector"):
        clients[0].reveal([0, 1])
    with pytest.raises(ValueError, match=r"sealed from \[\]"):
        clients[0].masked([0.0], {})
    with pytest.raises(ValueError, match=r"sealed from \[1, 9\]"):
        clients[0].masked([0.0], {1: sealed[1][0], 9: b""})
    for table in ([[0.0], [1.0]], [[0.0, 1.0]], 0.0):
        with pytest.raises(ValueError, match="a vector is needed"):
            clients[0].masked(table, {1: sealed[1][0]})
    with pytest.raises(OverflowError):
        clients[0].masked([1e6], {1: sealed[1][0]})
    clients[0].masked([0.0], {1: sealed[1][0]})
    with pytest.raises(RuntimeError, match="sends one vector"):
        clients[0].masked([1.0], {1: sealed[1][0]})
    for survivors in ([0], [0, 2]):  # too few; client 2 never shared with client 0
        with pytest.raises(ValueError, match="2 or more of"):
            clients[0].reveal(survivors)
    new = Client(7, 2)
    with pytest.raises(RuntimeError, match="after it has shared"):
        new.masked([0.0], {})
    with pytest.raises(ValueError, match="client 7, and keys that differ"):
        new.share_keys(everyone)
    with pytest.raises(ValueError, match="keys that differ"):
        new.share_keys({7: new.public_keys, 8: new.public_keys})
    with pytest.raises(ValueError, match="at least threshold=2"):
        new.share_keys({7: new.public_keys})
    with pytest.raises(ValueError, match="threshold=1"):
        Client(0, 1)
    with pytest.raises(ValueError, match="number=-1: a whole number of at least 0"):
        Client(-1, 2)
