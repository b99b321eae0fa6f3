"""What it takes to start ranks, to reduce a tensor, and to foretell both."""

import gc
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from ..launch import launch
from ..schedules import Links, ring, simulate
from .turns import GLOO, KB, MB, Row, compared, in_words, shared_memory, slowest, take_turns


def start_ranks(repeats):
    def fn(comm):
        comm.all_reduce(torch.ones(3))

    launch(fn, world_size=4)
    ours_s, theirs_s = [], []
    for _ in range(repeats):
        for run, times in ((partial(launch, fn, world_size=4), ours_s), (_spawn, theirs_s)):
            start_s = time.perf_counter()
            run()
            times.append(time.perf_counter() - start_s)
    return [compared("four ranks to the first all-reduce", "torch.multiprocessing.spawn", ours_s, theirs_s, ">= 20")]


def _spawn():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_spawned, (str(Path(folder) / "store"),), nprocs=4)


def _spawned(rank, store):
    dist.init_process_group("gloo", store=dist.FileStore(store, 4), rank=rank, world_size=4)
    dist.all_reduce(torch.ones(3))
    dist.barrier()
    dist.destroy_process_group()


def all_reduce(world_size, size_bytes, repeats):
    def fn(comm):
        inner, own = shared_memory(comm), torch.zeros(size_bytes // 4)
        shared, target = inner.buffer(size_bytes // 4), torch.zeros(size_bytes // 4)
        sides = (lambda: inner.all_reduce(shared), lambda: dist.all_reduce(own), lambda: target.copy_(own))
        return take_turns(inner, repeats, *sides, calls=max(1, min(50, 16 * MB // size_bytes)))

    ours_s, gloo_s, copy_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    work = f"all-reduce, {in_words(size_bytes)}, {world_size} ranks"
    rows = [compared(work, GLOO, ours_s, gloo_s, ">= 5")]
    if world_size == 2 and size_bytes == 64 * MB:
        rows.append(compared(work, "one memcpy by each rank", ours_s, copy_s, "<= 1.3", inverse=True))
    return rows


def ring_over_gloo(world_size, size_bytes, repeats):
    def fn(comm):
        x = torch.zeros(size_bytes // 4)
        sides = (lambda: comm.all_reduce(x), lambda: dist.all_reduce(x))
        return take_turns(comm, repeats, *sides, calls=16 * MB // size_bytes)

    ours_s, gloo_s = slowest(launch(fn, world_size=world_size, transport="torch", algorithm="ring"))
    work = f"own ring over gloo messages, {in_words(size_bytes)}, {world_size} ranks"
    return [compared(work, GLOO, ours_s, gloo_s, ">= 0.9")]


def simulated_ring(world_sizes):
    """The time a message costs in the simulator, against that in the smallest ring."""
    per_message_s, rows = None, []
    for world_size in world_sizes:
        took_s = min(_simulated_s(world_size) for _ in range(5 if world_size <= 256 else 1))
        messages = 2 * world_size * (world_size - 1)
        per_message_s = per_message_s or took_s / messages
        ratio = took_s / (messages * per_message_s)
        work = f"simulate a ring of {world_size} ranks"
        rows.append(
            Row(
                work, f"{world_sizes[0]} ranks, a message", took_s, messages * per_message_s, ratio, ratio, ratio, "~ 1"
            )
        )
    return rows


def _simulated_s(world_size):
    gc.collect()  # what earlier rows have left is not this one's work
    start_s = time.perf_counter()
    simulate(ring(world_size), 64e6, Links(20e-6, 1e9), spans=False)
    return time.perf_counter() - start_s


def predicted_all_reduce(repeats):
    """α and β fitted on some sizes of all-reduce, held against others: predicted over measured."""
    sizes = [64 * KB * 2**k for k in range(10)]

    def fn(comm):
        buffer = comm.buffer(sizes[-1] // 4)
        sides = [partial(comm.all_reduce, buffer[: size // 4]) for size in sizes]
        return [statistics.median(times) for times in take_turns(comm, repeats, *sides)]

    measured_s = [max(times) for times in zip(*launch(fn, world_size=2, algorithm="ring"), strict=True)]
    alpha_s, beta_s = fit_line(sizes[::2], measured_s[::2])
    rows = []
    for size, took_s in list(zip(sizes, measured_s, strict=True))[1::2]:
        predicted_s = alpha_s + beta_s * size
        ratio = predicted_s / took_s
        rows.append(
            Row(
                f"predict an all-reduce, {in_words(size)}, 2 ranks",
                "measured",
                predicted_s,
                took_s,
                ratio,
                ratio,
                ratio,
                "0.8..1.2",
            )
        )
    return rows


def fit_line(sizes, times_s):
    """α and β of times_s ≈ α + β · sizes, by least squares on the relative error."""
    weights = 1 / torch.tensor(times_s, dtype=torch.float64)
    columns = torch.stack([weights, weights * torch.tensor(sizes, dtype=torch.float64)], dim=1)
    return torch.linalg.lstsq(columns, torch.ones(len(sizes), 1, dtype=torch.float64)).solution.flatten().tolist()
