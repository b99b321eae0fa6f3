"""Lesson 09: right answers written another way, and wrong answers beyond the listed mistakes."""

import math
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, pairwise
from queue import Empty, Full, Queue

import numpy as np


def by_array_split(samples, rank, world_size, worker, num_workers):
    places = [(shard, k) for shard, count in enumerate(samples) for k in range(count)]
    mine = np.array_split(np.arange(len(places)), world_size * num_workers)[rank * num_workers + worker]
    parts = []
    for shard, group in groupby((places[k] for k in mine), key=lambda place: place[0]):
        rows = [k for _, k in group]
        parts.append((shard, rows[0], rows[-1] + 1))
    return parts


def workers_outside(samples, rank, world_size, worker, num_workers):
    """Numbers the readers the other way round: worker 0 of all ranks first."""
    i, n, ends = worker * world_size + rank, world_size * num_workers, np.cumsum(samples)
    a, b = (int(k * ends[-1] // n) for k in (i, i + 1))
    parts = []
    while a < b:
        shard = int(np.searchsorted(ends, a, side="right"))
        first = int(ends[shard]) - samples[shard]
        stop = min(b, int(ends[shard]))
        parts.append([shard, a - first, stop - first])
        a = stop
    return parts


def opens_every_file(samples, rank, world_size, worker, num_workers):
    parts = {
        shard: (start, stop) for shard, start, stop in by_array_split(samples, rank, world_size, worker, num_workers)
    }
    return [(shard, *parts.get(shard, (0, 0))) for shard in range(len(samples))]


def last_shard_forgotten(samples, rank, world_size, worker, num_workers):
    return by_array_split(samples[:-1], rank, world_size, worker, num_workers)


def with_a_queue_that_gives_up(source, depth):
    queue, left, end = Queue(depth), threading.Event(), object()

    def put(*message):
        while not left.is_set():
            try:
                queue.put(message, timeout=0.02)
                break
            except Full:
                pass

    def load():
        try:
            for item in source:
                put(None, item)
                if left.is_set():
                    return
        except Exception as error:
            put(error, None)
        else:
            put(None, end)

    threading.Thread(target=load, daemon=True).start()
    try:
        while True:
            error, item = queue.get()
            if error:
                raise error
            if item is end:
                return
            yield item
    finally:
        left.set()


def with_a_pool(source, depth):
    items, end = iter(source), object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, items, end))
            yield item


def gives_up_after_a_while(source, depth):
    """Ends where nothing has come for a tenth of a second, and takes an error for that too."""
    queue = Queue(depth)

    def load():
        for item in source:
            queue.put(item)

    threading.Thread(target=load, daemon=True).start()
    while True:
        try:
            yield queue.get(timeout=0.3)
        except Empty:
            return


def two_too_many(source, depth):
    yield from with_a_pool(source, depth + 2)


def by_arrays(spans, num_workers):
    lanes = np.array([lane for lane, *_ in spans])
    times = np.array([(start, end) for _, start, end in spans])
    load, step = (np.diff(times[lanes == lane]).mean() for lane in ("loader", "device"))
    of_device = times[lanes == "device"]
    idle = np.ptp(of_device) - np.diff(of_device).sum()
    return "device" if load <= num_workers * step else "loader", float(idle), max(math.ceil(load / step), 1)


def by_gaps(spans, num_workers):
    ordered = sorted(spans, key=lambda span: span[1])
    steps = [span for span in ordered if span[0] == "device"]
    batches = [span for span in ordered if span[0] == "loader"]
    idle_s = sum(after[1] - before[2] for before, after in pairwise(steps))
    step_s = sum(end - start for _, start, end in steps) / len(steps)
    batch_s = sum(end - start for _, start, end in batches) / len(batches)
    enough = 1
    while batch_s / enough > step_s:
        enough += 1
    return ["loader" if enough > num_workers else "device", idle_s, enough]


def only_which(spans, num_workers):
    return by_gaps(spans, num_workers)[0]


def longest(spans, num_workers):
    _, idle_s, enough = by_gaps(spans, num_workers)
    return max(spans, key=lambda span: span[2] - span[1])[0], idle_s, enough


alternatives = {
    "deal": [by_array_split, workers_outside],
    "prefetch": [with_a_queue_that_gives_up, with_a_pool],
    "bottleneck": [by_arrays, by_gaps],
}
wrong = {
    "deal": [opens_every_file, last_shard_forgotten],
    "prefetch": [gives_up_after_a_while, two_too_many],
    "bottleneck": [only_which, longest],
}
