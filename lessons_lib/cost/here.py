"""The constants of the machine that this runs on, measured by its own ranks."""

from statistics import median
from time import perf_counter

import torch

from ..devices import measure, memory_left
from ..errors import check_whole
from ..parallel.wrapped import check_communicator
from ..schedules import Links
from .shapes import Cluster

_SMALL, _LARGE, _PRODUCT = 2**10, 2**22, 64  # bytes of two messages; the side of small matrices


def measure_here(comm, repeats=11, watts=0.0, price=0.0):
    """Measure what the ranks of `comm` reach when all of them work at once: a `Cluster`, the same on every rank.

    FLOP/s from a large matrix product, `half_flops` from a small one, memory from a copy, and α and β of the links from
    an all-reduce of 1 KiB and one of 4 MiB. Takes about a second on an idle machine, with 0.2 GB per rank.

    Args:
        comm: a `Communicator`. One rank alone has links that cost nothing.
        repeats: how often messages and small products are timed; the median counts.
        watts, price: of each rank, which cannot be measured here.

    Communication: all-reduces; all ranks must call it.
    """
    check_communicator(comm)
    check_whole("repeats", repeats, 1)
    comm.barrier()
    device = measure("cpu")
    small = torch.ones(_PRODUCT, _PRODUCT)
    product_s = _median_s(lambda: small @ small, repeats)
    half_flops = max(0.0, product_s * device.flops_per_s - 2 * _PRODUCT**3)
    latency_s, second_per_byte = _alpha_beta(comm, repeats) if comm.world_size > 1 else (0.0, 0.0)
    own = [device.flops_per_s, device.memory_Bps, half_flops, latency_s, second_per_byte, memory_left()]
    means = torch.tensor(own, dtype=torch.float64)
    comm.all_reduce(means, op="mean")
    flops, memory_Bps, half_flops, latency_s, second_per_byte, left = means.tolist()
    links = Links(latency_s, 1 / second_per_byte) if second_per_byte else Links()
    return Cluster(comm.world_size, flops, left / comm.world_size, memory_Bps, links, half_flops, watts, price)


def _alpha_beta(comm, repeats):
    """α and 1/β for which a ring of 2 (N-1)(α + M/(Nβ)) takes what both all-reduces took."""
    turns, sizes = 2 * (comm.world_size - 1), (_SMALL, _LARGE)
    tensors = [torch.zeros(size // 4) for size in sizes]
    small_s, large_s = (_median_s(lambda each=each: comm.all_reduce(each), repeats) / turns for each in tensors)
    second_per_byte = max(1e-15, (large_s - small_s) * comm.world_size / (_LARGE - _SMALL))
    return max(0.0, small_s - second_per_byte * _SMALL / comm.world_size), second_per_byte


def _median_s(run, repeats):
    times = []
    for _ in range(repeats + 1):  # the first is a warm-up
        start_s = perf_counter()
        run()
        times.append(perf_counter() - start_s)
    return median(times[1:])
