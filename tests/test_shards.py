"""Shards, manifests and mapped records: each record once, damage named, nothing run, bad input refused."""

import copy
import json
import pickle
from itertools import chain, pairwise
from multiprocessing import get_all_start_methods

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lessons_lib.data import RankSampler, augmented
from lessons_lib.launch.server import context
from lessons_lib.shards import MANIFEST, MappedRecords, ShardStream, damage, read_manifest, write_shards

RECORDS = np.arange(103, dtype="<u4").view(np.uint8).reshape(-1, 4)  # record k holds the number k


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path, RECORDS, 10)
    return tmp_path


def numbers(batches):
    return [np.asarray(batch).view("<u4").ravel().tolist() for batch in batches]


def edit(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_the_manifest_says_what_is_there(folder):
    manifest = read_manifest(folder)
    assert manifest["record_bytes"] == 4
    assert [shard["samples"] for shard in manifest["shards"]] == [10] * 10 + [3]
    assert all((folder / shard["file"]).stat().st_size == shard["bytes"] for shard in manifest["shards"])
    assert damage(folder) == []


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("readers", [1, 2, 3, 11, 25, 150])
def test_every_record_comes_once_in_equally_many_batches(folder, readers, shuffle):
    seen = [numbers(ShardStream(folder, r, readers, batch_size=7, buffer=2, shuffle=shuffle)) for r in range(readers)]
    shares = [sum(map(len, batches)) for batches in seen]
    assert sorted(n for batches in seen for batch in batches for n in batch) == list(range(103))
    assert max(shares) - min(shares) <= 1
    assert len({len(batches) for batches in seen}) == 1
    if not shuffle:
        assert [n for batches in seen for batch in batches for n in batch] == list(range(103))


def test_orders_follow_from_seed_and_epoch(folder):
    def order(seed, epoch):
        stream = ShardStream(folder, seed=seed)
        stream.set_epoch(epoch)
        return numbers(stream)

    assert order(0, 0) == order(0, 0) and order(3, 5) == order(3, 5)
    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize("rank", [0, 2])
def test_resuming_gives_the_rest_and_reads_no_more(folder, rank):
    whole = list(ShardStream(folder, rank, 3, batch_size=4, buffer=3))
    for skip in range(len(whole) + 2):
        stream = ShardStream(folder, rank, 3, batch_size=4, buffer=3)
        stream.set_epoch(0, skip_batches=skip)
        rest = list(stream)
        assert numbers(rest) == numbers(whole[skip:])
        assert stream.bytes_read == sum(batch.nbytes for batch in rest)


def test_neighbours_are_read_together(folder):
    stream = ShardStream(folder, batch_size=20, buffer=100)
    assert sum(len(batch) for batch in stream) == 103
    assert stream.opens == 11 and stream.bytes_read == 412


def test_memory_holds_one_window(folder, monkeypatch):
    held, read = [], ShardStream._read
    monkeypatch.setattr(ShardStream, "_read", lambda *a: held.append(len(a[2])) or read(*a))
    list(ShardStream(folder, batch_size=5, buffer=3))
    assert max(held) == 15


def test_workers_share_what_their_rank_reads(folder):
    options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": context()}
    stream = ShardStream(folder, rank=1, world_size=2, batch_size=5)
    alone = sorted(chain(*numbers(stream)))
    shared = numbers(DataLoader(stream, **options))
    assert sorted(chain(*shared)) == alone
    stream.set_epoch(0, skip_batches=3)
    assert numbers(DataLoader(stream, **options)) == shared[3:]
    doubled = ShardStream(folder, rank=1, world_size=2, batch_size=5, by_worker=False)
    assert sorted(chain(*numbers(DataLoader(doubled, **options)))) == sorted(2 * alone)


@pytest.mark.parametrize("method", get_all_start_methods())
def test_an_epoch_reaches_workers_that_outlive_one(folder, method):
    stream = ShardStream(folder, rank=1, world_size=2, batch_size=5)
    options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": method}
    feed = DataLoader(stream, persistent_workers=True, **options)
    orders = []
    for epoch in range(3):
        stream.set_epoch(epoch)
        orders.append(numbers(feed))
        assert sorted(chain(*orders[-1])) == sorted(chain(*numbers(stream)))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    stream.set_epoch(1, skip_batches=3)
    assert numbers(feed) == orders[1][3:]
    next(iter(feed))  # left in the middle
    stream.set_epoch(2)
    assert numbers(feed) == orders[2]
    assert numbers(DataLoader(stream, **options)) == orders[2], "new workers read the same"


def test_copies_of_a_stream_have_epochs_of_their_own(folder):
    stream = ShardStream(folder)
    stream.set_epoch(4, skip_batches=1)
    for copied in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        assert (copied.epoch, copied.skip_batches) == (4, 1) and numbers(copied) == numbers(stream)
        copied.set_epoch(5)
        assert (stream.epoch, stream.skip_batches) == (4, 1)
        feed = DataLoader(
            copied, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context=context()
        )
        for epoch in (5, 6):
            copied.set_epoch(epoch)
            assert numbers(feed) == numbers(copied)


def test_an_iteration_that_has_begun_keeps_its_epoch(folder):
    stream = ShardStream(folder, batch_size=10)
    expected, under_way = numbers(stream), iter(stream)
    stream.set_epoch(1)
    assert numbers(under_way) == expected != numbers(stream)


def test_damage_names_the_shard(folder):
    flipped = bytearray((folder / "shard-00002.bin").read_bytes())
    flipped[17] ^= 4
    (folder / "shard-00002.bin").write_bytes(flipped)
    (folder / "shard-00004.bin").write_bytes(b"short")
    (folder / "shard-00006.bin").unlink()
    first, second, third = damage(folder)
    assert first.startswith("shard-00002.bin") and "sha256" in first
    assert second == "shard-00004.bin holds 5 bytes instead of 40"
    assert third == "shard-00006.bin is missing"


def test_a_truncated_or_missing_shard_stops_the_reader(folder):
    (folder / "shard-00004.bin").write_bytes(bytes(37))
    with pytest.raises(ValueError, match=r"shard-00004\.bin ends early: the manifest says 40 bytes"):
        list(ShardStream(folder))
    (folder / "shard-00004.bin").unlink()
    with pytest.raises(FileNotFoundError, match="shard-00004"):
        list(ShardStream(folder))


NONSENSE = {
    "no JSON": lambda m: "{",
    "a list": lambda m: "[]",
    "a number": lambda m: "3",
    "empty": lambda m: "",
    "no shards": lambda m: json.dumps(m | {"shards": []}),
    "shards are a word": lambda m: json.dumps(m | {"shards": "all"}),
    "no record size": lambda m: json.dumps({"shards": m["shards"]}),
    "a size in words": lambda m: json.dumps(m | {"record_bytes": "4"}),
    "a size of nothing": lambda m: json.dumps({"record_bytes": 0, "shards": [m["shards"][0] | {"bytes": 0}]}),
    "twice the same": lambda m: json.dumps(m | {"shards": 2 * m["shards"][:1]}),
}
ENTRIES = {
    "samples": (0, -1, 2.5, "10", True, None),
    "bytes": (39, "40", None),
    "sha256": ("", "xyz", 64 * "g", 5),
    "file": ("../secret", "/etc/passwd", "a/b", "a\\b", "", ".", "..", 3, "shard-00000.bin\n"),
}


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE)
def test_a_manifest_that_makes_no_sense_is_refused(folder, text):
    (folder / MANIFEST).write_text(text(json.loads((folder / MANIFEST).read_text())))
    for use in (read_manifest, damage, ShardStream):
        with pytest.raises(ValueError, match=r"manifest\.json is no manifest"):
            use(folder)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ENTRIES.items() for value in values])
