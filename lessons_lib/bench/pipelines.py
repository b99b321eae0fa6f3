"""Pipelines: a step of 1F1B beside torch's own, and steps of six pipelines beside what a virtual clock predicts."""

import statistics
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from ..launch import launch
from ..parallel import PipelineParallel, emulate_device
from ..schedules import Links, gpipe, interleaved, one_f_one_b, pipeline, simulate, zb_h1, zbv
from .turns import Row, compared, shared_memory, slowest, take_turns

WIDTH, ROWS = 64, 8  # of an activation: a micro-batch has 8 rows
LINKS = Links(latency_s=2e-3, bandwidth_Bps=100e6)
COSTS_S = {"forward": 8e-3, "backward": 16e-3, "input": 8e-3, "weight": 8e-3}  # of a quarter of the model
SET_UPS = {  # of four ranks; the costs are measured on none of them
    "GPipe, 16 micro-batches": (gpipe, 16),
    "1F1B, 8 micro-batches": (one_f_one_b, 8),
    "1F1B, 16 micro-batches": (one_f_one_b, 16),
    "interleaved, 16 micro-batches": (interleaved, 16),
    "ZB-H1, 16 micro-batches": (zb_h1, 16),
    "ZBV, 16 micro-batches": (zbv, 16),
}


def one_f_one_b_step(num_ranks, repeats, num_micro_batches=8):
    """A training step of 1F1B with stages so small that messages and bookkeeping are what counts."""

    def fn(comm):
        torch.set_num_threads(1)
        inner = shared_memory(comm)
        x = torch.ones(num_micro_batches * ROWS, WIDTH)
        net = PipelineParallel([_stage() for _ in range(num_ranks)], inner, one_f_one_b(num_ranks, num_micro_batches))
        module = _stage()
        stage = PipelineStage(module, comm.rank, num_ranks, torch.device("cpu"))
        theirs = Schedule1F1B(stage, num_micro_batches, loss_fn=nn.functional.mse_loss)
        inputs = (x,) if comm.rank == 0 else ()
        target = {"target": x} if comm.rank == num_ranks - 1 else {}
        sides = [
            _trainer(net, partial(net.step, x, x, nn.functional.mse_loss)),
            _trainer(module, partial(theirs.step, *inputs, **target)),
        ]
        return take_turns(inner, repeats, *sides, calls=5)

    ours_s, theirs_s = slowest(launch(fn, world_size=num_ranks, transport="torch"))
    what = f"step of 1F1B, {num_ranks} small stages, {num_micro_batches} micro-batches"
    return [compared(what, "Schedule1F1B over gloo", ours_s, theirs_s, ">= 1.5")]


def predicted_steps(repeats, set_ups=SET_UPS):
    """Costs measured on one rank, a journey on two; then steps on four ranks, emulated links and devices: predicted
    over measured."""
    costs_s, journey_s = measured_costs(), measured_journey()
    rows = []
    for name, (make, num_micro_batches) in set_ups.items():
        program = make(4, num_micro_batches)
        share = 4 / program.num_stages
        costs = {op: share * COSTS_S[op] + costs_s[op] - COSTS_S[op] for op in COSTS_S}
        predicted_s = simulate(program, cost_s=costs, links=Links(latency_s=journey_s)).total_s
        ran = launch(step_times, program, share, repeats, world_size=4, links=LINKS)
        measured_s = statistics.median(max(times) for times in zip(*ran, strict=True))
        ratio = predicted_s / measured_s
        rows.append(Row(f"predict a step of {name}", "measured", predicted_s, measured_s, *[ratio] * 3, "0.85..1.15"))
    error = statistics.median(abs(1 - row.ratio) for row in rows)
    sums_s = sum(row.ours_s for row in rows), sum(row.theirs_s for row in rows)
    return [*rows, Row("median error of these predictions", "measured", *sums_s, *[error] * 3, "<= 0.15")]


def step_times(comm, program, share, repeats):
    """On a rank: the seconds of each step, in which each stage takes `share` of `COSTS_S`."""
    torch.set_num_threads(1)
    net = PipelineParallel([_stage() for _ in range(program.num_stages)], comm, program)
    x = torch.ones(program.num_micro_batches * ROWS, WIDTH)
    net.step(x, x, nn.functional.mse_loss)  # a warm-up
    emulate_device(comm, {op: share * seconds for op, seconds in COSTS_S.items()})
    return take_turns(comm, repeats, partial(net.step, x, x, nn.functional.mse_loss))[0]


def measured_costs():
    """{op: seconds} from the start of one step to the start of the next, on one rank that does everything."""
    whole = [(op, 0, m) for op in ("forward", "backward") for m in range(8)]
    halves = [(op, 0, m) for op in ("forward", "input", "weight") for m in range(8)]
    took_s = {}
    for order in (whole, halves):
        trace = launch(step_times, pipeline([order]), 1.0, 1, world_size=1, trace=True).trace
        spans = [span for span in trace.spans if span.kind == "compute"][len(order) :]  # those after the warm-up
        for span, following in pairwise(spans):
            took_s.setdefault(span.label.split()[0], []).append(following.start_s - span.start_s)
    return {op: statistics.median(times) for op, times in took_s.items()}


def measured_journey():
    """Seconds that an activation is under way between two ranks over `LINKS`."""

    def there_and_back(comm):
        x = torch.zeros(ROWS, WIDTH)
        first, then = (comm.send, comm.recv) if comm.rank == 0 else (comm.recv, comm.send)

        def turn():
            first(x, 1 - comm.rank)
            then(x, 1 - comm.rank)

        return statistics.median(take_turns(comm, 20, turn)[0])

    return max(launch(there_and_back, world_size=2, links=LINKS)) / 2


def _stage():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())


def _trainer(module, step):
    """A function that does one training step: `step` computes the gradients of `module`."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)

    def train():
        optimizer.zero_grad()
        step()
        optimizer.step()

    return train
