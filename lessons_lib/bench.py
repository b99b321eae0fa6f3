"""Side-by-side measurements: this library and what one would use instead, in the same run, as ratios.

Both sides of a row take turns of a few milliseconds in the same processes, so that whatever else the machine does hits
both. A ratio is the median of the ratios of neighbouring turns; its spread is their middle half.
"""

import gc
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .comm.block import Block
from .comm.factory import meet, meeting_bytes
from .devices import machine_line
from .launch import launch
from .losses import cross_entropy
from .models import SimpleCNN, mlp
from .optim import Adam
from .parallel import DataParallel
from .schedules import Links, ring, simulate

KB, MB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Row:
    """One line of the table: `ratio` and its middle half (`low`, `high`) in the sense that `goal` is put in."""

    work: str
    peer: str
    ours_s: float
    theirs_s: float
    ratio: float
    low: float
    high: float
    goal: str


def main(quick=False):
    """Run all measurements (a minute with `quick`, ten without) and print them as a table; the rows."""
    print(machine_line())
    rows = []
    for make in tqdm(list(measurements(quick)), leave=False):
        rows += make()
    width = max(len(row.work) for row in rows)
    print(f"{'work':{width}}  {'peer':24}  {'ours':>9}  {'peer':>9}  {'ratio':>6}  middle half    goal")
    for r in rows:
        times = f"{_time(r.ours_s):>9}  {_time(r.theirs_s):>9}"
        print(f"{r.work:{width}}  {r.peer:24}  {times}  {r.ratio:6.2f}  {r.low:5.2f}..{r.high:<6.2f} {r.goal}")
    return rows


