"""Exercises of lesson 09: deal a manifest to workers, prefetch without hanging, find the bottleneck."""

import math
import queue
import statistics
import threading
import time
from collections import Counter
from random import Random
from unittest.mock import ANY

from lessons_lib.exercises.compare import not_whole
from lessons_lib.exercises.core import Exercise, Outcome, edit

# --- deal: every sample once over ranks and workers ------------------------------------------------------------------


def deal(samples, rank, world_size, worker, num_workers):
    """The parts of shards that one worker of one rank reads: a list of (shard, start, stop).

    samples: how many samples each shard holds, from the manifest; may be 0.
    A part (s, a, b) is samples a to b − 1 of shard s.
    world_size: number of ranks. num_workers: of each rank; `worker` counts from 0 on every rank.
    Over all workers of all ranks every sample comes exactly once, and shares differ by one
    sample at most. Each part is a file to open: all workers together have fewer than
    len(samples) + world_size · num_workers.
    """
    reader, readers = rank * num_workers + worker, world_size * num_workers
    start, stop = reader * sum(samples) // readers, (reader + 1) * sum(samples) // readers
    parts, before = [], 0  # before: samples of the shards in front of this one
    for shard, count in enumerate(samples):
        a, b = max(start - before, 0), min(stop - before, count)
        if a < b:
            parts.append((shard, a, b))
        before += count
    return parts


def _whole_shards(samples, rank, world_size, worker, num_workers):
    """Whole shards are as unequal as shards are, and some readers get none. A part may begin and end inside a shard:
    deal samples, and look up which shards they are in."""
    reader, readers = rank * num_workers + worker, world_size * num_workers
    return [(shard, 0, samples[shard]) for shard in range(reader, len(samples), readers)]


def _one_by_one(samples, rank, world_size, worker, num_workers):
    """Right, but each sample is a part of its own, and a file is opened for each. Give every reader samples that lie
    side by side."""
    reader, readers = rank * num_workers + worker, world_size * num_workers
    line = [(shard, k, k + 1) for shard, count in enumerate(samples) for k in range(count)]
    return line[reader::readers]


def _deal_to_all(fn, samples, world_size, num_workers):
    readers = [(rank, worker) for rank in range(world_size) for worker in range(num_workers)]
    Random(0).shuffle(readers)  # what a reader gets does not depend on who has asked before
    asked = [*readers, *reversed(readers)]
    answers = [[tuple(part) for part in fn(samples, r, world_size, w, num_workers)] for r, w in asked]
    parts, again = answers[: len(readers)], answers[: len(readers) - 1 : -1]
    numbers = [number for each in parts for part in each for number in part]
    inside = [[(s, a, b) for s, a, b in each if 0 <= s < len(samples) and 0 <= a <= b <= samples[s]] for each in parts]
    times = Counter((s, k) for each in inside for s, a, b in each for k in range(int(a), int(b)))
    shares, opens = [sum(b - a for _, a, b in each) for each in parts], sum(map(len, parts))
    value = {
        "numbers that are not whole": sum(bool(not_whole(number)) for number in numbers),
        "parts that reach beyond their shard": opens - sum(map(len, inside)),
        "samples read more than once": sum(number > 1 for number in times.values()),
        "samples read by nobody": sum(samples) - len(times),
        "largest share minus smallest": max(shares) - min(shares),
        "parts are others when asked for again": again != parts,
    }
    return Outcome(value, {"files opened beyond those needed": max(0, opens - len(samples) - len(readers) + 1)})


def _deal_cases():
    cases = [([4, 4, 4, 4], 2, 1), ([90, 90, 90, 47], 2, 3), ([7, 7, 3], 2, 4), ([2, 1], 3, 2), ([5, 0, 8, 3], 2, 2)]
    draw = Random(0)
    for world_size in (1, 2, 3, 6, 7):
        for num_workers in (1, draw.randint(2, 4)):
            samples = [draw.choice([0, 1, 2, 5, 12, 13, 29]) for _ in range(draw.randint(1, 6))]
            cases.append((samples, world_size, num_workers))
    edges = [([11], 1, 1), ([0, 0], 2, 1), ([1009, 5], 6, 1), ([30, 31], 7, 2)]  # in floats, 14 * (61 / 14) < 61
    return cases + edges


