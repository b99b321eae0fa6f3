"""Exercises of lesson 07: where work finishes first, the learning rate of a larger batch, and when to stop."""

import functools
from math import inf, nan, sqrt

from lessons_lib.devices import Measurement, Work
from lessons_lib.exercises.core import Exercise, Outcome


def first_to_finish(work, devices):
    """The device on which `work` finishes first, and its time in seconds: (name, seconds).

    work: a `Work`: flops, bytes_in, bytes_touched, num_launches, bytes_out.
    devices: a list of `Measurement`: device (its name), flops_per_s, memory_Bps, launch_s,
        to_device_Bps, from_device_Bps, round_trip_s; Bps is bytes a second.
    The result has to come back: the work is finished when it is in the host's memory.
    """
    times = {}
    for m in devices:
        transfer = m.round_trip_s + work.bytes_in / m.to_device_Bps + work.bytes_out / m.from_device_Bps
        launch = work.num_launches * m.launch_s
        compute = max(work.flops / m.flops_per_s, work.bytes_touched / m.memory_Bps)
        times[m.device] = transfer + launch + compute
    name = min(times, key=times.get)
    return name, times[name]


def _fastest(seconds):
    """The answer of somebody who takes `seconds(work, device)` for the time."""

    @functools.wraps(seconds)
    def answer(work, devices):
        times = {m.device: seconds(work, m) for m in devices}
        name = min(times, key=times.get)
        return name, times[name]

    return answer


def _there_and_back(work, m, byte=1):
    return m.round_trip_s + byte * (work.bytes_in / m.to_device_Bps + work.bytes_out / m.from_device_Bps)


def _compute(work, m):
    return max(work.flops / m.flops_per_s, work.bytes_touched / m.memory_Bps)


@_fastest
def _without_transfer(work, m):
    """You count only what happens on the device. Data that is not there yet has to be brought, and the result fetched:
    round_trip_s, and bytes over the speed of the wire, in each direction."""
    return work.num_launches * m.launch_s + _compute(work, m)


@_fastest
def _without_the_way_back(work, m):
    """The result is still on the device. Add bytes_out / from_device_Bps, which may be slower than the way in."""
    return m.round_trip_s + work.bytes_in / m.to_device_Bps + work.num_launches * m.launch_s + _compute(work, m)


@_fastest
def _without_round_trip(work, m):
    """Bytes over bandwidth is there, but a trip costs time even for one number: add round_trip_s."""
    return _there_and_back(work, m) - m.round_trip_s + work.num_launches * m.launch_s + _compute(work, m)


@_fastest
def _without_launches(work, m):
    """Every operation costs its start, however small it is: num_launches · launch_s."""
    return _there_and_back(work, m) + _compute(work, m)


@_fastest
def _one_launch(work, m):
    """You pay for one launch, and the work consists of num_launches of them."""
    return _there_and_back(work, m) + m.launch_s + _compute(work, m)


@_fastest
def _arithmetic_alone(work, m):
    """An operation also reads and writes memory, and may spend longer on that than on arithmetic. Take the larger of
    flops / flops_per_s and bytes_touched / memory_Bps."""
    return _there_and_back(work, m) + work.num_launches * m.launch_s + work.flops / m.flops_per_s


@_fastest
def _flops_then_bytes(work, m):
    """You add arithmetic and memory. A device does both at once, so the slower of the two decides: max."""
    compute = work.flops / m.flops_per_s + work.bytes_touched / m.memory_Bps
    return _there_and_back(work, m) + work.num_launches * m.launch_s + compute


@_fastest
def _in_bits(work, m):
    """The speeds are in bytes a second already. The factor 8 is for wires that are sold by the bit."""
    return _there_and_back(work, m, byte=8) + work.num_launches * m.launch_s + _compute(work, m)


def _most_flops(work, devices):
    """The device with the most FLOP/s is not always the first to finish. Work out the whole time on each device, then
    compare the times."""
    best = max(devices, key=lambda m: m.flops_per_s)
    return best.device, work.flops / best.flops_per_s


