"""Independent tasks on equal workers: who does what, and when all are done, on a virtual clock (lesson 19)."""

import heapq
from math import isfinite
from numbers import Real

from ..errors import check_whole
from ..trace import Span, Trace
from .schedule import chunk_bounds
from .simulation import Simulation

MAX_TASKS = 12  # for more, to try all assignments takes minutes


def list_schedule(durations_s, num_workers):
    """Give the tasks out in their order, each to the worker that is free first, as a queue does.

    Args:
        durations_s: how long each task takes (s), 0 or more.
        num_workers: how many workers there are, 1 or more.

    Returns:
        A `Simulation`: `total_s` is the makespan, after which all are done; ranks of the trace are the workers.

    Raises:
        ValueError: an argument is not what is said above.

    Source: Graham (1969): it ends within `graham_bound` times the optimum, whatever the order.
    """
    return _in_order(durations_s, num_workers, range(len(_checked(durations_s, num_workers))))


def longest_first(durations_s, num_workers):
    """Give the longest tasks out first. Arguments and result are those of `list_schedule`.

    Source: Graham (1969): it ends within 4/3 - 1/(3 m) times the optimum for m workers.
    """
    durations_s = _checked(durations_s, num_workers)
    return _in_order(durations_s, num_workers, sorted(range(len(durations_s)), key=lambda task: -durations_s[task]))


def static_split(durations_s, num_workers):
    """Cut the tasks beforehand, in their order, into shares of equal numbers. As `list_schedule` otherwise."""
    shares = chunk_bounds(len(_checked(durations_s, num_workers)), num_workers)
    return _simulation(durations_s, [range(start, stop) for start, stop in shares])


def best_schedule(durations_s, num_workers):
    """The optimum, found by trying all assignments of at most 12 tasks. As `list_schedule` otherwise."""
    durations_s = _checked(durations_s, num_workers)
    if len(durations_s) > MAX_TASKS:
        raise ValueError(f"durations_s has {len(durations_s)} tasks: at most {MAX_TASKS} are needed to try all ways")
    order = sorted(range(len(durations_s)), key=lambda task: -durations_s[task])
    best = {"total_s": float("inf"), "shares": None}
    _try(durations_s, order, [[] for _ in range(num_workers)], [0.0] * num_workers, best)
    return _simulation(durations_s, best["shares"])


def graham_bound(num_workers):
    """How many times the optimum a list schedule takes at most: 2 - 1/m. Source: Graham (1969)."""
    check_whole("num_workers", num_workers, 1)
    return 2 - 1 / num_workers


def _checked(durations_s, num_workers):
    check_whole("num_workers", num_workers, 1)
    durations_s = list(durations_s)
    for task, time_s in enumerate(durations_s):
        if not isinstance(time_s, Real) or isinstance(time_s, bool) or not isfinite(time_s) or time_s < 0:
            raise ValueError(f"durations_s[{task}]={time_s!r}: a number of seconds of at least 0 is needed")
    return durations_s


def _in_order(durations_s, num_workers, order):
    free, shares = [(0.0, worker) for worker in range(num_workers)], [[] for _ in range(num_workers)]
    for task in order:
        time_s, worker = heapq.heappop(free)
        shares[worker].append(task)
        heapq.heappush(free, (time_s + durations_s[task], worker))
    return _simulation(durations_s, shares)


def _simulation(durations_s, shares):
    """What happens if each worker does its share in order."""
    trace, finish_s = Trace(source="simulated"), []
    for worker, tasks in enumerate(shares):
        now_s = 0.0
        for task in tasks:
            trace.record(Span(worker, "compute", now_s, now_s + durations_s[task], label=f"task {task}"))
            now_s += durations_s[task]
        finish_s.append(now_s)
    return Simulation(max(finish_s), finish_s, trace)


def _try(durations_s, order, shares, loads_s, best):
    """Put the tasks of `order` behind `shares` in every way that may still be better than `best`, which is changed."""
    if max(loads_s) >= best["total_s"]:
        return
    if not order:
        best.update(total_s=max(loads_s), shares=[list(share) for share in shares])
        return
    task, rest = order[0], order[1:]
    for worker in sorted(range(len(loads_s)), key=loads_s.__getitem__):
        if loads_s[worker] in loads_s[:worker]:
            continue  # an earlier worker with the same load comes to the same
        shares[worker].append(task)
        tried_s = [*loads_s[:worker], loads_s[worker] + durations_s[task], *loads_s[worker + 1 :]]
        _try(durations_s, rest, shares, tried_s, best)
        shares[worker].pop()