deal = Exercise(
    deal,
    _deal_cases,
    outcome=_deal_to_all,
    mistakes=[
        edit(
            "rank * num_workers + worker, world_size * num_workers",
            "rank, world_size",
            "All workers of a rank read the same share, so a rank sees each of its samples num_workers times. The "
            "readers are the workers: there are world_size · num_workers of them.",
        ),
        edit(
            "rank * num_workers + worker, world_size * num_workers",
            "worker, num_workers",
            "Worker 0 of every rank reads the same samples: your shares depend on `worker` alone. Number the workers "
            "through over all ranks.",
        ),
        edit(
            "reader * sum(samples) // readers, (reader + 1) * sum(samples) // readers",
            "reader * (sum(samples) // readers), (reader + 1) * (sum(samples) // readers)",
            "The division leaves a rest, and nobody reads it. Cut at reader · N // readers: the cuts follow each "
            "other, and the last is N.",
        ),
        edit(
            "reader * sum(samples) // readers, (reader + 1) * sum(samples) // readers",
            "sum(samples) // readers * reader, sum(samples) // readers * (reader + 1)",
            "    parts, before",
            "    stop = sum(samples) if reader == readers - 1 else stop\n    parts, before",
            "The whole rest of the division goes to one reader, for which all others wait. Spread it: cut at "
            "reader · N // readers.",
        ),
        _whole_shards,
        _one_by_one,
        edit(
            "(shard, a, b)",
            "(shard, before + a, before + b)",
            "`start` and `stop` count from the beginning of their shard, not of the whole line: subtract the samples "
            "of the shards before.",
        ),
    ],
    hints=[
        "Number the workers of all ranks from 0 to n − 1, and lay all shards in a line of N samples. Which stretch of "
        "the line is the i-th of n?",
        "From i · N // n to (i + 1) · N // n. Shard s lies in the line from sum(samples[:s]) on.",
        "For each shard: a = max(start − before, 0), b = min(stop − before, count); a part only if a < b.",
    ],
)


# --- prefetch: load ahead, in order, bounded, without hanging --------------------------------------------------------


def prefetch(source, depth):
    """Yield the items of `source`, which a thread takes ahead of whoever uses them.

    source: an iterable; taking an item is work, and may raise. Any value may be an item, also None.
    depth: at least 1. At most so many items lie ready, and the thread holds one more.
    Nothing is taken before the first item is asked for. Items keep their order. An error of `source` is
    raised here, after the items before it. When the generator is closed early (`close()`, or `break` in
    the loop over it), the thread ends too.
    """
    places, ready, left = threading.Semaphore(depth), queue.SimpleQueue(), threading.Event()

    def load():
        kind, value = "end", None
        try:
            for item in source:
                places.acquire()
                if left.is_set():
                    return
                ready.put(("item", item))
        except Exception as error:
            kind, value = "error", error
        ready.put((kind, value))

    threading.Thread(target=load, daemon=True).start()
    try:
        while (got := ready.get())[0] == "item":
            places.release()
            yield got[1]
        if got[0] == "error":
            raise got[1]
    finally:
        left.set()
        places.release()


def _no_thread(source, depth):
    """Nothing is loaded while the consumer works: it is all one thread. Start a `Thread` that goes through `source`,
    and hand items over through a queue."""
    yield from source


def _everything_first(source, depth):
    """`list` loads the whole source before the first item comes out: nothing overlaps, and memory holds a whole
    epoch."""
    yield from list(source)