def test_an_entry_that_makes_no_sense_is_refused(folder, key, value):
    edit(folder, lambda manifest: manifest["shards"][3].update({key: value}))
    with pytest.raises(ValueError, match=r"manifest\.json is no manifest"):
        read_manifest(folder)


def test_a_missing_manifest_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        ShardStream(tmp_path)


@pytest.mark.parametrize("records", [[[1]], np.zeros((3, 4)), np.zeros(3, np.uint8), RECORDS[:0], RECORDS[:, :0]])
def test_records_that_are_none_are_refused(tmp_path, records):
    with pytest.raises(TypeError, match=r"records is a .*: a uint8 array .* is needed"):
        write_shards(tmp_path, records, 10)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_shards_of_no_size_are_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"shard_samples={size}: a whole number of at least 1 is needed"):
        write_shards(tmp_path, RECORDS, size)


WRONG = {"rank": (-1, 2, 0.5), "world_size": (0, "2"), "batch_size": (0, 1.5), "buffer": (0, None), "seed": (-1,)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_stream_names_the_argument_that_is_wrong(folder, name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}: a .* is needed"):
        ShardStream(folder, **{"world_size": 2} | {name: value})


@pytest.mark.parametrize("wrong", [{"epoch": -1}, {"epoch": 0.5}, {"epoch": 0, "skip_batches": -2}])
def test_an_epoch_that_is_none_is_refused(folder, wrong):
    with pytest.raises(ValueError, match=r"=.*: a whole number of at least 0 is needed"):
        ShardStream(folder).set_epoch(**wrong)


def test_mapped_records_take_any_index_and_travel_without_the_map(tmp_path):
    (tmp_path / "all.bin").write_bytes(RECORDS.tobytes())
    mapped = MappedRecords(tmp_path / "all.bin", 4, transform=torch.from_numpy)
    assert len(mapped) == 103
    assert mapped[[5, 2]].tolist() == RECORDS[[5, 2]].tolist() and mapped[-1].tolist() == RECORDS[-1].tolist()
    mapped[0].fill_(9)  # a copy: the file is as it was
    assert mapped[0].tolist() == RECORDS[0].tolist()
    assert len(pickle.dumps(mapped)) < 1000
    assert pickle.loads(pickle.dumps(mapped))[7].tolist() == RECORDS[7].tolist()
    sampler = RankSampler(103, 0, 1, batch_size=10)
    feed = DataLoader(mapped, sampler=sampler, batch_size=None, num_workers=2, multiprocessing_context=context())
    assert sorted(chain(*numbers(feed))) == list(range(103))


@pytest.mark.parametrize("size", [0, 10])
def test_a_file_of_another_size_is_refused(tmp_path, size):
    (tmp_path / "all.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"all\.bin holds {size} bytes"):
        MappedRecords(tmp_path / "all.bin", 4)


def test_augmented_turns_and_shrinks():
    side = torch.linspace(0, 255, 84).round().byte()
    records = torch.cat([torch.tensor([3], dtype=torch.uint8), side.repeat(84)]).repeat(5, 1)
    x, y = augmented(records.numpy(), degrees=0)
    assert x.shape == (5, 1, 28, 28) and x.dtype == torch.float32 and y.tolist() == [3] * 5
    exact = torch.nn.functional.avg_pool2d(records[:, 1:].float().view(-1, 1, 84, 84) / 255, 3)
    assert (x - exact).abs().max() < 1e-5
    turned = [augmented(records, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(turned[0], turned[1]) and not torch.equal(turned[0], turned[2])
    assert all((a - b).abs().max() > 0.01 for a, b in pairwise(turned[0])), "each picture has an angle of its own"
    assert augmented(records[:0])[0].shape == (0, 1, 28, 28)


@pytest.mark.parametrize("shape", [(5, 10), (5, 16), (17,), (5, 1), (5, 0)])
def test_augmented_refuses_what_is_no_picture(shape):
    with pytest.raises(ValueError, match=r"uint8 of shape .* is needed|a divisor of .* is needed"):
        augmented(torch.zeros(shape, dtype=torch.uint8), size=2)
    with pytest.raises(ValueError, match=r"records=torch\.float32 of shape \(5, 10\): uint8"):
        augmented(torch.zeros(5, 10))
