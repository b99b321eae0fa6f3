"""Records in files: shards with a manifest, for many ranks and workers, and one mapped file.

A record is a fixed number of bytes. Reading never runs anything: bytes, and JSON for the manifest.
"""

import hashlib
import json
import re
from math import ceil
from numbers import Integral
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

MANIFEST = "manifest.json"


def write_shards(folder, records, shard_samples):
    """Write `records` to files of `shard_samples` each (the last may be smaller), then the manifest; returns it.

    folder: an existing one. records: uint8 array (N, record_bytes), N ≥ 1.
    The manifest comes last: a folder without one is unfinished. Raises TypeError, ValueError. Lesson 09.
    """
    if not isinstance(records, np.ndarray) or records.dtype != np.uint8 or records.ndim != 2 or not records.size:
        told = f"{records.dtype} {records.shape}" if isinstance(records, np.ndarray) else type(records).__name__
        raise TypeError(f"records must be a uint8 array (N, record_bytes) with N ≥ 1, not {told}")
    if not isinstance(shard_samples, Integral) or shard_samples < 1:
        raise ValueError(f"shard_samples must be an int of at least 1, not {shard_samples!r}")
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
    """The manifest in `folder`: {"record_bytes", "shards": [{"file", "samples", "bytes", "sha256"}, …]}, checked.

    Raises FileNotFoundError without one, ValueError for one that makes no sense. Lesson 09.
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
    """What is wrong with the shards in `folder`: a list of sentences that name the file, empty if all is sound.

    Reads every byte. Raises as `read_manifest`. Lesson 09.
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
    """Batches of records out of shards, dealt to ranks and to the workers of each: every record once an epoch.

        all shards in a line, in an order drawn from (seed, epoch);
        reader i of n takes the records  i·N // n  to  (i+1)·N // n  of the line,   n = world_size · num_workers

    Shares differ by at most one record, also where readers are more than shards. A reader shuffles within windows of
    `buffer` batches, and holds one window in memory. All readers give equally many batches: the last ones may be
    short or empty.

    Iterating yields uint8 arrays (≤ batch_size, record_bytes). batch_size: of one reader. shuffle: False keeps the
    order. by_worker: False gives every worker of a DataLoader the whole share of its rank: a mistake to look at.
    `opens` and `bytes_read` count what this copy has read. Raises ValueError; FileNotFoundError for a missing shard.
    Differs from `RankSampler`, which deals single samples of a data set with random access. Lesson 09.
    """

    def __init__(self, folder, rank=0, world_size=1, batch_size=64, buffer=8, shuffle=True, seed=0, by_worker=True):
        least = {"rank": (rank, 0), "seed": (seed, 0)}
        least |= {"world_size": (world_size, 1), "batch_size": (batch_size, 1), "buffer": (buffer, 1)}
        for name, (value, low) in least.items():
            if not isinstance(value, Integral) or value < low:
                raise ValueError(f"{name} must be an int of at least {low}, not {value!r}")
        if rank >= world_size:
            raise ValueError(f"rank must be below world_size={world_size}, not {rank}")
        self.folder, self.rank, self.world_size, self.batch_size = Path(folder), rank, world_size, batch_size
        self.buffer, self.shuffle, self.seed, self.by_worker = buffer, shuffle, seed, by_worker
        self.manifest = read_manifest(folder)
        self.epoch = self.skip_batches = self.opens = self.bytes_read = 0

    def set_epoch(self, epoch, skip_batches=0):
        """Choose the epoch that comes next, from its batch `skip_batches` on: what was skipped is not read."""
        for name, value in (("epoch", epoch), ("skip_batches", skip_batches)):
            if not isinstance(value, Integral) or value < 0:
                raise ValueError(f"{name} must be an int of at least 0, not {value!r}")
        self.epoch, self.skip_batches = epoch, skip_batches

    def __iter__(self):
        info = get_worker_info() if self.by_worker else None
        workers = info.num_workers if info else 1  # they take turns in giving a batch, from worker 0 on
        worker = (info.id + self.skip_batches) % workers if info else 0
        reader, readers = self.rank * workers + worker, self.world_size * workers
        shards, random = self.manifest["shards"], (self.seed, self.epoch)
        if self.shuffle:
            shards = [shards[k] for k in np.random.default_rng(random).permutation(len(shards))]
        total, size = sum(shard["samples"] for shard in shards), self.batch_size
        start, stop = reader * total // readers, (reader + 1) * total // readers
        first = max(0, ceil((self.skip_batches - worker) / workers))
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
    """One file of records, mapped into memory: only pages that are touched are read. Takes any index of NumPy's.

    transform: applied to what an index gives; a function that worker processes can import. A copy that goes to
    another process opens the map there. Raises ValueError for a size that doesn't fit. Lesson 09.
    """

    def __init__(self, path, record_bytes, transform=None):
        self.path, self.record_bytes, self.transform, self._map = Path(path), record_bytes, transform, None
        size = self.path.stat().st_size
        if size == 0 or size % record_bytes:
            raise ValueError(f"{self.path.name} holds {size} bytes: not a number of records of {record_bytes}")
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