class _Source:
    """An iterable that counts what is taken, fails at item `fails_at`, and needs `pause_s` for its third item."""

    def __init__(self, num_items, fails_at, pause_s):
        self.num_items, self.fails_at, self.pause_s = num_items, fails_at, pause_s
        self.taken, self.threads, self.changed = 0, set(), threading.Condition()

    def __iter__(self):
        strange = None, 0, ValueError("an item"), ("end", None), ("error", 1), StopIteration, ANY  # equal to everything
        for k in range(self.num_items):
            time.sleep(self.pause_s if k == 2 else 0)
            with self.changed:
                self.threads.add(threading.current_thread())
                if k == self.fails_at:
                    raise KeyError("this record cannot be decoded")
                self.taken += 1
                self.changed.notify_all()
            yield strange[k // 2 % len(strange)] if k % 2 else 10 * k

    def reaches(self, count, within_s):
        """Whether `count` items (or all there are) are taken; waits for it only if a thread is there to take them."""
        count = min(count, self.num_items if self.fails_at is None else self.fails_at)
        with self.changed:
            if self.threads <= {threading.current_thread()}:
                return self.taken >= count
            return self.changed.wait_for(lambda: self.taken >= count, within_s)


def _consume(fn, source, depth, leaves_after, seen):
    """Use `fn` as a training loop does; pause at the first item, and before leaving, to see how far it loads ahead."""
    try:
        threads, items = threading.active_count(), fn(source, depth)
        seen["begins"] = source.taken > 0 or threading.active_count() > threads
        if leaves_after == 0:
            return items.close()
        for item in items:
            seen["items"].append(repr(item))
            if len(seen["items"]) == 1:
                seen["filled"] = source.reaches(1 + depth, within_s=2)
            if source.fails_at is not None or (len(seen["items"]) == 1 and source.num_items > 8):
                time.sleep(0.02)  # as long as the item is in use, it may load too far, or fail
            if len(seen["items"]) == 1:
                seen["ahead"] = min(source.taken - 1, depth + 2)
            if len(seen["items"]) == leaves_after:
                source.reaches(leaves_after + depth + 1, within_s=0.05)  # then the thread waits for a place
                return items.close()
    except Exception as error:
        seen["error"] = f"{type(error).__name__}: {error}"


def _watched(fn, num_items, depth, fails_at=None, leaves_after=None, pause_s=0):
    source, hook, before = _Source(num_items, fails_at, pause_s), threading.excepthook, threading.enumerate()
    seen = {"items": [], "error": None, "filled": True, "ahead": 0, "begins": False}
    user = threading.Thread(target=_consume, args=(fn, source, depth, leaves_after, seen), daemon=True)
    before.append(user)
    threading.excepthook = lambda args: None  # errors that an answer leaves in its thread: the verdict tells of them
    try:
        user.start()
        for _ in range(500):  # until it is done, or waits for a thread that has ended
            user.join(0.02)
            if not user.is_alive() or (source.threads and not any(thread.is_alive() for thread in source.threads)):
                break
        user.join(0.5)
        hangs, loaders = user.is_alive(), [thread for thread in threading.enumerate() if thread not in before]
        for thread in () if hangs else loaders:
            thread.join(1)
    finally:
        threading.excepthook = hook
    value = {
        "waits for ever": hangs,
        "begins before an item is asked for": seen["begins"],
        "fills its places while the first item is in use": seen["filled"],
        "items": list(seen["items"]),
        "error that arrives": seen["error"],
        "threads left behind": 0 if hangs else sum(thread.is_alive() for thread in loaders),
        "goes on loading when left": source.taken > (num_items if leaves_after is None else leaves_after + depth + 2),
    }
    return Outcome(value, {"items loaded ahead of the one in use": seen["ahead"]})


prefetch = Exercise(
    prefetch,
    cases=[
        (14, 3),
        (9, 2, 5),
        (9, 2, None, 2),
        (0, 2),
        (2, 4),
        (9, 4, 3),
        (3, 2, 0),
        (9, 1, None, 1),
        (4, 3, None, 0),
        (1, 1),
        (5, 1, None, None, 0.15),
        (11, 1),
    ],
    outcome=_watched,
    may_be_cheaper=True,  # the thread need not hold one more; that the places are filled is part of the value
    mistakes=[
        _no_thread,
        _everything_first,
        edit(
            "places.acquire()",
            "pass",
            "Without a limit a fast loader fills the memory. A queue with `maxsize`, or a semaphore, makes it wait for "
            "a free place.",
        ),
        edit(
            'kind, value = "error", error',
            "raise",
            "An error ends your thread, and the consumer waits for ever for an item. Catch it there, send it through "
            "the queue, and raise it here.",
        ),
        edit(
            'kind, value = "error", error',
            "pass",
            "An error looks like the end of the data: the epoch is short and nobody learns why. Send the error itself.",
        ),
        edit(
            "left.set()\n        places.release()",
            "pass",
            "When the consumer leaves early, your thread waits for ever for a free place, and keeps its items in "
            "memory. A `finally:` round the `yield` can tell it to end.",
        ),
        edit(
            '[0] == "item":',
            '[1] is not None and got[0] == "item":',
            "You take None for the end, but None may be an item. Use a mark that no source can contain: an `object()` "
            "of your own, or pairs (kind, value).",
        ),
    ],
    hints=[
        "The loader of the lesson is a start. What happens in it if `source` raises, and if the consumer stops early?",
        'Put pairs into the queue: ("item", x), ("error", e) and ("end", None). The consumer looks at the first.',
        "A thread that waits in `queue.put` cannot be told to stop. Let it wait for a free place instead: "
        "`places = threading.Semaphore(depth)`; acquire before putting, release after getting.",
        "In a `finally:` round the loop that yields: `left.set(); places.release()`. The thread looks at `left` after "
        "each `acquire`.",
    ],
)


# --- bottleneck: what the run waits for ------------------------------------------------------------------------------


def bottleneck(spans, num_workers):
    """What a run waits for: (which, idle_s, enough).

    spans: measured, in any order: ("loader", start_s, end_s) for each batch that a worker made,
        ("device", start_s, end_s) for each step. There may be more batches than steps.
    num_workers: how many workers the run had; each makes whole batches.
    which: "loader" if the workers together need longer for a batch, on the mean, than the device
        for a step, else "device".
    idle_s: seconds without a step from the beginning of the first step to the end of the last.
    enough: the least number of workers (1 or more) that keep up with the device, by the same means.
    """
    load_s = statistics.mean(end - start for lane, start, end in spans if lane == "loader")
    steps = [(start, end) for lane, start, end in spans if lane == "device"]
    busy_s = sum(end - start for start, end in steps)
    idle_s = max(end for _, end in steps) - min(start for start, _ in steps) - busy_s
    compute_s = busy_s / len(steps)
    which = "loader" if load_s / num_workers > compute_s else "device"
    return which, idle_s, max(1, math.ceil(load_s / compute_s))


def _pipeline(load_s, compute_s, num_workers, steps, made):
    """Spans of a run by the rule: workers take turns, the device takes batches in order; milliseconds as /1024 s."""
    free, spans, device = [0.0] * num_workers, [], 0.0
    for k in range(made):
        start = free[k % num_workers]
        free[k % num_workers] = start + load_s[k % len(load_s)]
        spans.append(("loader", start, free[k % num_workers]))
        if k < steps:
            begin = max(device, free[k % num_workers])
            device = begin + compute_s
            spans.append(("device", begin, device))
    return sorted(spans, key=lambda span: (span[2], span[0]))


def _irregular(draw):
    """(spans, num_workers) of no rule, shuffled, with no ratio so close to a whole number that rounding decides."""
    ratio, num_workers = 0, draw.randint(1, 4)
    while not 0.05 < ratio % 1 < 0.95:
        spans = []
        for lane, longest in (("loader", draw.choice([4, 32, 128])), ("device", 32)):
            clock = 1000.0
            for _ in range(draw.randint(1, 6)):
                start = clock + draw.randint(0, 32) / 64
                clock = start + draw.randint(1, longest) / 64
                spans.append((lane, start, clock))
        draw.shuffle(spans)
        load_s, step_s = (statistics.mean(b - a for lane, a, b in spans if lane == x) for x in ("loader", "device"))
        ratio = load_s / step_s
    return spans, num_workers


def _bottleneck_cases():
    hiccup = [0.125, 0.125, 0.125, 1.5]
    draw = Random(0)
    return [
        (_pipeline([0.5], 0.25, 1, steps=4, made=4), 1),
        (_pipeline([0.5], 0.375, 2, steps=4, made=6), 2),
        (_pipeline([0.75, 1.25], 0.375, 2, steps=4, made=8), 2),
        (_pipeline([0.125], 0.5, 1, steps=3, made=3), 1),
        (_pipeline([1.0], 0.5, 2, steps=4, made=4), 2),
        (_pipeline([1.0], 0.25, 3, steps=6, made=6), 3),
        (_pipeline([1.125], 0.5, 4, steps=6, made=8), 4),  # more workers than enough
        (_pipeline(hiccup, 0.5, 1, steps=5, made=5), 1),  # the device is slower, and yet waits once
        (_pipeline(hiccup, 0.5, 3, steps=5, made=9), 3),
        (_pipeline([0.125, 0.125, 0.125, 4.0], 0.5, 1, steps=5, made=8), 1),  # few long batches decide
        (_pipeline([0.0], 0.5, 2, steps=3, made=3), 2),
        (_pipeline([0.25], 0.5, 1, steps=1, made=1), 1),
        *(_irregular(draw) for _ in range(20)),
    ]


bottleneck = Exercise(
    bottleneck,
    _bottleneck_cases,
    atol=1e-9,
    mistakes=[
        edit(
            "load_s / num_workers >",
            "load_s >",
            "A span of the loader is the time of *one* worker. num_workers of them give num_workers batches in that "
            "time: divide before you compare.",
        ),
        edit(
            "statistics.mean(",
            "sum(",
            "busy_s / len(steps)",
            "busy_s",
            "You compare sums, but the workers have made more batches than the device has used. Compare a batch with a "
            "step: means.",
        ),
        edit(
            "return which, idle_s",
            'return which, sum(end - start for lane, start, end in spans if lane == "loader")',
            "Most of the loading goes on while the device computes, and costs nothing. The device is idle only in the "
            "gaps between its steps.",
        ),
        edit(
            "min(start for start, _ in steps)",
            "min(start for _, start, _ in spans)",
            "You count from the first span of the loader. Loading the first batch is the start, once; `idle_s` begins "
            "with the first step.",
        ),
        edit(
            "math.ceil(load_s / compute_s)",
            "math.floor(load_s / compute_s)",
            "With the number rounded down the workers fall behind a little with every batch. Round up: `math.ceil`.",
        ),
        edit(
            "math.ceil(load_s / compute_s)",
            "math.ceil(load_s / num_workers / compute_s)",
            "`enough` does not depend on how many workers there were: load_s / enough ≤ compute_s, with the time of "
            "one worker for a batch.",
        ),
    ],
    hints=[
        "Two means first: the length of a span of each kind. What do num_workers workers make of the one?",
        "idle_s: from the first step's start to the last step's end, less the lengths of all steps.",
        "The rule: a batch comes every load_s / workers seconds. `enough` is load_s / compute_s, rounded up.",
    ],
)
