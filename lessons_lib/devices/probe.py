"""What this machine has: cores, memory, the limits of the container around us, and accelerators."""

import math
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True)
class Device:
    """A place where tensors can live and be worked on.

    Attributes:
        name: what torch calls it, such as "cpu" or "cuda:0".
        description: what its maker calls it.
        memory_bytes: all that is built in, or None where the backend does not say.
        logical_cores, physical_cores: those of the machine, for the CPU only; the physical ones may be unknown.
        usable_cores: how many of these affinity and the quota of the container leave us; it may be a fraction.
        memory_limit_bytes: the limit of the container, or None.
        shared_memory_bytes: the size of the file system for shared memory, or None.
    """

    name: str
    description: str
    memory_bytes: int | None
    logical_cores: int | None = None
    physical_cores: int | None = None
    usable_cores: float | None = None
    memory_limit_bytes: int | None = None
    shared_memory_bytes: int | None = None


def probe():
    """The devices of this machine, as a list of `Device`: the CPU first, then what `torch.accelerator` reports.

    That covers cuda, rocm (named cuda), mps, xpu, and backends that register themselves, such as npu. Lesson 07.
    """
    return [_cpu(), *_accelerators()]


def usable_cores(root="/"):
    """Count the cores that this process may keep busy: its affinity or the container's quota, rounded up."""
    return max(1, math.ceil(_usable_cores(root)))


def cgroup_limits(root="/"):
    """Read the limits that a container sets, which is a Linux control group of version 1 or 2.

    The tightest limit holds, of our group and those around it.

    Args:
        root: where the file system starts; tests have another one.

    Returns:
        (cores, memory_bytes), each None where there is no limit.
    """
    cores, memory = [], []
    for group in _groups(Path(root)):  # a file of the other version reads as ""
        version_1 = " ".join(_read(group / f"cpu.cfs_{each}_us") for each in ("quota", "period"))
        quota, _, period = (_read(group / "cpu.max") or version_1).partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            cores.append(int(quota) / int(period))
        memory += [_read(group / "memory.max"), _read(group / "memory.limit_in_bytes")]
    # version 1 says "no limit" with a number near 2⁶³
    limits = [int(text) for text in memory if text.isdigit() and int(text) < 2**60]
    return min(cores, default=None), min(limits, default=None)


def memory_left(root="/"):
    """Say how many bytes may still be taken before the memory of this machine or a container around us is full.

    The part of the container's file cache that nobody has used of late counts as free: it makes room when needed.

    Args:
        root: as for `cgroup_limits`.
    """
    left = [psutil.virtual_memory().available]
    for group in _groups(Path(root)):
        for names in (("max", "current", "inactive_file"), ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")):
            limit, used = (_read(group / f"memory.{name}") for name in names[:2])
            if limit.isdigit() and used.isdigit():
                cache = re.search(rf"^{names[2]} (\d+)", _read(group / "memory.stat"), re.MULTILINE)
                left.append(int(limit) - int(used) + (int(cache[1]) if cache else 0))
    return max(0, min(left))


def out_of_memory_kills(root="/"):
    """Count the processes of our control groups that were ended because memory ran out; None if nobody counts them."""
    texts = [_read(group / name) for group in _groups(Path(root)) for name in ("memory.events", "memory.oom_control")]
    counts = re.findall(r"^oom_kill (\d+)", "\n".join(texts), re.MULTILINE)
    return sum(map(int, counts)) if counts else None


def _groups(root):
    """The folder of every control group we are in, and of those around it."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)  # version 2 names no controllers
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            yield (root / "sys/fs/cgroup" / controllers).joinpath(*parts[:depth])


def _read(path):
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _usable_cores(root="/"):
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _ = cgroup_limits(root)
    return affinity if quota is None else min(affinity, quota)


def _cpu():
    model = re.search(r"^model name\s*: (.+)", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    memory_bytes, (_, limit) = psutil.virtual_memory().total, cgroup_limits()
    shared_memory = Path("/dev/shm")
    return Device(
        "cpu",
        model[1].strip() if model else platform.processor() or platform.machine(),
        memory_bytes,
        logical_cores=os.cpu_count(),
        physical_cores=psutil.cpu_count(logical=False),
        usable_cores=_usable_cores(),
        memory_limit_bytes=limit if limit is not None and limit < memory_bytes else None,
        shared_memory_bytes=shutil.disk_usage(shared_memory).total if shared_memory.is_dir() else None,
    )


def _accelerators():
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator().type
    backend, devices = torch.get_device_module(kind), []
    for index in range(torch.accelerator.device_count()):
        properties = backend.get_device_properties(index) if hasattr(backend, "get_device_properties") else None
        memory_bytes = getattr(properties, "total_memory", None)
        if properties is None and hasattr(backend, "recommended_max_memory"):
            memory_bytes = backend.recommended_max_memory()
        devices.append(Device(f"{kind}:{index}", getattr(properties, "name", kind), memory_bytes))
    return devices
