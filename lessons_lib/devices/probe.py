"""What this machine has: cores, memory, the limits of the container around us, and accelerators."""

import math
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True)
class Device:
    """A place where tensors can live and be worked on.

    name: what torch calls it, such as "cpu" or "cuda:0". description: what its maker calls it.
    memory_bytes: all that is built in, or None where the backend doesn't say.
    The rest is known of the CPU alone. logical_cores, physical_cores: of the machine (physical may be unknown).
    usable_cores: of those, what affinity and the container's quota leave us; a quota may be a fraction.
    memory_limit_bytes: the container's, None without. shared_memory_bytes: size of the file system for it.
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
    """Cores this process may keep busy: its affinity, cut by the container's quota, rounded up; at least 1."""
    return max(1, math.ceil(_usable_cores(root)))


def cgroup_limits(root="/"):
    """Limits that a container (a Linux control group, version 1 or 2) sets: (cores or None, memory_bytes or None).

    root: where the file system starts; another one in tests. The tightest of our group and those around it holds.
    """
    root = Path(root)
    cores, memory = [], []
    for version, controllers, group in _groups(root):
        if version == 2:
            quota, *period = _read(group / "cpu.max").split() or ["max"]
            memory.append(_read(group / "memory.max"))
        else:
            quota = _read(group / "cpu.cfs_quota_us") if "cpu" in controllers else ""
            period = [_read(group / "cpu.cfs_period_us")]
            memory.append(_read(group / "memory.limit_in_bytes") if "memory" in controllers else "")
        if quota.isdigit() and period and period[0].isdigit() and int(period[0]) > 0:
            cores.append(int(quota) / int(period[0]))
    # version 1 says "no limit" with a number near 2⁶³
    limits = [int(text) for text in memory if text.isdigit() and int(text) < 2**60]
    return min(cores, default=None), min(limits, default=None)


def _groups(root):
    """(version, controllers, folder) of every control group we are in, and of those around it."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if number != "0":
            mount = mount / controllers
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            yield 2 if number == "0" else 1, controllers.split(","), mount.joinpath(*parts[:depth])


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
    model = [line for line in _read(Path("/proc/cpuinfo")).splitlines() if line.startswith("model name")]
    description = model[0].split(":", 1)[1].strip() if model else platform.processor() or platform.machine()
    memory_bytes = psutil.virtual_memory().total
    _, limit = cgroup_limits()
    shared_memory = Path("/dev/shm")
    return Device(
        "cpu",
        description,
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
    backend = torch.get_device_module(kind)
    devices = []
    for index in range(torch.accelerator.device_count()):
        description, memory_bytes = kind, None
        if hasattr(backend, "get_device_properties"):
            properties = backend.get_device_properties(index)
            description = getattr(properties, "name", kind)
            memory_bytes = getattr(properties, "total_memory", None)
        elif hasattr(backend, "recommended_max_memory"):
            memory_bytes = backend.recommended_max_memory()
        devices.append(Device(f"{kind}:{index}", description, memory_bytes))
    return devices
