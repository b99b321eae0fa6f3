"""Exercises of lesson 07: where work finishes first, the learning rate of a larger batch, and when to stop."""

from math import inf, nan
from random import Random

from lessons_lib.devices import Measurement, Work
from lessons_lib.exercises.core import Exercise, Outcome, edit


def first_to_finish(work, devices):
    """The device on which `work` finishes first, and its time in seconds: (name, seconds).

    work: a `Work`: flops, bytes_in, bytes_touched, num_launches, bytes_out.
    devices: a list of `Measurement`: device (its name), flops_per_s, memory_Bps, launch_s,
        to_device_Bps, from_device_Bps, round_trip_s; Bps is bytes a second. No two have the same name.
    The result has to come back: the work is finished when it is in the host's memory. Work that brings
    and fetches nothing makes the round trip, too. If two devices finish together, either will do.
    """
    times = {}
    for m in devices:
        transfer = m.round_trip_s + work.bytes_in / m.to_device_Bps + work.bytes_out / m.from_device_Bps
        launch = work.num_launches * m.launch_s
        compute = max(work.flops / m.flops_per_s, work.bytes_touched / m.memory_Bps)
        times[m.device] = transfer + launch + compute
    name = min(times, key=times.get)
    return name, times[name]


def _dispatch_cases():
    cpu = Measurement("cpu", 4e10, 1e10, 1e-6)
    gpu = Measurement("gpu", 8e12, 3e11, 5e-6, to_device_Bps=6e9, from_device_Bps=3e9, round_trip_s=3e-5)
    near = Measurement("near", 1e12, 1e11, 1e-5, to_device_Bps=5e10, from_device_Bps=4e10, round_trip_s=1e-5)
    far = Measurement("cpu of another machine", 4e11, 1e11, 1e-6, 1e9, 2e9, 1e-4)
    products = [Work(2 * n**3, 8 * n**2, 4 * n**2, 12 * n**2) for n in (16, 256, 1024)]
    addition = Work(flops=2**24, bytes_in=2**27, bytes_out=2**26, bytes_touched=2**27 + 2**26)
    training = Work(4e10, bytes_in=4e6, bytes_out=4e5, bytes_touched=2e9, num_launches=3000)
    small_steps = Work(1e7, bytes_in=1e4, bytes_out=1e4, bytes_touched=1e6, num_launches=2000)
    jobs = [*products, addition, training, small_steps, Work(1e12), Work(0, 1e9, 0, 0, num_launches=0)]
    cases = [(job, devices) for job in jobs for devices in ([cpu, gpu], [gpu, cpu, near], [far])]

    draw = Random(0)
    for _ in range(20):
        job = Work(*(10 ** draw.uniform(5, 10) for _ in range(4)), num_launches=draw.randint(0, 1000))
        ranges = [(9, 13), (9, 12), (-7, -4), (8, 11), (8, 11), (-6, -3)]
        speeds = [[10 ** draw.uniform(*each) for each in ranges] for _ in range(draw.randint(1, 4))]
        cases.append((job, [Measurement(f"device {k}", *each) for k, each in enumerate(speeds)]))
    return cases


first_to_finish = Exercise(
    first_to_finish,
    _dispatch_cases,
    [
        edit(
            "transfer + launch + compute",
            "launch + compute",
            "You count only what happens on the device. Data that is not there yet has to be brought, and the result "
            "fetched: round_trip_s, and bytes over the speed of the wire, in each direction.",
        ),
        edit(
            " + work.bytes_out / m.from_device_Bps",
            "",
            "The result is still on the device. Add bytes_out / from_device_Bps, which may be slower than the way in.",
        ),
        edit(
            "m.round_trip_s + ",
            "",
            "Bytes over bandwidth is there, but a trip costs time even for one number: add round_trip_s.",
        ),
        edit(
            "work.num_launches * m.launch_s",
            "m.launch_s",
            "You pay for one launch, and the work consists of num_launches of them.",
        ),
        edit(
            "max(work.flops / m.flops_per_s, work.bytes_touched / m.memory_Bps)",
            "work.flops / m.flops_per_s",
            "An operation also reads and writes memory, and may spend longer on that than on arithmetic. Take the "
            "larger of flops / flops_per_s and bytes_touched / memory_Bps.",
        ),
        edit(
            "max(work.flops / m.flops_per_s, work.bytes_touched / m.memory_Bps)",
            "work.flops / m.flops_per_s + work.bytes_touched / m.memory_Bps",
            "You add arithmetic and memory. A device does both at once, so the slower of the two decides: max.",
        ),
    ],
    [
        "Work out the whole time on each device first. Which parts has it, from the host's memory and back?",
        "Three parts: transfer (the round trip, bytes in, bytes out), launches, and compute, the slower of two things.",
        "compute = max(flops / flops_per_s, bytes_touched / memory_Bps). With a dictionary {name: seconds}: "
        "min(times, key=times.get).",
    ],
    atol=1e-12,
)


