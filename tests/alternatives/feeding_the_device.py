"""Lesson 09: right answers written another way, and wrong answers beyond the listed mistakes."""

import math
import queue
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import accumulate, groupby, pairwise
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


def rest_to_the_first_ones(samples, rank, world_size, worker, num_workers):
    """The first readers have one sample more. Yields the parts, the last shard first."""
    share, rest = divmod(sum(samples), world_size * num_workers)
    reader = rank * num_workers + worker
    start = reader * share + min(reader, rest)
    stop = start + share + (reader < rest)
    for shard in reversed(range(len(samples))):
        before = sum(samples[:shard])
        mine = range(max(start, before), min(stop, before + samples[shard]))
        if mine:
            yield np.array([shard, mine[0] - before, mine[-1] + 1 - before])


def cut_of(samples, start, stop):
    """The parts from `start` to `stop` of the line of all shards."""
    starts = [0, *accumulate(samples)]
    found = [(s, max(start - starts[s], 0), min(stop - starts[s], n)) for s, n in enumerate(samples)]
    return [(s, a, b) for s, a, b in found if a < b]


def dealt(cuts):
    """The answer of somebody whose reader i of n reads `cuts(i, n, number of samples)`."""

    def answer(samples, rank, world_size, worker, num_workers):
        return cut_of(samples, *cuts(rank * num_workers + worker, world_size * num_workers, sum(samples)))

    return answer


