"""Steps of our own strategies beside what the cost model says, with constants that are measured on none of them.

What share of its measured speed a rank reaches in training is fitted on steps of two other models, which each rank
trains alone, all at once: one number for computing and memory.
"""

import statistics
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional as F

from ..cost import Model, Plan, predict
from ..cost.here import measure_here
from ..launch import launch
from ..models import GPT
from ..parallel import DataParallel, PipelineParallel, gpt_plan, parallel_cross_entropy, parallelize, split_layers
from ..schedules import one_f_one_b
from .turns import Row, take_turns

SHAPES = {"num_layers": 4, "width": 256, "heads": 4, "vocabulary": 256, "context": 128}
MODEL = Model(**SHAPES, fused=True, dropout=False, itemsize=4, recipe="float32 adam")
PLANS = {
    "one rank": Plan(8, 8),
    "DataParallel, 2 ranks": Plan(16, 8, dp=2),
    "tensor parallel, 2 ranks": Plan(8, 8, tp=2),
    "1F1B, 2 ranks": Plan(16, 2, pp=2),
}


def others(model):
    """(model, plan) of two steps whose models are half as wide, and half as wide again."""
    half, wider = (replace(model, width=model.width * n // 2, hidden=None, kv_heads=None) for n in (1, 3))
    return [(half, Plan(16, 16)), (wider, Plan(4, 4))]


def predicted_plans(repeats, plans=PLANS, model=MODEL):
    """A `Row` for each plan, predicted over measured, and one with the median error."""
    rows = []
    for name, plan in plans.items():
        clusters, times = zip(*launch(_measured, plan, repeats, model, world_size=plan.num_devices), strict=True)
        took_s = statistics.median(max(turn) for turn in zip(*times, strict=True))
        predicted_s = predict(model, clusters[0], plan).time_s
        ratio = predicted_s / took_s
        rows.append(Row(f"cost of a GPT's step, {name}", "measured", predicted_s, took_s, *[ratio] * 3, "0.85..1.15"))
    error = statistics.median(abs(1 - row.ratio) for row in rows)
    sums_s = sum(row.ours_s for row in rows), sum(row.theirs_s for row in rows)
    return [*rows, Row("median error of these costs", "measured", *sums_s, *[error] * 3, "<= 0.15")]


def _measured(comm, plan, repeats, model):
    torch.set_num_threads(1)
    cluster, alone = measure_here(comm), others(model)  # before: its products and copies need room of their own
    sides = [trainer(comm, plan, model)[0], *(trainer(comm, by_itself, other)[0] for other, by_itself in alone)]
    take_turns(comm, 1, *sides)  # a warm-up
    times, *took_alone = take_turns(comm, repeats, *sides)
    predicted_s = [predict(other, cluster, by_itself).time_s for other, by_itself in alone]
    share = statistics.mean(p / statistics.median(took_s) for p, took_s in zip(predicted_s, took_alone, strict=True))
    return replace(cluster, flops=share * cluster.flops, memory_Bps=share * cluster.memory_Bps), times


def trainer(comm, plan, model=MODEL):
    """(step, module, optimizer): `step()` trains a GPT of these shapes for one step of `plan`, on one axis at most."""
    torch.manual_seed(0)
    tokens = torch.randint(model.vocabulary, (plan.batch // plan.dp, model.context))
    gpt = GPT(model.vocabulary, model.width, model.num_layers, model.heads, model.context)
    if plan.pp > 1:
        net = PipelineParallel(split_layers(gpt.stages(), plan.pp), comm, one_f_one_b(plan.pp, plan.num_micro_batches))
        passes = partial(net.step, tokens, tokens, _loss)
    else:
        if plan.tp > 1:
            parallelize(gpt, comm, gpt_plan(gpt), sequence_parallel=plan.sequence, gather_again=plan.sequence)
        net = DataParallel(gpt, comm) if plan.dp > 1 else gpt
        loss_fn = partial(parallel_cross_entropy, comm=comm, vocabulary=model.vocabulary) if plan.tp > 1 else _loss

        def passes():
            loss_fn(net(tokens), tokens).backward()

    optimizer = torch.optim.Adam(net.parameters())

    def step():
        optimizer.zero_grad()
        passes()
        optimizer.step()

    return step, net, optimizer


def _loss(logits, tokens):
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