def scaled_lr(step, base_lr, base_batch, batch, warmup_steps):
    """The learning rate at `step` by the linear scaling rule with a warm-up.

    base_lr is known to work at batch size base_batch; the target for `batch`, which may also be smaller,
    is in proportion to it.
    step: counts from 0. At step 0 the rate is base_lr, at step warmup_steps (and ever after) the target,
    and between them it changes in equal parts. warmup_steps may be 0: the target from the start.
    """
    target = base_lr * batch / base_batch
    if step >= warmup_steps:
        return target
    return base_lr + (target - base_lr) * step / warmup_steps


def _every_rate(fn, base_lr, base_batch, batch, warmup_steps):
    steps = [*range(warmup_steps + 4), 10 * warmup_steps + 1000]
    shuffled = sorted(steps, key=lambda t: 5 * t % 7)  # the rate depends on `step`, not on how often it was asked for
    rates = {t: fn(t, base_lr, base_batch, batch, warmup_steps) for t in shuffled}
    return {f"step {t}": rates[t] for t in steps}


def _lr_cases():
    draw = Random(0)
    drawn = [(10 ** draw.uniform(-4, 1), *draw.choices(range(1, 3000), k=2), draw.randint(0, 20)) for _ in range(12)]
    edges = [(0.1, 256, 1024, 4), (0.1, 32, 48, 0), (0.4, 64, 32, 0), (0.4, 64, 32, 5), (0.4, 3, 1, 1), (2.0, 8, 8, 3)]
    return [*edges, (0.05, 8, 100, 10), (1, 2, 3, 2), *drawn]