def _dispatch_cases():
    cpu = Measurement("cpu", 4e10, 1e10, 1e-6)
    gpu = Measurement("gpu", 8e12, 3e11, 5e-6, to_device_Bps=6e9, from_device_Bps=3e9, round_trip_s=3e-5)
    near = Measurement("near", 1e12, 1e11, 1e-5, to_device_Bps=5e10, from_device_Bps=4e10, round_trip_s=1e-5)
    products = [Work(2 * n**3, 8 * n**2, 4 * n**2, 12 * n**2) for n in (16, 256, 1024)]
    addition = Work(flops=2**24, bytes_in=2**27, bytes_out=2**26, bytes_touched=2**27 + 2**26)
    training = Work(4e10, bytes_in=4e6, bytes_out=4e5, bytes_touched=2e9, num_launches=3000)
    small_steps = Work(1e7, bytes_in=1e4, bytes_out=1e4, bytes_touched=1e6, num_launches=2000)
    jobs = [*products, addition, training, small_steps]
    return [(job, [cpu, gpu]) for job in jobs] + [(job, [gpu, cpu, near]) for job in jobs]


first_to_finish = Exercise(
    first_to_finish,
    _dispatch_cases,
    [
        _without_transfer,
        _without_the_way_back,
        _without_round_trip,
        _without_launches,
        _one_launch,
        _arithmetic_alone,
        _flops_then_bytes,
        _in_bits,
        _most_flops,
    ],
    [
        "Make a dictionary {name: seconds} with a loop over the devices, then take the name with the least seconds.",
        "Three parts: transfer (the round trip, bytes in, bytes out), launches, and compute.",
        "compute = max(flops / flops_per_s, bytes_touched / memory_Bps); then min(times, key=times.get).",
    ],
    atol=1e-12,
)


def scaled_lr(step, base_lr, base_batch, batch, warmup_steps):
    """The learning rate at `step` by the linear scaling rule with a warm-up.

    base_lr is known to work at batch size base_batch; the target for `batch` is in proportion to it.
    step: counts from 0. At step 0 the rate is base_lr, at step warmup_steps (and ever after) the target,
    and between them it goes up in equal parts. warmup_steps may be 0: the target from the start.
    """
    target = base_lr * batch / base_batch
    if step >= warmup_steps:
        return target
    return base_lr + (target - base_lr) * step / warmup_steps


def _ramp(step, low, high, warmup_steps):
    return high if step >= warmup_steps else low + (high - low) * step / warmup_steps


def _inverse(step, base_lr, base_batch, batch, warmup_steps):
    """That is upside down: a larger batch has a less noisy gradient and takes fewer steps; each may be longer."""
    return _ramp(step, base_lr, base_lr * base_batch / batch, warmup_steps)


def _square_root(step, base_lr, base_batch, batch, warmup_steps):
    """That is the square-root rule, which is advised for Adam. The linear rule has batch / base_batch."""
    return _ramp(step, base_lr, base_lr * sqrt(batch / base_batch), warmup_steps)


