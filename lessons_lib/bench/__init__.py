"""Side-by-side measurements: this library and what one would use instead, in the same run, as ratios.

Both sides of a row take turns of a few milliseconds in the same processes, so that whatever else the machine does hits
both. A ratio is the median of the ratios of neighbouring turns; its spread is their middle half.
"""

import json
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..devices import machine_line
from . import checkpoints, context, cost, messages, pipelines, serving, sharded, tensor, tokens, training
from .turns import KB, MB, Row, compared

__all__ = [
    "Row",
    "compared",
    "cost",
    "main",
    "measurements",
    "messages",
    "pipelines",
    "save",
    "serving",
    "sharded",
    "tensor",
    "tokens",
    "training",
]


def main(quick=False):
    """Run all measurements (a minute with `quick`; without, about four, and 4 GB); print them as a table. The rows."""
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
    yield partial(messages.start_ranks, repeats=2 if quick else 5)
    for world_size in (2, 4):
        for size_bytes in (64 * KB, MB, 16 * MB, 64 * MB):
            yield partial(messages.all_reduce, world_size, size_bytes, max(8, 40 // few))
        for size_bytes in (4 * MB, 16 * MB):
            yield partial(messages.ring_over_gloo, world_size, size_bytes, 40 // few)
        for size_bytes in (64 * KB, MB, 16 * MB):
            yield partial(context.all_to_all, world_size, size_bytes, max(8, 40 // few))
        for work in training.MODELS[: 2 if world_size == 4 else 3]:
            yield partial(training.shared_memory_step, work, world_size, work.repeats // few)
        yield partial(training.shared_memory_step, training.MODELS[0], world_size, 40 // few, num_busy=2)
    for work in training.MODELS:
        yield partial(training.gloo_step, work, 2, work.repeats // few)
    for work in training.MODELS[1:]:
        yield partial(training.power_sgd_step, work, 2, work.repeats // few)
    for work in training.MODELS:
        yield partial(training.weak_scaling, work, work.repeats // few)
    for world_size in (2, 4):
        yield partial(tensor.column_row_pair, world_size, 128, 64, max(8, 40 // few))
    yield partial(training.adam_step, 60 // few)
    yield partial(messages.simulated_ring, (64, 256) if quick else (64, 256, 1024, 4096))
    yield partial(messages.predicted_all_reduce, 60 // few)
    for num_ranks in (2, 4):
        yield partial(pipelines.one_f_one_b_step, num_ranks, 60 // few)
    for world_size in (2, 4):
        for name in ("SimpleCNN", "GPT"):
            yield partial(sharded.sharded_optimizer_step, name, world_size, 24 // few)
        yield partial(sharded.fully_sharded_step, world_size, 24 // few)
    for world_size in (1, 2):
        yield partial(checkpoints.stall, world_size, max(3, 12 // few))
    yield partial(pipelines.predicted_steps, max(2, 8 // few))
    yield partial(cost.predicted_plans, max(4, 20 // few))
    yield partial(tokens.tokens_a_second, tokens.TEN_MILLION, max(4, 12 // few))
    yield partial(serving.concurrent_requests, serving.SERVED, 64 // few, max(2, 8 // few))


def _time(time_s):
    return (
        f"{time_s:.2f} s" if time_s >= 1 else f"{time_s * 1e3:.2f} ms" if time_s >= 1e-3 else f"{time_s * 1e6:.0f} µs"
    )
