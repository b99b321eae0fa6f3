"""Lesson 07: right answers written another way, and wrong answers beyond the listed mistakes."""

import itertools
import math
import statistics

import numpy as np
import torch

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
        if best is None or seconds <= best[1]:
            best = [m.device, seconds]
    return best


def by_arrays(work, devices):
    into, out, trip, launch, arithmetic, memory = np.array(
        [(m.to_device_Bps, m.from_device_Bps, m.round_trip_s, m.launch_s, m.flops_per_s, m.memory_Bps) for m in devices]
    ).T
    times = np.maximum(work.flops / arithmetic, work.bytes_touched / memory) + trip + work.num_launches * launch
    times += work.bytes_in / into + work.bytes_out / out
    first = times.argmin()
    return devices[first].device, times[first]


def by_halves(work, devices):
    """The first to finish of the one half against that of the other."""
    if len(devices) == 1:
        return by_dispatch(work, devices)
    half = len(devices) // 2
    return min(by_halves(work, devices[:half]), by_halves(work, devices[half:]), key=lambda pair: pair[1])


def priced(time_s, choose=min):
    """The answer of somebody who takes `time_s(work, device)` for the time and `choose` for the choice."""

    def answer(work, devices):
        times = {m.device: time_s(work, m) for m in devices}
        name = choose(times, key=times.get)
        return name, times[name]

    return answer


def parts_of(work, m):
    transfer = m.round_trip_s + work.bytes_in / m.to_device_Bps + work.bytes_out / m.from_device_Bps
    return transfer, work.num_launches * m.launch_s, max(work.flops / m.flops_per_s, work.bytes_touched / m.memory_Bps)


def total(work, m):
    return sum(parts_of(work, m))


def way_in_and_out_confused(work, m):
    transfer = m.round_trip_s + work.bytes_in / m.from_device_Bps + work.bytes_out / m.to_device_Bps
    return transfer + sum(parts_of(work, m)[1:])


def name_only(work, devices):
    return by_dispatch(work, devices)[0]


def most_flops_per_s(work, devices):
    best = max(devices, key=lambda m: m.flops_per_s)
    return best.device, total(work, best)


def of_two_only(work, devices):
    return by_dispatch(work, devices[:2])


def device_itself(work, devices):
    best = min(devices, key=lambda m: total(work, m))
    return best, total(work, best)


def sorts_the_devices(work, devices):
    devices.sort(key=lambda m: total(work, m))
    return devices[0].device, total(work, devices[0])


def by_interpolation(step, base_lr, base_batch, batch, warmup_steps):
    share = np.clip(step / warmup_steps, 0, 1) if warmup_steps else 1.0
    k = batch / base_batch
    return base_lr * (1 + (k - 1) * share)


def by_min(step, base_lr, base_batch, batch, warmup_steps):
    share = min(1.0, step / max(warmup_steps, 1)) if warmup_steps else 1
    return (1 - share) * base_lr + share * base_lr * batch / base_batch


def by_counting_down(step, base_lr, base_batch, batch, warmup_steps):
    target = base_lr * batch / base_batch
    to_go = max(warmup_steps - step, 0)
    return target if to_go == 0 else target - (target - base_lr) / warmup_steps * to_go


def by_a_table(step, base_lr, base_batch, batch, warmup_steps):
    target = batch / base_batch * base_lr
    table = torch.linspace(base_lr, target, warmup_steps + 1, dtype=torch.float64)
    return table[step] if warmup_steps > 0 and step <= warmup_steps else target


def ramp(share, at_most=math.inf):
    """An answer with `share(step, warmup_steps)` of the way, and a target of at most `at_most` times the base."""

    def answer(step, base_lr, base_batch, batch, warmup_steps):
        k = min(batch / base_batch, at_most)
        return base_lr * (1 + (k - 1) * (share(step, warmup_steps) if step < warmup_steps else 1))

    return answer


def divides_by_the_warmup(step, base_lr, base_batch, batch, warmup_steps):
    return base_lr + (base_lr * batch / base_batch - base_lr) * min(1, step / warmup_steps)


def geometric_ramp(step, base_lr, base_batch, batch, warmup_steps):
    share = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return base_lr * (batch / base_batch) ** share


def never_below_the_base(step, base_lr, base_batch, batch, warmup_steps):
    return max(base_lr, by_min(step, base_lr, base_batch, batch, warmup_steps))


def small_batch_at_once(step, base_lr, base_batch, batch, warmup_steps):
    return by_min(step, base_lr, base_batch, batch, 0 if batch < base_batch else warmup_steps)


def decays_afterwards(step, base_lr, base_batch, batch, warmup_steps):
    rate = by_min(step, base_lr, base_batch, batch, warmup_steps)
    return rate if step < 100 else rate * 0.1


def square_root_below(step, base_lr, base_batch, batch, warmup_steps):
    k = batch / base_batch
    return by_min(step, base_lr, 1, k if k > 1 else k**0.5, warmup_steps)


def with_a_counter(losses, patience, min_delta=0.0):
    best, best_epoch, waited, trained = math.inf, -1, 0, 0
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
    seen, best = [], -1
    while len(seen) - 1 - best < patience:
        loss = next(losses, None)
        if loss is None:
            break
        seen.append(loss)
        if math.isfinite(loss) and (best < 0 or loss < seen[best] - min_delta):
            best = len(seen) - 1
    return [best, len(seen)]


def by_recursion(losses, patience, min_delta=0.0):
    def train(best, best_epoch, epoch):
        if epoch - best_epoch > patience:
            return best_epoch, epoch
        for loss in losses:
            better = not (math.isnan(loss) or loss >= best - min_delta)
            return train(*((loss, epoch) if better else (best, best_epoch)), epoch + 1)
        return best_epoch, epoch

    return train(float("inf"), -1, 0)