def _whole_multiples(step, base_lr, base_batch, batch, warmup_steps):
    """`//` drops the fraction: 48 / 32 is 1.5 times the batch, and half a batch is half the rate, not zero."""
    return _ramp(step, base_lr, base_lr * (batch // base_batch), warmup_steps)


def _unscaled(step, base_lr, base_batch, batch, warmup_steps):
    """The rate stays that of the small batch. The target is base_lr · batch / base_batch."""
    return base_lr


def _no_warmup(step, base_lr, base_batch, batch, warmup_steps):
    """The target is right, but used from step 0 on. The first steps, on random weights, begin at base_lr."""
    return base_lr * batch / base_batch


def _from_zero(step, base_lr, base_batch, batch, warmup_steps):
    """Your ramp begins at 0. This one begins at base_lr, which is known to work from the first step on."""
    return _ramp(step, 0, base_lr * batch / base_batch, warmup_steps)


def _one_step_early(step, base_lr, base_batch, batch, warmup_steps):
    """Your ramp is one step early: at step 0 the rate is base_lr itself."""
    return _ramp(step + 1, base_lr, base_lr * batch / base_batch, warmup_steps)


def _one_step_late(step, base_lr, base_batch, batch, warmup_steps):
    """Your ramp is one step late: at step = warmup_steps the rate must have reached the target."""
    return _ramp(max(step - 1, 0), base_lr, base_lr * batch / base_batch, warmup_steps)


def _a_jump(step, base_lr, base_batch, batch, warmup_steps):
    """The rate jumps at the end of the warm-up. It is to climb there in equal parts, step by step."""
    return base_lr if step < warmup_steps else base_lr * batch / base_batch


def _never_ending(step, base_lr, base_batch, batch, warmup_steps):
    """The ramp never ends: after warmup_steps the rate stays at the target."""
    target = base_lr * batch / base_batch
    return base_lr + (target - base_lr) * step / warmup_steps if warmup_steps else target


def _every_rate(fn, base_lr, base_batch, batch, warmup_steps):
    return {f"step {t}": fn(t, base_lr, base_batch, batch, warmup_steps) for t in range(warmup_steps + 4)}


scaled_lr = Exercise(
    scaled_lr,
    [(0.1, 256, 1024, 4), (0.1, 32, 48, 0), (0.4, 64, 32, 0), (0.05, 8, 100, 10)],
    [
        _inverse,
        _square_root,
        _whole_multiples,
        _unscaled,
        _no_warmup,
        _from_zero,
        _one_step_early,
        _one_step_late,
        _a_jump,
        _never_ending,
    ],
    [
        "First the target; then, for the steps of the warm-up, a point on the line from base_lr to it.",
        "The share of the way is step / warmup_steps, as long as step < warmup_steps.",
        "base_lr + (target − base_lr) · step / warmup_steps; mind warmup_steps = 0.",
    ],
    outcome=_every_rate,
    atol=1e-9,
)


def early_stopping(losses, patience, min_delta=0.0):
    """Train until `patience` epochs in a row bring nothing better.

    Returns (best epoch, number of epochs trained). Epochs count from 0.
    losses: an iterator. Each item that is taken from it trains one more epoch and is the held-out loss
        after it, so never take one more than you need. It may also end by itself.
    min_delta: an epoch is better only if its loss is below that of the best epoch by *more* than this.
        A loss of nan is never better.
    """
    best, best_epoch = inf, 0
    for epoch, loss in enumerate(losses):
        if loss < best - min_delta:
            best, best_epoch = loss, epoch
        elif epoch - best_epoch >= patience:
            break
    return best_epoch, epoch + 1


def _one_epoch_more(losses, patience, min_delta=0.0):
    """You train one epoch too many: stop after the epoch that makes it `patience` in a row."""
    return early_stopping.reference(losses, patience + 1, min_delta)


def _one_epoch_less(losses, patience, min_delta=0.0):
    """You stop one epoch too soon: all `patience` epochs after the best one may be used up."""
    return early_stopping.reference(losses, max(patience - 1, 1), min_delta)


def _against_the_epoch_before(losses, patience, min_delta=0.0):
    """You compare with the epoch before. After a bad epoch a slightly less bad one is no improvement: compare with the
    best so far."""
    before, best_epoch, waited = inf, 0, 0
    for epoch, loss in enumerate(losses):
        if loss < before - min_delta:
            best_epoch, waited = epoch, 0
        else:
            waited += 1
        before = loss
        if waited >= patience:
            break
    return best_epoch, epoch + 1


def _never_resets(losses, patience, min_delta=0.0):
    """Your count of bad epochs never goes back to 0. Only epochs in a row count: a better one starts afresh."""
    best, best_epoch, waited = inf, 0, 0
    for epoch, loss in enumerate(losses):
        if loss < best - min_delta:
            best, best_epoch = loss, epoch
        else:
            waited += 1
            if waited >= patience:
                break
    return best_epoch, epoch + 1


def _without_min_delta(losses, patience, min_delta=0.0):
    """Every tiny gain counts as better here. It has to be more than min_delta below the best."""
    return early_stopping.reference(losses, patience, 0.0)


def _min_delta_upside_down(losses, patience, min_delta=0.0):
    """min_delta is on the wrong side: a loss just *above* the best passes as better. Below best − min_delta."""
    return early_stopping.reference(losses, patience, -min_delta)


def _ties_count(losses, patience, min_delta=0.0):
    """A loss exactly min_delta below the best passes as better. More than min_delta is asked for: <."""
    best, best_epoch = inf, 0
    for epoch, loss in enumerate(losses):
        if loss <= best - min_delta:
            best, best_epoch = loss, epoch
        elif epoch - best_epoch >= patience:
            break
    return best_epoch, epoch + 1


def _bar_creeps(losses, patience, min_delta=0.0):
    """You lower the bar at gains that are too small to count, so that many small gains never add up to a better epoch.
    Keep the loss of the best epoch until one is better by more than min_delta."""
    best, best_epoch = inf, 0
    for epoch, loss in enumerate(losses):
        if loss < best - min_delta:
            best_epoch = epoch
        elif epoch - best_epoch >= patience:
            break
        best = min(best, loss)
    return best_epoch, epoch + 1


def _last_epoch_as_best(losses, patience, min_delta=0.0):
    """That is the epoch you stopped at. The best epoch lies before it; its weights are the ones to keep."""
    _, trained = early_stopping.reference(losses, patience, min_delta)
    return trained - 1, trained


def _index_as_number(losses, patience, min_delta=0.0):
    """Epochs count from 0, so after epoch k you have trained k + 1 of them."""
    best_epoch, trained = early_stopping.reference(losses, patience, min_delta)
    return best_epoch, trained - 1


def _trains_to_the_end_first(losses, patience, min_delta=0.0):
    """`list(losses)` trains all epochs before you look at one. Take them one at a time, in a `for` loop, and
    `break`."""
    return early_stopping.reference(iter(list(losses)), patience, min_delta)


def _best_of_all(losses, patience, min_delta=0.0):
    """You look at the whole run afterwards: nothing is saved. Decide after each epoch, knowing only the past."""
    losses = list(losses)
    return losses.index(min(losses)), len(losses)


def _count_epochs(fn, losses, patience, min_delta):
    taken = []

    def train():
        for loss in losses:
            taken.append(loss)
            yield loss

    value = fn(train(), patience, min_delta)
    return Outcome(value, {"epochs trained": len(taken)})


early_stopping = Exercise(
    early_stopping,
    [
        ([1.0, 0.5, 0.75, 0.625, 0.5, 0.25, 0.25, 0.25], 3, 0.0),
        ([1.0, 0.75, 0.875, 0.5, 0.625, 0.375, 0.5, 0.5, 0.625, 0.25], 3, 0.0),
        ([1.0, 0.5, 0.75, 0.625, 0.5625, 0.5, 0.25], 2, 0.0),
        ([1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125], 2, 0.1875),
        ([1.0, 0.5, 0.4375, 0.375, 0.375, 0.375, 0.0, 0.0], 2, 0.125),
        ([1.0, 0.5, 0.5625, 0.5625, 0.5625, 0.5625, 0.0], 3, 0.125),
        ([1.0, 0.5, nan, nan, 0.25, nan, nan, nan, 0.125], 3, 0.0),
        ([1.0, 0.5, 0.25], 5, 0.0),
    ],
    [
        _one_epoch_more,
        _one_epoch_less,
        _against_the_epoch_before,
        _never_resets,
        _without_min_delta,
        _min_delta_upside_down,
        _ties_count,
        _bar_creeps,
        _last_epoch_as_best,
        _index_as_number,
        _trains_to_the_end_first,
        _best_of_all,
    ],
    [
        "A `for` loop with `enumerate` takes one loss at a time. Remember the best loss and the epoch it belongs to.",
        "In a row without improvement: epoch − best_epoch epochs.",
        "Better: loss < best − min_delta. If not, and epoch − best_epoch >= patience: break.",
    ],
    outcome=_count_epochs,
)