scaled_lr = Exercise(
    scaled_lr,
    _lr_cases,
    [
        edit(
            "batch / base_batch",
            "base_batch / batch",
            "That is upside down: a larger batch has a less noisy gradient and takes fewer steps; each may be longer.",
        ),
        edit(
            "batch / base_batch",
            "(batch / base_batch) ** 0.5",
            "That is the square-root rule, which is advised for Adam. The linear rule has batch / base_batch.",
        ),
        edit(
            "batch / base_batch",
            "(batch // base_batch)",
            "`//` drops the fraction: 48 / 32 is 1.5 times the batch, and half a batch is half the rate, not zero.",
        ),
        edit(
            "return base_lr + (target - base_lr) * step / warmup_steps",
            "return target * step / warmup_steps",
            "Your ramp begins at 0. This one begins at base_lr, which is known to work from the first step on.",
        ),
        edit(
            " * step / warmup_steps",
            " * (step + 1) / warmup_steps",
            "Your ramp is one step early: at step 0 the rate is base_lr itself.",
        ),
        edit(
            " + (target - base_lr) * step / warmup_steps",
            "",
            "The rate jumps at the end of the warm-up. It is to go there in equal parts, step by step.",
        ),
        edit(
            "step >= warmup_steps",
            "warmup_steps == 0",
            "The ramp never ends: after warmup_steps the rate stays at the target.",
        ),
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

    Returns (best epoch, number of epochs trained). Epochs count from 0; the best epoch is -1, the untrained
    model, as long as none was better.
    losses: an iterator. Each item that is taken from it trains one more epoch and is the held-out loss
        after it, so never take one more than you need. It may also end by itself, even at once.
    patience: at least 1.
    min_delta: an epoch is better only if its loss is below that of the best epoch by *more* than this.
        The first finite loss is better than none; a loss of nan or inf is never better.
    """
    best, best_epoch, epoch = inf, -1, -1
    for epoch, loss in enumerate(losses):
        if loss < best - min_delta:
            best, best_epoch = loss, epoch
        elif epoch - best_epoch >= patience:
            break
    return best_epoch, epoch + 1


def _never_resets(losses, patience, min_delta=0.0):
    """Your count of bad epochs never goes back to 0. Only epochs in a row count: a better one starts afresh."""
    best, best_epoch, epoch, waited = inf, -1, -1, 0
    for epoch, loss in enumerate(losses):
        if loss < best - min_delta:
            best, best_epoch = loss, epoch
        else:
            waited += 1
            if waited >= patience:
                break
    return best_epoch, epoch + 1


def _count_epochs(fn, losses, patience, *min_delta):
    taken = []

    def train():
        for loss in losses:
            taken.append(loss)
            yield loss

    value = fn(train(), patience, *min_delta)
    return Outcome(value, {"epochs trained": len(taken)})


def _stopping_cases():
    """Losses are in sixteenths, so that a gain of exactly min_delta is one in any order of adding."""
    draw = Random(0)
    drawn = []
    for _ in range(30):
        losses = [draw.choice([20, 30, 30, 40, 10, nan, inf]) - draw.randint(0, k) for k in range(draw.randint(1, 16))]
        drawn.append(([loss / 16 for loss in losses], draw.randint(1, 4), *draw.choice([(), (0.125,), (0.25,)])))
    return [
        ([1.0, 0.5, 0.75, 0.625, 0.5, 0.25, 0.25, 0.25], 3),
        ([1.0, 0.75, 0.875, 0.5, 0.625, 0.375, 0.5, 0.5, 0.625, 0.25], 3),
        ([1.0, 0.5, 0.75, 0.625, 0.5625, 0.5, 0.25], 2),
        ([1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125], 2, 0.1875),
        ([1.0, 0.5, 0.4375, 0.375, 0.375, 0.375, 0.0, 0.0], 2, 0.125),
        ([1.0, 0.5, 0.5625, 0.5625, 0.5625, 0.5625, 0.0], 3, 0.125),
        ([1.0, 0.5, nan, nan, 0.25, nan, nan, nan, 0.125], 3),
        ([nan, nan, nan, 1.0], 2),
        ([nan, 1.0, nan, 0.5], 2),
        ([inf, inf, 1.0], 3, 1.0),
        ([inf, inf, 1.0], 2),
        ([0.0, 0.5, 0.5, 0.5, 0.25], 3),
        ([0.0, -1.0, -2.0, -2.0, -1.5], 2, 0.5),
        ([1e300, 1e299, 1e300, 1e300], 1),
        ([1.0, 0.5, 0.25], 5),
        ([1.0, 1 - 2**-20, 1 - 2**-19], 1),
        ([], 2),
        *drawn,
    ]


early_stopping = Exercise(
    early_stopping,
    _stopping_cases,
    [
        edit(
            ">= patience",
            "> patience",
            "You train one epoch too many: stop after the epoch that makes it `patience` in a row.",
        ),
        edit(
            ">= patience",
            ">= max(patience - 1, 1)",
            "You stop one epoch too soon: all `patience` epochs after the best one may be used up.",
        ),
        edit(
            "break",
            "break\n        best = loss",
            "You compare with the epoch before. After a bad epoch a slightly less bad one is no improvement: compare "
            "with the best so far.",
        ),
        _never_resets,
        edit(
            "loss < best",
            "loss <= best",
            "A loss exactly min_delta below the best passes as better. More than min_delta is asked for: <.",
        ),
        edit(
            "inf, -1, -1",
            "inf, 0, -1",
            "Epochs that bring nothing better count from the first one on: where all losses are nan, training ends "
            "after `patience` of them, and the best epoch is still -1.",
        ),
        edit("epoch + 1", "epoch", "Epochs count from 0, so after epoch k you have trained k + 1 of them."),
        edit(
            "enumerate(losses)",
            "enumerate(list(losses))",
            "`list(losses)` trains all epochs before you look at one. Take them one at a time, in a `for` loop, and "
            "`break`.",
        ),
    ],
    [
        "A `for` loop with `enumerate` takes one loss at a time. What has to be remembered from epoch to epoch?",
        "The best loss and the epoch it belongs to, inf and -1 at first. In a row without improvement: epoch − "
        "best_epoch epochs.",
        "Better: loss < best − min_delta. If not, and epoch − best_epoch >= patience: break.",
    ],
    outcome=_count_epochs,
)
