"""Lesson 07: right answers written another way, and wrong answers beyond the listed mistakes."""

import math

import numpy as np

from lessons_lib.devices import dispatch


def by_dispatch(work, devices):
    decision = dispatch(work, devices)
    return decision.device, decision.time_s[decision.device]


def by_loop(work, devices):
    best = None
    for m in devices:
        arithmetic, memory = work.flops / m.flops_per_s, work.bytes_touched / m.memory_Bps
        seconds = arithmetic if arithmetic > memory else memory
        seconds += m.launch_s * work.num_launches + m.round_trip_s
        seconds += work.bytes_in / m.to_device_Bps
        seconds += work.bytes_out / m.from_device_Bps
        if best is None or seconds < best[1]:
            best = [m.device, seconds]
    return best


def slowest(work, devices):
    times = dispatch(work, devices).time_s
    name = max(times, key=times.get)
    return name, times[name]


def name_only(work, devices):
    return dispatch(work, devices).device


def in_milliseconds(work, devices):
    name, seconds = by_dispatch(work, devices)
    return name, 1e3 * seconds


def by_interpolation(step, base_lr, base_batch, batch, warmup_steps):
    share = np.clip(step / warmup_steps, 0, 1) if warmup_steps else 1.0
    k = batch / base_batch
    return base_lr * (1 + (k - 1) * share)


def by_min(step, base_lr, base_batch, batch, warmup_steps):
    share = min(1.0, step / max(warmup_steps, 1)) if warmup_steps else 1
    return (1 - share) * base_lr + share * base_lr * batch / base_batch


def divides_by_the_warmup(step, base_lr, base_batch, batch, warmup_steps):
    return base_lr + (base_lr * batch / base_batch - base_lr) * min(1, step / warmup_steps)


def geometric_ramp(step, base_lr, base_batch, batch, warmup_steps):
    share = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return base_lr * (batch / base_batch) ** share


def with_a_counter(losses, patience, min_delta=0.0):
    best, best_epoch, waited, trained = math.inf, 0, 0, 0
    for loss in losses:
        if best - loss > min_delta:
            best, best_epoch, waited = loss, trained, 0
        else:
            waited += 1
        trained += 1
        if waited == patience:
            break
    return best_epoch, trained


def with_next(losses, patience, min_delta=0.0):
    seen, best = [], 0
    while len(seen) - 1 - best < patience:
        loss = next(losses, None)
        if loss is None:
            break
        seen.append(loss)
        if loss < seen[best] - min_delta:
            best = len(seen) - 1
    return [best, len(seen)]


def best_without_the_threshold(losses, patience, min_delta=0.0):
    """Stops at the right epoch and returns the lowest loss it has seen, however small the gain."""
    seen = []

    def watched():
        for loss in losses:
            seen.append(loss)
            yield loss

    _, trained = with_a_counter(watched(), patience, min_delta)
    return min(range(len(seen)), key=seen.__getitem__), trained


def never_stops(losses, patience, min_delta=0.0):
    return with_a_counter(losses, -1, min_delta)


alternatives = {
    "first_to_finish": [by_dispatch, by_loop],
    "scaled_lr": [by_interpolation, by_min],
    "early_stopping": [with_a_counter, with_next],
}
wrong = {
    "first_to_finish": [slowest, name_only, in_milliseconds],
    "scaled_lr": [divides_by_the_warmup, geometric_ramp],
    "early_stopping": [best_without_the_threshold, never_stops],
}
