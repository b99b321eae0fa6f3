"""What a device really does: a few short runs, medians of their times."""

from dataclasses import dataclass
from math import inf
from statistics import median
from time import perf_counter

import torch

from .probe import probe


@dataclass(frozen=True)
class Measurement:
    """The measured speeds of one device.

    Attributes:
        device: what torch calls it.
        flops_per_s: operations per second in a large matrix product, which has 2 n³ of them.
        memory_Bps: bytes read plus written per second, in a large copy.
        launch_s: how much longer it takes with one small operation more.
        to_device_Bps, from_device_Bps: bytes per second from the memory of the host and back; inf for the CPU.
        round_trip_s: how long it takes to bring one number there, add to it and have the answer back, less launch_s; 0
            for the CPU.
    """

    device: str
    flops_per_s: float
    memory_Bps: float
    launch_s: float
    to_device_Bps: float = inf
    from_device_Bps: float = inf
    round_trip_s: float = 0.0

    def __str__(self):
        text = f"{self.device}: {_short(self.flops_per_s)}FLOP/s, memory {_short(self.memory_Bps)}B/s, "
        text += f"{self.launch_s * 1e6:.1f} µs an operation"
        if self.round_trip_s:
            text += f", copies {_short(self.to_device_Bps)}B/s in and {_short(self.from_device_Bps)}B/s out"
            text += f", {self.round_trip_s * 1e6:.0f} µs a round trip"
        return text


def measure(device="cpu", dtype=torch.float32):
    """Measure one device in well under a second on an idle machine. Takes up to 1 GB there (0.2 GB on the CPU).

    The CPU is measured with the number of threads that torch uses now. Copies are of ordinary (pageable) memory.
    Lesson 07.

    Args:
        device: a `Device`, a torch.device or its name.
        dtype: the dtype of the matrix product.

    Returns:
        A `Measurement`.

    Raises:
        ValueError: the device is not there.
    """
    asked, names = str(getattr(device, "name", device)), [device.name for device in probe()]
    name = asked if asked in names else f"{asked}:0"
    if name not in names:
        raise ValueError(f"device={asked!r}: one of {', '.join(names)} is needed")
    device = torch.device(name)
    launch_s = _launch_s(device)
    transfers = _transfer_speeds(device, launch_s) if device.type != "cpu" else ()
    return Measurement(name, _matmul_flops_per_s(device, dtype), _memory_Bps(device), launch_s, *transfers)


def _matmul_flops_per_s(device, dtype, long_enough_s=4e-3):
    """Grow the matrices until one product takes a while, since small ones don't fill the device."""
    n, time_s = 128, 0.0
    while time_s < long_enough_s and n < 8192:
        n *= 2
        a, b = torch.randn(2, n, n, device=device, dtype=dtype)
        time_s = _seconds(lambda a=a, b=b: a @ b, device, repeats=1)
    return 2 * n**3 / _seconds(lambda: a @ b, device)


def _memory_Bps(device):
    source = torch.ones((64 if device.type == "cpu" else 256) * 2**18, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def _transfer_speeds(device, launch_s):
    here, one = torch.ones(8 * 2**20), torch.ones(1)
    there = here.to(device)
    to_device_Bps = here.nbytes / _seconds(lambda: here.to(device), device)
    from_device_Bps = here.nbytes / _seconds(lambda: there.to("cpu"), device)
    round_trip_s = _seconds(lambda: (one.to(device) + 1).to("cpu"), device, repeats=21)
    return to_device_Bps, from_device_Bps, max(round_trip_s - launch_s, 0.0)


def _launch_s(device, count=200):
    x = torch.zeros(1, device=device)
    return _seconds(lambda: [x.add_(1) for _ in range(count)], device) / count


def _seconds(run, device, repeats=5):
    """Median time of `run()` until the device has finished it, after one run that doesn't count."""
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(perf_counter() - start)
    return median(times[1:])


def _short(value):
    """1.23e10 as "12.3 G", ready for a unit."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