def save(rows, path, command):
    """Write rows as JSON, with the machine, the day and the command that they came from: data for a figure."""
    source = {"machine": machine_line(), "date": date.today().isoformat(), "command": command}
    text = json.dumps({**source, "rows": [asdict(row) for row in rows]}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")


def measurements(quick):
    """The functions that measure, each giving a list of rows."""
    few = 4 if quick else 1
    yield partial(start_ranks, repeats=2 if quick else 5)
    for world_size in (2, 4):
        for size_bytes in (64 * KB, MB, 16 * MB, 64 * MB):
            yield partial(all_reduce, world_size, size_bytes, max(8, 40 // few))
        for size_bytes in (4 * MB, 16 * MB):
            yield partial(ring_over_gloo, world_size, size_bytes, 40 // few)
        for model in MODELS[: 2 if world_size == 4 else 3]:
            yield partial(
                training_step, *model, world_size, *((60 // few, 20) if "MLP" in model[0] else (24 // few, 1))
            )
    for model in MODELS:
        yield partial(weak_scaling, *model, *((60 // few, 20) if "MLP" in model[0] else (24 // few, 1)))
    yield partial(adam_step, 60 // few)
    yield partial(simulated_ring, (64, 256) if quick else (64, 256, 1024))
    yield partial(predicted_all_reduce, 60 // few)


MODELS = (
    ("MLP 64-128-10", partial(mlp, [64, 128, 10]), (64,), 32),
    ("MLP 784-100-10", partial(mlp, [784, 100, 10]), (784,), 64),
    ("SimpleCNN", SimpleCNN, (1, 28, 28), 64),
)


def compared(work, peer, ours_s, theirs_s, goal, inverse=False):
    """A `Row` of two lists of times measured in turns. ratio: theirs / ours, or ours / theirs if `inverse`."""
    pairs = list(zip(ours_s, theirs_s, strict=True))[1:]
    ratios = [ours / theirs if inverse else theirs / ours for ours, theirs in pairs]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Row(work, peer, statistics.median(ours_s), statistics.median(theirs_s), ratio, low, high, goal)


def take_turns(comm, repeats, *sides, calls=1):
    """Time the functions of `sides` in turns, all ranks starting together: a list of times (s) for each side.

    A turn is `calls` calls in a row, as training makes them; its time is that of one call.
    """
    times = [[] for _ in sides]
    for _ in range(repeats):
        for side, took_s in zip(sides, times, strict=True):
            comm.barrier()
            start_s = time.perf_counter()
            for _ in range(calls):
                side()
            took_s.append((time.perf_counter() - start_s) / calls)
    return times


def slowest(results):
    """Of what each rank measured, the time of the slowest rank in every turn."""
    return [[max(turn) for turn in zip(*side, strict=True)] for side in zip(*results, strict=True)]


def shared_memory(comm):
    """A second communicator for the ranks of `comm`, over shared memory, so that both can take turns."""
    name = torch.zeros(256, dtype=torch.uint8)
    if comm.rank == 0:
        block = Block(meeting_bytes("shared_memory", comm.world_size))
        name[: len(block.name)] = torch.tensor(list(block.name.encode()), dtype=torch.uint8)
    comm.broadcast(name)
    meeting_place = bytes(name.tolist()).rstrip(b"\0").decode()
    return meet("shared_memory", comm.rank, comm.world_size, meeting_place, start_timeout_s=60.0, timeout_s=60.0)


# --- the rows ---------------------------------------------------------------------------------------------------------


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
    work = f"all-reduce, {_size(size_bytes)}, {world_size} ranks"
    rows = [compared(work, f"gloo (torch {_version()})", ours_s, gloo_s, ">= 5")]
    if world_size == 2 and size_bytes == 64 * MB:
        rows.append(compared(work, "one memcpy by each rank", ours_s, copy_s, "<= 1.3", inverse=True))
    return rows


def ring_over_gloo(world_size, size_bytes, repeats):
    def fn(comm):
        x = torch.zeros(size_bytes // 4)
        sides = (lambda: comm.all_reduce(x), lambda: dist.all_reduce(x))
        return take_turns(comm, repeats, *sides, calls=16 * MB // size_bytes)

    ours_s, gloo_s = slowest(launch(fn, world_size=world_size, transport="torch", algorithm="ring"))
    work = f"own ring over gloo messages, {_size(size_bytes)}, {world_size} ranks"
    return [compared(work, f"gloo (torch {_version()})", ours_s, gloo_s, ">= 0.9")]


def _trainer(model, shape, batch):
    """A function that does one training step of `model`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = torch.rand(batch, *shape), torch.randint(0, 10, (batch,))

    def step():
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def training_step(name, make, shape, batch, world_size, repeats, calls=1):
    def fn(comm):
        inner = shared_memory(comm)
        ours = _trainer(DataParallel(make(), inner), shape, batch)
        ddp = _trainer(DistributedDataParallel(make()), shape, batch)
        return take_turns(inner, repeats, ours, ddp, calls=calls)

    ours_s, ddp_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    goal = ">= 1.08" if name == "SimpleCNN" else ">= 2" if world_size == 2 else ">= 3"
    return [compared(f"step of {name}, batch {batch}, {world_size} ranks", "DDP over gloo", ours_s, ddp_s, goal)]


def weak_scaling(name, make, shape, batch, repeats, calls=1):
    def fn(comm):
        sides = _trainer(DataParallel(make(), comm), shape, batch), _trainer(make(), shape, batch)
        return take_turns(comm, repeats, *sides, calls=calls)

    ours_s, alone_s = slowest(launch(fn, world_size=2))
    goal = ">= 0.85" if name == "SimpleCNN" else ">= 0.95"
    return [compared(f"weak scaling of {name}, 2 ranks", "the step without the others", ours_s, alone_s, goal)]


def adam_step(repeats):
    def fn(comm):
        sides = []
        for optimizer in (Adam, torch.optim.Adam):
            model = mlp([784, 100, 10])
            model(torch.rand(8, 784)).sum().backward()
            sides.append(optimizer(model.parameters()).step)
        return take_turns(comm, repeats, *sides, calls=20)

    ours_s, theirs_s = slowest(launch(fn, world_size=1))
    return [compared("Adam step, MLP 784-100-10", "torch.optim.Adam", ours_s, theirs_s, "<= 1.25", inverse=True)]


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
                f"predict an all-reduce, {_size(size)}, 2 ranks",
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


def _size(size_bytes):
    return f"{size_bytes // MB} MB" if size_bytes >= MB else f"{size_bytes // KB} KB"


def _time(time_s):
    return (
        f"{time_s:.2f} s" if time_s >= 1 else f"{time_s * 1e3:.2f} ms" if time_s >= 1e-3 else f"{time_s * 1e6:.0f} µs"
    )


def _version():
    return torch.__version__.split("+")[0]