def best_without_the_threshold(losses, patience, min_delta=0.0):
    """Stops at the right epoch and returns the lowest loss it has seen, however small the gain."""
    seen = []

    def watched():
        for loss in losses:
            seen.append(loss)
            yield loss

    _, trained = with_a_counter(watched(), patience, min_delta)
    return min(range(len(seen)), key=seen.__getitem__, default=-1), trained


def never_stops(losses, patience, min_delta=0.0):
    return with_a_counter(losses, -1, min_delta)


def relative(losses, patience, min_delta=0.0):
    best, best_epoch, epoch = math.inf, -1, -1
    for epoch, loss in enumerate(losses):
        if loss < best * (1 - min_delta):
            best, best_epoch = loss, epoch
        elif epoch - best_epoch >= patience:
            break
    return best_epoch, epoch + 1


def starts_from_the_first(losses, patience, min_delta=0.0):
    best, best_epoch, epoch = next(losses), 0, 0
    for epoch, loss in enumerate(losses, 1):
        if loss < best - min_delta:
            best, best_epoch = loss, epoch
        if epoch - best_epoch >= patience:
            break
    return best_epoch, epoch + 1


def nothing_for_zero(losses, patience, min_delta=0.0):
    best, best_epoch, epoch = None, -1, -1
    for epoch, loss in enumerate(losses):
        if math.isfinite(loss) and (not best or loss < best - min_delta):
            best, best_epoch = loss, epoch
        elif epoch - best_epoch >= patience:
            break
    return best_epoch, epoch + 1


def skips_nan(losses, patience, min_delta=0.0):
    return with_a_counter((loss for loss in losses if loss == loss), patience, min_delta)


def stops_at_nan(losses, patience, min_delta=0.0):
    return with_a_counter(itertools.takewhile(lambda loss: loss == loss, losses), patience, min_delta)


def takes_one_ahead(losses, patience, min_delta=0.0):
    ahead = itertools.chain([next(losses, None)], losses)
    return with_a_counter((loss for loss, _ in itertools.pairwise(itertools.chain(ahead, [0]))), patience, min_delta)


def by_the_mean_of_the_last(losses, patience, min_delta=0.0):
    best, best_epoch, seen = math.inf, -1, []
    for epoch, loss in enumerate(losses):
        seen.append(loss)
        if loss < best - min_delta:
            best, best_epoch = loss, epoch
        elif len(seen) > patience and statistics.mean(seen[-patience:]) >= best - min_delta:
            break
    return best_epoch, len(seen)


alternatives = {
    "first_to_finish": [by_dispatch, by_loop, by_arrays, by_halves, priced(total)],
    "scaled_lr": [by_interpolation, by_min, by_counting_down, by_a_table, ramp(lambda step, steps: step / steps)],
    "early_stopping": [with_a_counter, with_next, by_recursion],
}
wrong = {
    "first_to_finish": [
        priced(total, choose=max),
        priced(lambda work, m: 1e3 * total(work, m)),
        priced(lambda work, m: max(parts_of(work, m))),
        priced(lambda work, m: max(sum(parts_of(work, m)[:2]), parts_of(work, m)[2])),
        priced(lambda work, m: total(work, m) + m.round_trip_s),
        priced(lambda work, m: total(work, m) - m.round_trip_s * (work.bytes_in == 0)),
        priced(lambda work, m: sum(parts_of(work, m)[1:]) if "cpu" in m.device else total(work, m)),
        priced(lambda work, m: total(work, m) + m.launch_s * (work.num_launches == 0)),
        priced(lambda work, m: total(work, m) - parts_of(work, m)[1]),
        priced(lambda work, m: round(total(work, m), 4)),
        priced(lambda work, m: total(work, m) + 7 * (work.bytes_in / m.to_device_Bps + work.bytes_out)),
        priced(way_in_and_out_confused),
        name_only,
        most_flops_per_s,
        of_two_only,
        device_itself,
        sorts_the_devices,
    ],
    "scaled_lr": [
        divides_by_the_warmup,
        geometric_ramp,
        never_below_the_base,
        small_batch_at_once,
        decays_afterwards,
        square_root_below,
        ramp(lambda step, steps: step / steps, at_most=8),
        ramp(lambda step, steps: (1 - math.cos(math.pi * step / steps)) / 2),
        ramp(lambda step, steps: step / (steps + 1)),
        ramp(lambda step, steps: step // steps),
        ramp(lambda step, steps: 1),
        ramp(lambda step, steps: step / steps if steps < 10 else 1 - (1 - step / steps) ** 2),
    ],
    "early_stopping": [
        best_without_the_threshold,
        never_stops,
        relative,
        starts_from_the_first,
        nothing_for_zero,
        skips_nan,
        stops_at_nan,
        takes_one_ahead,
        by_the_mean_of_the_last,
        lambda losses, patience, min_delta=0.0: with_a_counter(losses, patience),
        lambda losses, patience, min_delta=0.0: with_a_counter(losses, patience, -min_delta),
        lambda losses, patience, min_delta=0.1: with_a_counter(losses, patience, min_delta),
        lambda losses, patience, min_delta=0.0: with_a_counter(losses, patience, min_delta)[::-1],
        lambda losses, patience, min_delta=0.0: max(with_a_counter(losses, patience, min_delta), (0, 1)),
        lambda losses, patience, min_delta=0.0: (with_a_counter(losses, patience, min_delta)[1] - 1,) * 2,
    ],
}
