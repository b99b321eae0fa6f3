"""Exercises of lesson 09: deal a manifest to workers, prefetch without hanging, find the bottleneck."""

import math
import queue
import statistics
import threading
from collections import Counter

from lessons_lib.exercises.core import Exercise, Outcome

# --- deal: every sample once over ranks and workers ------------------------------------------------------------------


def deal(samples, rank, world_size, worker, num_workers):
    """The parts of shards that one worker of one rank reads: a list of (shard, start, stop).

    samples: how many samples each shard holds, from the manifest.
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


def _parts_of(samples, start, stop):
    """The parts from `start` to `stop` of the line of all shards."""
    parts, before = [], 0
    for shard, count in enumerate(samples):
        a, b = max(start - before, 0), min(stop - before, count)
        if a < b:
            parts.append((shard, a, b))
        before += count
    return parts


def _all_to_all(samples, rank, world_size, worker, num_workers):
    """Every reader gets everything, as an input pipeline does that nobody has told to shard. `rank` and `worker` have
    to decide what is read."""
    return [(shard, 0, count) for shard, count in enumerate(samples)]


def _forgets_the_workers(samples, rank, world_size, worker, num_workers):
    """All workers of a rank read the same share, so a rank sees each of its samples num_workers times. The readers are
    the workers: there are world_size · num_workers of them."""
    return deal.reference(samples, rank, world_size, 0, 1)


def _forgets_the_ranks(samples, rank, world_size, worker, num_workers):
    """Worker 0 of every rank reads the same samples: your shares depend on `worker` alone. Number the workers through
    over all ranks."""
    return deal.reference(samples, 0, 1, worker, num_workers)


def _rank_plus_worker(samples, rank, world_size, worker, num_workers):
    """rank + worker is the same number for worker 1 of rank 0 and worker 0 of rank 1. A rank has num_workers numbers
    for itself: rank · num_workers + worker."""
    return deal.reference(samples, 0, 1, rank + worker, world_size * num_workers)


def _rank_times_ranks(samples, rank, world_size, worker, num_workers):
    """A rank needs as many numbers as it has workers, so the factor of `rank` is num_workers, not world_size."""
    return deal.reference(samples, 0, 1, rank * world_size + worker, world_size * num_workers)


def _drops_the_rest(samples, rank, world_size, worker, num_workers):
    """The division leaves a rest, and nobody reads it. Cut at reader · N // readers: the cuts follow each other, and
    the last is N."""
    reader, share = rank * num_workers + worker, sum(samples) // (world_size * num_workers)
    return _parts_of(samples, reader * share, (reader + 1) * share)


def _rest_to_the_last(samples, rank, world_size, worker, num_workers):
    """The whole rest goes to the last reader, for which all others wait. Spread it: cut at reader · N // readers."""
    reader, readers = rank * num_workers + worker, world_size * num_workers
    share = sum(samples) // readers
    return _parts_of(samples, reader * share, sum(samples) if reader == readers - 1 else (reader + 1) * share)


def _rounds_up(samples, rank, world_size, worker, num_workers):
    """Shares that are rounded up leave too little for the last reader, or nothing. Cut at reader · N // readers, and
    shares differ by one."""
    reader, share = rank * num_workers + worker, math.ceil(sum(samples) / (world_size * num_workers))
    return _parts_of(samples, reader * share, (reader + 1) * share)


def _whole_shards(samples, rank, world_size, worker, num_workers):
    """Whole shards are as unequal as shards are, and some readers get none. A part may begin and end inside a shard:
    deal samples, and look up which shards they are in."""
    reader, readers = rank * num_workers + worker, world_size * num_workers
    return [(shard, 0, samples[shard]) for shard in range(reader, len(samples), readers)]


def _one_by_one(samples, rank, world_size, worker, num_workers):
    """Right, but each sample is a part of its own, and a file is opened for each. Give every reader samples that lie
    side by side."""
    reader, readers = rank * num_workers + worker, world_size * num_workers
    places = [(shard, k, k + 1) for shard, count in enumerate(samples) for k in range(count)]
    return places[reader::readers]


