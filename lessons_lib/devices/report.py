"""Describe this machine in one line, and on one page: without host name, user name and path, as pages are public."""

import platform
from collections import Counter

import torch

from .probe import probe, usable_cores


def machine_line():
    """Describe this machine in one line, such as "2 cores, 24 GB memory (limit 2 GB), no accelerator, torch 2.13.0"."""
    cpu, *accelerators = probe()
    limit = f" (limit {gigabytes(cpu.memory_limit_bytes)})" if cpu.memory_limit_bytes else ""
    counts = Counter(device.description for device in accelerators)
    names = ", ".join(f"{n} × {name}" if n > 1 else name for name, n in counts.items()) or "no accelerator"
    version = torch.__version__.partition("+")[0]
    return f"{_cores(cpu)}, {gigabytes(cpu.memory_bytes)} memory{limit}, {names}, torch {version}"


def report(measurements=()):
    """Describe this machine on one page, for people; GB are 10⁹ bytes.

    Args:
        measurements: a list of what `measure` returned, to be shown as well.
    """
    cpu, *accelerators = probe()
    limit = f", of which the container may use {gigabytes(cpu.memory_limit_bytes)}" if cpu.memory_limit_bytes else ""
    lines = [
        ("system", f"{platform.system()}, Python {platform.python_version()}"),
        ("torch", torch.__version__.replace("+", ", build ")),
        ("cpu", f"{cpu.description}, {torch.backends.cpu.get_cpu_capability()}"),
        ("cores", f"{_cores(cpu)} ({cpu.physical_cores or 'unknown'} physical, {cpu.logical_cores} logical)"),
        ("memory", gigabytes(cpu.memory_bytes) + limit),
    ]
    if cpu.shared_memory_bytes is not None:
        lines.append(("shared memory", f"{gigabytes(cpu.shared_memory_bytes)} as a file system"))
    for device in accelerators:
        memory = f", {gigabytes(device.memory_bytes)} memory" if device.memory_bytes else ""
        lines.append((device.name, device.description + memory))
    if not accelerators:
        lines.append(("accelerator", "none; everything here also runs on the CPU"))
    lines += [("measured", str(measurement)) for measurement in measurements]
    threads = _plural(max(1, usable_cores() // 4), "thread")
    lines.append(("lessons use", f"up to 4 ranks: processes on the CPU, {threads} each"))
    there = ("gloo", "nccl", "xccl", "mpi") if torch.distributed.is_available() else ()
    backends = [f"torch ({b})" for b in there if getattr(torch.distributed, f"is_{b}_available")()]
    lines.append(("transports", ", ".join(["shared_memory", *backends])))
    return "\n".join(f"{name:15}{text}" for name, text in lines)


def _cores(cpu):
    if cpu.usable_cores != cpu.logical_cores:
        return f"{cpu.usable_cores:.3g} of {_plural(cpu.logical_cores, 'core')}"
    return _plural(cpu.usable_cores, "core")


def _plural(count, noun):
    return f"{count:.3g} {noun}" + ("" if count == 1 else "s")


def gigabytes(size_bytes):
    """A size in words, such as "1.5 GB"; GB are 10⁹ bytes."""
    size = size_bytes / 1e9
    return f"{size:.0f} GB" if size >= 10 else f"{size:.1f} GB" if size >= 0.1 else f"{size * 1e3:.0f} MB"
