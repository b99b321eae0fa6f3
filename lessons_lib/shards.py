"""Records in files: shards with a manifest, for many ranks and workers, and one mapped file.

A record is a fixed number of bytes. Reading never runs anything: bytes, and JSON for the manifest.
"""

import hashlib
import json
import re
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .errors import check_whole

MANIFEST = "manifest.json"


def write_shards(folder, records, shard_samples):
    """Write `records` to files of `shard_samples` each (the last may be smaller), then the manifest. Lesson 09.

    The manifest comes last: a folder without one is unfinished.

    Args:
        folder: an existing one.
        records: uint8 array (N, record_bytes), N ≥ 1.
        shard_samples: records per file.

    Returns:
        The manifest, as `read_manifest` gives it.

    Raises:
        TypeError: `records` is another thing.
        ValueError: `shard_samples` is no whole number of at least 1.
    """
    if not isinstance(records, np.ndarray) or records.dtype != np.uint8 or records.ndim != 2 or not records.size:
        told = f"{records.dtype} array {records.shape}" if isinstance(records, np.ndarray) else type(records).__name__
        raise TypeError(f"records is a {told}: a uint8 array (N, record_bytes) with N ≥ 1 is needed")
    check_whole("shard_samples", shard_samples, 1)
    manifest = {"record_bytes": records.shape[1], "shards": []}
    for start in range(0, len(records), shard_samples):
        part = records[start : start + shard_samples].tobytes()
        name = f"shard-{len(manifest['shards']):05}.bin"
        entry = {"file": name, "samples": len(part) // records.shape[1], "bytes": len(part)}
        manifest["shards"].append(entry | {"sha256": hashlib.sha256(part).hexdigest()})
        Path(folder, name).write_bytes(part)
    Path(folder, MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def read_manifest(folder):
    """Read and check the manifest in `folder`. Lesson 09.

    Returns:
        {"record_bytes": …, "shards": [{"file": …, "samples": …, "bytes": …, "sha256": …}, …]}

    Raises:
        FileNotFoundError: there is none.
        ValueError: it makes no sense.
    """
    try:
        manifest = json.loads(Path(folder, MANIFEST).read_text(encoding="utf-8"))
        size, shards = manifest["record_bytes"], manifest["shards"]
        for shard in shards:
            sound = shard["samples"] >= 1 and size >= 1 and shard["bytes"] == shard["samples"] * size
            sound = (
                sound and re.fullmatch(r"\w[\w.-]*", shard["file"]) and re.fullmatch(r"[0-9a-f]{64}", shard["sha256"])
            )
            if not sound or not all(type(number) is int for number in (size, shard["samples"], shard["bytes"])):
                raise ValueError(f"the entry {shard} makes no sense")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{MANIFEST} is no manifest: {type(error).__name__}: {error}") from None
    if not shards or len({shard["file"] for shard in shards}) < len(shards):
        raise ValueError(f"{MANIFEST} is no manifest: it needs at least one shard, each named once")
    return manifest


def damage(folder):
    """Read every byte of the shards in `folder`, and say what is wrong with them. Lesson 09.

    Returns:
        A list of sentences that name the file; empty if all is sound.

    Raises:
        FileNotFoundError, ValueError: as `read_manifest`.
    """
    found = []
    for shard in read_manifest(folder)["shards"]:
        path = Path(folder, shard["file"])
        if not path.is_file():
            found.append(f"{shard['file']} is missing")
        elif (size := path.stat().st_size) != shard["bytes"]:
            found.append(f"{shard['file']} holds {size} bytes instead of {shard['bytes']}")
        else:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
            if digest.hexdigest() != shard["sha256"]:
                found.append(f"{shard['file']} does not have the sha256 of the manifest")
    return found


class ShardStream(IterableDataset):
    """Deal batches of records to ranks and to the workers of each, every record once per epoch. Lesson 09.

        all shards in a line, in an order drawn from (seed, epoch);
        reader i of n takes the records  i·N // n  to  (i+1)·N // n  of the line,   n = world_size · num_workers

    Shares differ by at most one record, also where readers are more than shards. A reader shuffles within windows of
    `buffer` batches, and holds one window in memory. All readers give equally many batches: the last ones may be
    short or empty. Iterating yields uint8 arrays (≤ batch_size, record_bytes); a DataLoader takes them as they are
    with batch_size=None. `opens` and `bytes_read` count what this copy has read.
    Differs from `RankSampler`, which deals single samples of a data set with random access.

    Args:
        folder: holds the shards and their manifest.
        rank, world_size: who reads, of how many.
        batch_size: records per batch of one reader.
        buffer: batches per window.
        shuffle: draw the orders from (seed, epoch); otherwise records come as they lie.
        seed: of the orders.
        by_worker: False gives every worker of a DataLoader the whole share of its rank: a mistake to look at.

    Raises:
        ValueError: an argument is no whole number, or too small or large; while reading, a shard ends early.
        FileNotFoundError: the manifest, or while reading a shard, is missing.
    """

    def __init__(self, folder, rank=0, world_size=1, batch_size=64, buffer=8, shuffle=True, seed=0, by_worker=True):
        least = {"rank": (rank, 0), "seed": (seed, 0)}
        least |= {"world_size": (world_size, 1), "batch_size": (batch_size, 1), "buffer": (buffer, 1)}
        for name, (value, low) in least.items():
            check_whole(name, value, low)
        if rank >= world_size:
            raise ValueError(f"rank={rank}: a rank from 0 to {world_size - 1} is needed")
        self.folder, self.rank, self.world_size, self.batch_size = Path(folder), rank, world_size, batch_size
        self.buffer, self.shuffle, self.seed, self.by_worker = buffer, shuffle, seed, by_worker
        self.manifest = read_manifest(folder)
        self.opens = self.bytes_read = 0
        # (epoch, skip_batches) lie in shared memory: workers that outlive an epoch keep their first copy of all else.
        self._start = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._start.share_memory_()  # a copy has a memory of its own; a worker's is already that of its loader

    @property
    def epoch(self):
        """The epoch that the next iteration reads."""
        return int(self._start[0])

    @property
    def skip_batches(self):
        """How many batches of it the next iteration leaves out."""
        return int(self._start[1])

    def set_epoch(self, epoch, skip_batches=0):
        """Choose the epoch that comes next, from its batch `skip_batches` on: what was skipped is not read.

        It reaches the workers of a DataLoader, also persistent ones. Each looks when its epoch begins, so call this
        between epochs, not while the batches of one come.

        Raises:
            ValueError: an argument is no whole number of at least 0.
        """
        check_whole("epoch", epoch, 0)
        check_whole("skip_batches", skip_batches, 0)
        self._start.copy_(torch.tensor([epoch, skip_batches]))

    def __iter__(self):
        return self._batches(self.epoch, self.skip_batches)

    def _batches(self, epoch, skip_batches):
        info = get_worker_info() if self.by_worker else None
        workers = info.num_workers if info else 1  # they take turns in giving a batch, from worker 0 on
        worker = (info.id + skip_batches) % workers if info else 0
        reader, readers = self.rank * workers + worker, self.world_size * workers
        shards, random = self.manifest["shards"], (self.seed, epoch)
        if self.shuffle:
            shards = [shards[k] for k in np.random.default_rng(random).permutation(len(shards))]
        total, size = sum(shard["samples"] for shard in shards), self.batch_size
        start, stop = reader * total // readers, (reader + 1) * total // readers
        first = max(0, ceil((skip_batches - worker) / workers))
        for step in range(first, ceil(total / readers / size)):
            window, at = divmod(step, self.buffer)
            if at == 0 or step == first:
                begin = start + window * self.buffer * size
                line = np.arange(begin, min(begin + self.buffer * size, stop))
                if self.shuffle:
                    np.random.default_rng((*random, reader, window)).shuffle(line)
                held = self._read(shards, line[at * size :])
            yield held[:size]
            held = held[size:]

    def _read(self, shards, line):
        """The records at these places of the line of `shards`, each run of neighbours in one read."""
        size, ends = self.manifest["record_bytes"], np.cumsum([shard["samples"] for shard in shards])
        records, places = np.empty((len(line), size), np.uint8), np.argsort(line)
        of_shard = np.searchsorted(ends, line[places], side="right")
        for k in np.unique(of_shard):
            shard, mine = shards[k], places[of_shard == k]
            rows = line[mine] - (ends[k] - shard["samples"])
            with open(self.folder / shard["file"], "rb", buffering=0) as file:
                self.opens += 1
                for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) > 1) + 1):
                    file.seek(int(rows[run[0]]) * size)
                    block = file.read(len(run) * size)
                    if len(block) < len(run) * size:
                        raise ValueError(f"{shard['file']} ends early: the manifest says {shard['bytes']} bytes")
                    self.bytes_read += len(block)
                    records[mine[run]] = np.frombuffer(block, np.uint8).reshape(-1, size)
        return records


class MappedRecords(Dataset):
    """Map one file of records into memory: only pages that are touched are read. Takes any index of NumPy's. Lesson 09.

    A copy that goes to another process opens the map there.

    Args:
        path: the file.
        record_bytes: size of a record.
        transform: applied to what an index gives; a function that worker processes can import.

    Raises:
        ValueError: the file does not hold a whole number of records, at least one.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path, record_bytes, transform=None):
        check_whole("record_bytes", record_bytes, 1)
        self.path, self.record_bytes, self.transform, self._map = Path(path), record_bytes, transform, None
        size = self.path.stat().st_size
        if size == 0 or size % record_bytes:
            raise ValueError(
                f"{self.path.name} holds {size} bytes: a whole number of records of {record_bytes} is needed"
            )
        self._length = size // record_bytes

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r").reshape(-1, self.record_bytes)
        records = np.array(self._map[index])
        return self.transform(records) if self.transform else records

    def __getstate__(self):
        return self.__dict__ | {"_map": None}