def _a_slice_of_every_shard(samples, rank, world_size, worker, num_workers):
    """A slice of every shard means that every reader opens every file, and the rounding adds up over shards. Cut the
    line of all samples once."""
    reader, readers = rank * num_workers + worker, world_size * num_workers
    slices = ((s, reader * n // readers, (reader + 1) * n // readers) for s, n in enumerate(samples))
    return [(shard, a, b) for shard, a, b in slices if a < b]


def _stop_belongs_to_it(samples, rank, world_size, worker, num_workers):
    """Your parts include `stop`, so the sample at a cut is read twice. As in a slice, `stop` is the first one that does
    not belong."""
    parts = deal.reference(samples, rank, world_size, worker, num_workers)
    return [(shard, a, min(b + 1, samples[shard])) for shard, a, b in parts]


def _places_in_the_line(samples, rank, world_size, worker, num_workers):
    """`start` and `stop` count from the beginning of their shard, not of the whole line: subtract the samples of the
    shards before."""
    starts = [sum(samples[:shard]) for shard in range(len(samples))]
    parts = deal.reference(samples, rank, world_size, worker, num_workers)
    return [(shard, starts[shard] + a, starts[shard] + b) for shard, a, b in parts]


def _deal_to_all(fn, samples, world_size, num_workers):
    readers = [(rank, worker) for rank in range(world_size) for worker in range(num_workers)]
    parts = [[tuple(part) for part in fn(samples, r, world_size, w, num_workers)] for r, w in readers]
    inside = [[(s, a, b) for s, a, b in each if 0 <= s < len(samples) and 0 <= a <= b <= samples[s]] for each in parts]
    times = Counter((s, k) for each in inside for s, a, b in each for k in range(a, b))
    shares, opens = [sum(b - a for _, a, b in each) for each in parts], sum(map(len, parts))
    value = {
        "parts that reach beyond their shard": opens - sum(map(len, inside)),
        "samples read more than once": sum(number > 1 for number in times.values()),
        "samples read by nobody": sum(samples) - len(times),
        "largest share minus smallest": max(shares) - min(shares),
    }
    return Outcome(value, {"files opened beyond those needed": max(0, opens - len(samples) - len(readers) + 1)})


deal = Exercise(
    deal,
    cases=[([4, 4, 4, 4], 2, 1), ([90, 90, 90, 47], 2, 3), ([7, 7, 3], 2, 4), ([2, 1], 3, 2)],
    outcome=_deal_to_all,
    mistakes=[
        _all_to_all,
        _forgets_the_workers,
        _forgets_the_ranks,
        _rank_plus_worker,
        _rank_times_ranks,
        _drops_the_rest,
        _rest_to_the_last,
        _rounds_up,
        _whole_shards,
        _one_by_one,
        _a_slice_of_every_shard,
        _stop_belongs_to_it,
        _places_in_the_line,
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
    depth: at most so many items lie ready, and the thread holds one more.
    Items keep their order. An error of `source` is raised here, after the items before it. When
    the generator is closed early (`close()`, or `break` in the loop over it), the thread ends too.
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


def _queue_without_end(source, depth):
    """Without a limit a fast loader fills the memory. A queue with `maxsize`, or a semaphore, makes it wait for a free
    place."""
    yield from _plain(source, queue.Queue())


def _plain(source, ready, catch=(), told=None):
    """The loader of the lesson: stops for `catch`, and puts what `told` makes of the error."""
    end = object()

    def load():
        try:
            for item in source:
                ready.put(item)
        except catch as error:
            if told:
                ready.put(told(error))
        ready.put(end)

    threading.Thread(target=load, daemon=True).start()
    while (item := ready.get()) is not end:
        if isinstance(item, _Failed):
            raise item.error
        yield item


class _Failed:
    def __init__(self, error):
        self.error = error


def _error_stays_in_the_thread(source, depth):
    """An error ends your thread, and the consumer waits for ever for an item. Catch it there, send it through the
    queue, and raise it here."""
    yield from _plain(source, queue.Queue(depth))


def _error_as_the_end(source, depth):
    """An error looks like the end of the data: the epoch is short and nobody learns why. Send the error itself."""
    yield from _plain(source, queue.Queue(depth), catch=Exception)


def _error_as_an_item(source, depth):
    """What went wrong comes out as if it were an item. The consumer's side has to `raise` it."""
    yield from _plain(source, queue.Queue(depth), catch=Exception, told=str)


def _thread_is_left(source, depth):
    """When the consumer leaves early, your thread waits for ever for a free place, and keeps its items in memory. A
    `finally:` round the `yield` can tell it to end."""
    yield from _plain(source, queue.Queue(depth), catch=Exception, told=_Failed)


def _one_place(source, depth):
    """Only one item lies ready, whatever `depth` says."""
    yield from prefetch.reference(source, 1)


def _end_is_not_told(source, depth):
    """Nobody tells the consumer that there is nothing more: it waits for ever after the last item. Put a mark for the
    end into the queue."""
    ready = queue.Queue(depth)

    def load():
        for item in source:
            ready.put(item)

    threading.Thread(target=load, daemon=True).start()
    while True:
        yield ready.get()


def _none_is_the_end(source, depth):
    """You take None for the end, but None may be an item. Use a mark that no source can contain: an `object()` of your
    own, or pairs (kind, value)."""
    for item in (items := prefetch.reference(source, depth)):
        if item is None:
            items.close()
            return
        yield item


class _Source:
    """Counts what is taken, and by which threads; fails at item `fails_at`."""

    def __init__(self, num_items, fails_at):
        self.num_items, self.fails_at = num_items, fails_at
        self.taken, self.threads, self.changed = 0, set(), threading.Condition()

    def __iter__(self):
        return self

    def __next__(self):
        with self.changed:
            self.threads.add(threading.current_thread())
            if self.taken == self.fails_at:
                raise ValueError("this record cannot be decoded")
            if self.taken == self.num_items:
                raise StopIteration
            self.taken += 1
            self.changed.notify_all()
            return None if self.taken == 4 else 10 * self.taken

    def reaches(self, count, within_s):
        """Whether `count` items have been taken; waits for it only where a thread is there to take them."""
        with self.changed:
            if self.threads <= {threading.current_thread()}:
                return self.taken >= count
            return self.changed.wait_for(lambda: self.taken >= count, within_s)


def _consume(fn, source, depth, leaves_after, seen):
    """Use `fn` as a training loop does, and pause at the first item to see how far it loads ahead."""
    try:
        items = fn(source, depth)
        for item in items:
            seen["items"].append(item)
            if len(seen["items"]) == 1:
                full = source.reaches(min(1 + depth, source.num_items), within_s=2)
                if full and source.num_items > 2 + depth:
                    source.reaches(1 + depth + 2, within_s=0.15)
                seen["filled"], seen["ahead"] = full, source.taken - 1
            if len(seen["items"]) == leaves_after:
                items.close()
                break
    except Exception as error:
        seen["error"] = f"{type(error).__name__}: {error}"


def _watched(fn, num_items, depth, fails_at, leaves_after):
    source, hook = _Source(num_items, fails_at), threading.excepthook
    seen = {"items": [], "error": None, "filled": True, "ahead": 0}
    user = threading.Thread(target=_consume, args=(fn, source, depth, leaves_after, seen), daemon=True)
    threading.excepthook = lambda args: None  # errors that an answer leaves in its thread: the verdict tells of them
    try:
        user.start()
        for _ in range(500):  # until it is done, or waits for a thread that has ended
            user.join(0.02)
            loaders = source.threads - {user}
            if not user.is_alive() or (loaders and not any(thread.is_alive() for thread in loaders)):
                break
        user.join(0.5)
        hangs = user.is_alive()
        for thread in () if hangs else loaders:
            thread.join(2)
    finally:
        threading.excepthook = hook
    value = {
        "waits for ever": hangs,
        "fills its places while the first item is in use": seen["filled"],
        "items": list(seen["items"]),
        "error that arrives": seen["error"],
        "threads left behind": 0 if hangs else sum(thread.is_alive() for thread in loaders),
    }
    return Outcome(value, {"items loaded ahead of the one in use": seen["ahead"]})


prefetch = Exercise(
    prefetch,
    cases=[(12, 3, None, None), (9, 2, 5, None), (9, 2, None, 2), (0, 2, None, None), (2, 4, None, None)],
    outcome=_watched,
    mistakes=[
        _no_thread,
        _everything_first,
        _queue_without_end,
        _error_stays_in_the_thread,
        _error_as_the_end,
        _error_as_an_item,
        _thread_is_left,
        _one_place,
        _end_is_not_told,
        _none_is_the_end,
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
        ("device", start_s, end_s) for each step.
    num_workers: how many workers the run had; each makes whole batches.
    which: "loader" if the workers together need longer for a batch, on the mean, than the device
        for a step, else "device".
    idle_s: seconds without a step from the beginning of the first step to the end of the last.
    enough: the least number of workers (1 or more) that keep up with the device.
    """
    load_s = statistics.mean(end - start for lane, start, end in spans if lane == "loader")
    steps = [(start, end) for lane, start, end in spans if lane == "device"]
    busy_s = sum(end - start for start, end in steps)
    idle_s = max(end for _, end in steps) - min(start for start, _ in steps) - busy_s
    compute_s = busy_s / len(steps)
    which = "loader" if load_s / num_workers > compute_s else "device"
    return which, idle_s, max(1, math.ceil(load_s / compute_s))


def _times(spans, lane):
    return sorted((start, end) for name, start, end in spans if name == lane)


def _lengths(spans, lane):
    return [end - start for start, end in _times(spans, lane)]


def _one_worker(spans, num_workers):
    """A span of the loader is the time of *one* worker. num_workers of them give num_workers batches in that time:
    divide before you compare."""
    return bottleneck.reference(spans, 1)


def _sums(spans, num_workers):
    """You compare sums, but the workers have made more batches than the device has used. Compare a batch with a step:
    means."""
    _, idle_s, _ = bottleneck.reference(spans, num_workers)
    load_s, compute_s = sum(_lengths(spans, "loader")), sum(_lengths(spans, "device"))
    return "loader" if load_s / num_workers > compute_s else "device", idle_s, max(1, math.ceil(load_s / compute_s))


def _the_other_one(spans, num_workers):
    """It is the other way round: a run waits for the part that takes longer."""
    which, idle_s, enough = bottleneck.reference(spans, num_workers)
    return {"loader": "device", "device": "loader"}[which], idle_s, enough


def _all_loading_is_waiting(spans, num_workers):
    """Most of the loading goes on while the device computes, and costs nothing. The device is idle only in the gaps
    between its steps."""
    which, _, enough = bottleneck.reference(spans, num_workers)
    return which, sum(_lengths(spans, "loader")), enough


def _start_is_waiting(spans, num_workers):
    """You count from the first span of the loader. Loading the first batch is the start, once; `idle_s` begins with the
    first step."""
    which, _, enough = bottleneck.reference(spans, num_workers)
    first, last = min(start for _, start, _ in spans), max(end for _, _, end in spans)
    return which, last - first - sum(_lengths(spans, "device")), enough


def _idle_a_step(spans, num_workers):
    """That is the idle time of one step. All of it is asked for."""
    which, idle_s, enough = bottleneck.reference(spans, num_workers)
    return which, idle_s / len(_times(spans, "device")), enough


def _rounds_down(spans, num_workers):
    """With the number rounded down the workers fall behind a little with every batch. Round up: `math.ceil`."""
    which, idle_s, _ = bottleneck.reference(spans, num_workers)
    return (
        which,
        idle_s,
        max(1, int(statistics.mean(_lengths(spans, "loader")) / statistics.mean(_lengths(spans, "device")))),
    )


def _additional_workers(spans, num_workers):
    """`enough` is how many workers there should be, not how many to add."""
    which, idle_s, enough = bottleneck.reference(spans, num_workers)
    return which, idle_s, enough - num_workers


def _for_each_worker(spans, num_workers):
    """`enough` does not depend on how many workers there were: load_s / enough ≤ compute_s, with the time of one worker
    for a batch."""
    which, idle_s, _ = bottleneck.reference(spans, num_workers)
    a_worker_s = statistics.mean(_lengths(spans, "loader")) / num_workers
    return which, idle_s, max(1, math.ceil(a_worker_s / statistics.mean(_lengths(spans, "device"))))


def _step_with_its_wait(spans, num_workers):
    """Your step includes the wait before it, so that a starving device looks as slow as its loader. Take the lengths of
    the device's spans."""
    _, idle_s, _ = bottleneck.reference(spans, num_workers)
    steps, load_s = _times(spans, "device"), statistics.mean(_lengths(spans, "loader"))
    step_s = (steps[-1][1] - steps[0][0]) / len(steps)
    return "loader" if load_s / num_workers > step_s else "device", idle_s, max(1, math.ceil(load_s / step_s))


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


bottleneck = Exercise(
    bottleneck,
    cases=[
        (_pipeline([0.5], 0.25, 1, steps=4, made=4), 1),
        (_pipeline([0.5], 0.375, 2, steps=4, made=6), 2),
        (_pipeline([0.75, 1.25], 0.375, 2, steps=4, made=8), 2),
        (_pipeline([0.125], 0.5, 1, steps=3, made=3), 1),
        (_pipeline([1.0], 0.5, 2, steps=4, made=4), 2),
        (_pipeline([1.0], 0.25, 3, steps=6, made=6), 3),
    ],
    outcome=None,
    atol=1e-9,
    mistakes=[
        _one_worker,
        _sums,
        _the_other_one,
        _all_loading_is_waiting,
        _start_is_waiting,
        _idle_a_step,
        _rounds_down,
        _additional_workers,
        _for_each_worker,
        _step_with_its_wait,
    ],
    hints=[
        'Two means first: the length of a "loader" span and the length of a "device" span.',
        "idle_s: from the first step's start to the last step's end, less the lengths of all steps.",
        "The rule: a batch comes every load_s / workers seconds. `enough` is load_s / compute_s, rounded up.",
    ],
)