def rest_to_the_first(i, n, total):
    return (i * (total // n) + total % n) if i else 0, (i + 1) * (total // n) + total % n


def rounded_up(i, n, total):
    share = math.ceil(total / n)
    return i * share, (i + 1) * share


def numbered_wrongly(reader_of):
    def answer(samples, rank, world_size, worker, num_workers):
        return by_array_split(samples, 0, 1, reader_of(rank, world_size, worker), world_size * num_workers)

    return answer


def changed(change):
    """The right parts, each as `change` makes it."""

    def answer(samples, *reader):
        return [change(samples, *part) for part in by_array_split(samples, *reader)]

    return answer


def opens_every_file(samples, *reader):
    parts = {shard: (start, stop) for shard, start, stop in by_array_split(samples, *reader)}
    return [(shard, *parts.get(shard, (0, 0))) for shard in range(len(samples))]


def last_shard_forgotten(samples, *reader):
    return by_array_split(samples[:-1], *reader)


def shards_of_one_size(samples, rank, world_size, worker, num_workers):
    parts = dealt(lambda i, n, total: (i * total // n, (i + 1) * total // n))(
        [samples[0]] * len(samples), rank, world_size, worker, num_workers
    )
    return [(s, a, min(b, samples[s])) for s, a, b in parts if a < samples[s]]


def slice_of_every_shard(samples, rank, world_size, worker, num_workers):
    i, n = rank * num_workers + worker, world_size * num_workers
    return [(s, i * count // n, (i + 1) * count // n) for s, count in enumerate(samples) if count]


def ranks_then_workers(samples, rank, world_size, worker, num_workers):
    """Cuts twice, so that what is left over adds up."""
    start, stop = rank * sum(samples) // world_size, (rank + 1) * sum(samples) // world_size
    share = math.ceil((stop - start) / num_workers)
    return cut_of(samples, start + worker * share, min(stop, start + (worker + 1) * share))


def empties_the_list(samples, *reader):
    parts = by_array_split(samples, *reader)
    samples.clear()
    return parts


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


def with_a_condition(source, depth, ahead=0, tell=lambda failed: failed, stop=True, last_first=False):
    """One lock and a deque, and no queue. The further arguments make it wrong."""
    changed, ready, ended, failed, left = threading.Condition(), deque(), [], [], []

    def load():
        try:
            for item in source:
                with changed:
                    changed.wait_for(lambda: len(ready) < depth + ahead or left)
                    if left:
                        return
                    ready.append(item)
                    changed.notify_all()
        except Exception as error:
            failed.append(error)
        finally:
            with changed:
                ended.append(True)
                changed.notify_all()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: ready or ended)
                if not ready:
                    break
                item = ready.pop() if last_first else ready.popleft()
                changed.notify_all()
            yield item
        for error in tell(failed):
            raise error
    finally:
        if stop:
            with changed:
                left.append(True)
                changed.notify_all()
            thread.join()


def drains_when_left(source, depth):
    """Takes what is in the queue away, so that the thread can put once more and see that nobody is there."""
    ready, left = queue.Queue(depth), threading.Event()

    def load():
        try:
            for item in source:
                ready.put((yield_item, item))
                if left.is_set():
                    break
            ready.put((stop, None))
        except Exception as error:
            ready.put((fail, error))

    def yield_item(item):
        return [item]

    def fail(error):
        raise error

    def stop(nothing):
        return []

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    try:
        while True:
            what, item = ready.get()
            items = what(item)
            if not items:
                return
            yield items[0]
    finally:
        left.set()
        while thread.is_alive():
            try:
                ready.get(timeout=0.01)
            except Empty:
                continue


def gives_up_after_a_while(source, depth):
    """Ends where nothing has come for a while, and takes an error for that too."""
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


def takes_a_pause_for_the_end(source, depth):
    items = with_a_queue_that_gives_up(source, depth)
    with ThreadPoolExecutor(1) as pool:
        while (coming := pool.submit(next, items, None)) and (item := coming.result(timeout=0.05)) is not None:
            yield item


def begins_at_once(source, depth):
    items = with_a_queue_that_gives_up(source, depth)
    try:
        first = [next(items)]
    except StopIteration:
        return iter(())

    def rest():
        yield first[0]
        yield from items

    return rest()


def one_item_first(source, depth):
    """Loads ahead only once the first item is out."""
    items = iter(source)
    for first in items:
        yield first
        yield from with_a_queue_that_gives_up(items, depth)


def next_of_source(source, depth):
    def each():
        while True:
            try:
                yield next(source)
            except StopIteration:
                return

    yield from with_a_queue_that_gives_up(each(), depth)


def until(ends):
    """The answer of somebody who takes an item for the end, an error or nothing."""

    def answer(source, depth):
        for item in (items := with_a_queue_that_gives_up(source, depth)):
            if ends(item):
                items.close()
                return
            if not isinstance(item, Exception):
                yield item
            else:
                raise item

    return answer


def another_error(source, depth):
    try:
        yield from with_a_queue_that_gives_up(source, depth)
    except Exception as error:
        raise RuntimeError("the loader failed") from error


def error_as_an_item(source, depth):
    try:
        yield from with_a_queue_that_gives_up(source, depth)
    except Exception as error:
        yield error


def error_before_its_turn(source, depth):
    """Looks first whether the thread has failed."""
    failed, left = [], threading.Event()

    def watched():
        try:
            yield from source
        except Exception as error:
            failed.append(error)

    for item in with_a_queue_that_gives_up(watched(), depth):
        if failed:
            raise failed[0]
        yield item
    left.set()
    if failed:
        raise failed[0]


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


def by_fractions(spans, num_workers):
    """Exact, with a division rounded up by turning it upside down."""
    of = {lane: [(Fraction(a), Fraction(b)) for name, a, b in spans if name == lane] for lane in ("loader", "device")}
    load, step = (sum(b - a for a, b in each) / len(each) for each in of.values())
    ends = sorted(b for _, b in of["device"])
    idle = ends[-1] - min(of["device"])[0] - step * len(ends)
    return ("device", "loader")[load > step * num_workers], idle, -(-load // step) or 1


def found_by(which=None, idle=None, enough=None):
    """The right answer, but for one of its parts, which is made of (spans, num_workers, right answer)."""

    def answer(spans, num_workers):
        right = by_gaps(spans, num_workers)
        return [f(spans, num_workers, right) if f else x for f, x in zip((which, idle, enough), right, strict=True)]

    return answer


def lengths(spans, lane):
    return [end - start for name, start, end in spans if name == lane]


def ratio(spans, typical=np.mean):
    return typical(lengths(spans, "loader")) / typical(lengths(spans, "device"))


def in_their_order(spans):
    """The gaps between steps in the order in which they stand."""
    steps = [span for span in spans if span[0] == "device"]
    return sum(max(0, after[1] - before[2]) for before, after in pairwise(steps))


def sorts_in_place(spans, num_workers):
    spans.sort(key=lambda span: span[1])
    return by_gaps(spans, num_workers)


def right_deal(i, n, total):
    return i * total // n, (i + 1) * total // n


alternatives = {
    "deal": [by_array_split, workers_outside, rest_to_the_first_ones, dealt(right_deal)],
    "prefetch": [with_a_queue_that_gives_up, with_a_pool, with_a_condition, drains_when_left],
    "bottleneck": [by_arrays, by_gaps, by_fractions],
}
wrong = {
    "deal": [
        opens_every_file,
        last_shard_forgotten,
        shards_of_one_size,
        slice_of_every_shard,
        ranks_then_workers,
        empties_the_list,
        dealt(rest_to_the_first),
        dealt(rounded_up),
        dealt(lambda i, n, total: (0, total)),
        dealt(lambda i, n, total: (round(i * total / n), round((i + 1) * total / n) - 1)),
        numbered_wrongly(lambda rank, world_size, worker: rank + worker),
        numbered_wrongly(lambda rank, world_size, worker: rank * world_size + worker),
        changed(lambda samples, s, a, b: (s, a, min(b + 1, samples[s]))),
        changed(lambda samples, s, a, b: (s, a, b - a)),
        changed(lambda samples, s, a, b: (s, a, b - 1)),
        changed(lambda samples, s, a, b: (s, float(a), b)),
        changed(lambda samples, s, a, b: (float(s), a, b)),
        changed(lambda samples, s, a, b: (s + 1, a, b)),
        changed(lambda samples, s, a, b: (a, b)),
    ],
    "prefetch": [
        gives_up_after_a_while,
        takes_a_pause_for_the_end,
        begins_at_once,
        one_item_first,
        next_of_source,
        until(lambda item: item is None),
        until(lambda item: isinstance(item, Exception)),
        until(lambda item: False),
        until(lambda item: not item),
        another_error,
        error_as_an_item,
        error_before_its_turn,
        lambda source, depth: with_a_pool(source, depth + 2),
        lambda source, depth: with_a_pool(source, 1),
        lambda source, depth: with_a_pool(list(source), depth),
        lambda source, depth: with_a_condition(source, depth, stop=False),
        lambda source, depth: with_a_condition(source, depth, tell=lambda failed: []),
        lambda source, depth: with_a_condition(source, depth, ahead=1),
        lambda source, depth: with_a_condition(source, depth, last_first=True),
    ],
    "bottleneck": [
        sorts_in_place,
        found_by(enough=lambda spans, n, right: float(right[2])),
        lambda spans, num_workers: by_gaps(spans, num_workers)[0],
        found_by(which=lambda spans, n, right: max(spans, key=lambda span: span[2] - span[1])[0]),
        found_by(which=lambda spans, n, right: "loader" if right[1] > 0 else "device"),
        found_by(which=lambda spans, n, right: "device" if ratio(spans) < n else "loader"),
        found_by(which=lambda spans, n, right: "device" if ratio(spans, np.median) <= n else "loader"),
        found_by(which=lambda spans, n, right: "loaders" if right[0] == "loader" else "device"),
        found_by(idle=lambda spans, n, right: right[1] if right[0] == "loader" else 0.0),
        found_by(idle=lambda spans, n, right: right[1] / len(lengths(spans, "device"))),
        found_by(idle=lambda spans, n, right: in_their_order(spans)),
        found_by(idle=lambda spans, n, right: max(end for *_, end in spans) - sum(lengths(spans, "device"))),
        found_by(enough=lambda spans, n, right: max(n, right[2])),
        found_by(enough=lambda spans, n, right: right[2] - n),
        found_by(enough=lambda spans, n, right: int(ratio(spans)) + 1),
        found_by(enough=lambda spans, n, right: max(1, round(ratio(spans)))),
        found_by(enough=lambda spans, n, right: math.ceil(ratio(spans))),
        found_by(enough=lambda spans, n, right: max(1, math.ceil(ratio(spans, np.median)))),
        found_by(enough=lambda spans, n, right: n if right[0] == "device" else right[2]),
    ],
}
