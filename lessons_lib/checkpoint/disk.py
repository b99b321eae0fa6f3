"""Files that are whole or not there, and a folder that is believed only if every byte of it is right (lesson 21)."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import safetensors.torch

MANIFEST, PARTIAL, OLD = "manifest.json", ".partial", ".old"


class BrokenCheckpoint(Exception):
    """A checkpoint that is not what was written: torn, cut off, changed, or with a file missing, which is named."""


def write_file(path, data):
    """Write bytes so that a file of this name has all of them, whatever happens on the way."""
    beside = path.with_name(path.name + PARTIAL)
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def sync_folder(folder):
    """Bring the names in a folder to the disk, where the system can."""
    if os.name != "nt":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_part(folder, rank, tensors, values):
    """Write what one rank keeps, and then that it is there: its sizes and checksums."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    rest = {"values": values, "order": [*tensors, *values]}  # safetensors keep no order
    files = {f"rank-{rank}.safetensors": safetensors.torch.save(tensors), f"rank-{rank}.json": _json(rest)}
    for name, data in files.items():
        write_file(folder / name, data)
    sums = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    write_file(folder / f"rank-{rank}.done", _json(sums))


def finish(partial, folder, about, num_ranks):
    """When all ranks have written their parts: write the manifest last, and give the folder its name."""
    files = {}
    for rank in range(num_ranks):
        done = partial / f"rank-{rank}.done"
        files |= json.loads(done.read_bytes())
        done.unlink()
    about = {**about, "files": files}
    write_file(partial / MANIFEST, _json({**about, "sha256": hashlib.sha256(_json(about)).hexdigest()}))
    old = folder.with_name(folder.name + OLD)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(folder.parent)


def put_back(folder):
    """Give checkpoints in `folder` their names again that were to be replaced by others that did not come."""
    for old in folder.glob(f"*{OLD}"):
        place = old.with_name(old.name.removesuffix(OLD))
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, place)


def read(folder):
    """The manifest and all that the ranks kept: (about, a list of {name: tensor or value}, one per rank).

    Raises:
        BrokenCheckpoint: the folder is not whole.
    """
    folder = Path(folder)
    about = _manifest(folder)
    parts = []
    for rank in range(about["world_size"]):
        tensors = _checked(folder, f"rank-{rank}.safetensors", about["files"])
        rest = json.loads(_checked(folder, f"rank-{rank}.json", about["files"]))
        entries = {**safetensors.torch.load(tensors), **rest["values"]}
        parts.append({name: entries[name] for name in rest["order"]})
    return about, parts


def _manifest(folder):
    try:
        text = (folder / MANIFEST).read_bytes()
        about = json.loads(text)
        own = about.pop("sha256")
        if hashlib.sha256(_json(about)).hexdigest() != own:
            raise ValueError("its checksum does not fit")
        return about
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BrokenCheckpoint(f"{folder.name}/{MANIFEST} cannot be read: {error}") from error


def _checked(folder, name, files):
    try:
        data, expected = (folder / name).read_bytes(), files[name]
    except (OSError, KeyError) as error:
        raise BrokenCheckpoint(f"{folder.name}/{name} cannot be read: {error}") from error
    if len(data) != expected["bytes"]:
        raise BrokenCheckpoint(f"{folder.name}/{name} has {len(data)} bytes, {expected['bytes']} were written")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise BrokenCheckpoint(f"{folder.name}/{name} has changed since it was written: its checksum does not fit")
    return data


def _json(value):
    return json.dumps(value, sort_keys=True).encode()
