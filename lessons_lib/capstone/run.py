"""Run a plan on real ranks, with emulated devices and wires, while ranks die (lesson 28)."""

import statistics
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from functools import partial
from io import StringIO
from math import inf

import torch

from ..cost import Plan, predict
from ..errors import check_whole
from ..launch import launch
from ..models import GPT
from ..pager.diary import read_diaries
from ..pager.page import in_folder
from ..pager.score import Score as Night
from ..schedules import Links
from .net import held_out, loss_of, pieces, whole
from .plans import can_run
from .setup import Setup
from .worker import work

MOST_RESTARTS = 1000


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        step_s: seconds of a step, the median of those that counted, each on its slowest rank; 0 if none did.
        sent_bytes: that the rank which sends most sent in a step.
        memory_bytes: the most that a rank held in a step: parameters, the optimiser's state, gradients, activations.
        run_s: seconds from the first step to the end of the last.
        goodput: the share of them in steps that counted.
        device_s: all devices' seconds, which are paid for.
        loss: of text that was held out, in nats per token, by the whole model.
        model: the `models.GPT` that was trained, or None.
        refused: why there is no model, or "".
        night: a `pager.Score` with all events.
    """

    step_s: float
    run_s: float
    device_s: float
    sent_bytes: int
    memory_bytes: int
    goodput: float
    loss: float
    model: GPT | None
    refused: str
    night: Night = field(repr=False)


def run(setup, plan, save_every, folder=None, timeout_s=30.0):
    """Train as planned, on one process per device.

    Args:
        setup: a `Setup`.
        plan: a `cost.Plan` of its batch that `can_run` knows.
        save_every: steps from one checkpoint to the next; 0: none.
        folder: for checkpoints, beats and diaries, which are left there; by default one that is removed.
        timeout_s: as for `launch`.

    Returns:
        An `Outcome`. It is `refused` where a device has too little memory, and where the run starts again when it has
        taken three times the time that it had.

    Raises:
        ValueError: the plan cannot be run, or is of another batch.
    """
    _check(setup, plan)
    check_whole("save_every", save_every, 0)
    rank = partial(work, setup=setup, plan=plan, save_every=save_every)
    given = {"world_size": plan.num_devices, "links": setup.cluster.links, "timeout_s": timeout_s}
    with in_folder(folder) as place, redirect_stderr(StringIO()):  # the night tells of every start
        ranks = launch(rank, folder=place, restarts=MOST_RESTARTS, **given)
        return _outcome(setup, plan, ranks, read_diaries(place))


def _check(setup, plan):
    if not isinstance(setup, Setup):
        raise TypeError(f"setup is a {type(setup).__name__}: a Setup is needed")
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is a {type(plan).__name__}: a Plan is needed")
    if plan.batch != setup.batch:
        raise ValueError(f"plan has batch={plan.batch}: batch={setup.batch} is needed")
    if not can_run(plan):
        raise ValueError(f"{plan}: only batch, micro_batch, dp, tp and pp may differ from 1, 0, 'none' and False")
    predict(setup.model, setup.cluster, plan)


def _outcome(setup, plan, ranks, events):
    weights, reasons, sent_bytes, memory_bytes = zip(*ranks, strict=True)
    refused = reasons[0]
    model = None if refused else _joined(setup, weights)
    loss = inf if refused else held_out_loss(setup, model)
    counted = {what: {event.clock for event in events if event.what == what} for what in ("save", "recover")}
    begun = max((event.clock for event in events), default=0)
    is_right = not refused and all(map(_alike, weights, undisturbed(setup, plan)))
    numbers = (setup.num_steps, begun, len(counted["save"]), len(counted["recover"]))
    night = Night(*numbers, is_right, refused, events)
    run_s = night.time_s or 0.0
    seconds = (statistics.median(night.step_times_s or [0.0]), run_s, plan.num_devices * run_s)
    return Outcome(*seconds, max(sent_bytes), max(memory_bytes), night.goodput, loss, model, refused, night)


def _joined(setup, weights):
    """The whole `models.GPT` from what its ranks hold, named by the numbers of `GPT.stages()`."""
    model, state = whole(setup.model, setup.seed), {}
    for own in weights:
        state |= own
    torch.nn.Sequential(*model.stages()).load_state_dict(state)
    return model.eval()


@torch.no_grad()
def held_out_loss(setup, model):
    """Nats per token, on 64 pieces of the text that was held out."""
    x, y = pieces(held_out(), 64, setup.model.context, torch.Generator().manual_seed(0))
    return loss_of(model(x), y).item()


def undisturbed(setup, plan):
    """What the ranks of `plan` hold after all steps where nobody dies and nothing takes time: the same to the bit."""
    cluster = replace(setup.cluster, flops=inf, half_flops=0.0, links=Links())
    quiet = replace(setup, cluster=cluster, mean_between=inf, restart_s=0.0)
    rank = partial(work, setup=quiet, plan=plan, save_every=0)
    with in_folder(None) as place:
        return [weights for weights, *_ in launch(rank, folder=place, world_size=plan.num_devices)]


def _alike(ours, theirs):
    return all(ours[name].equal(weight) for name, weight in theirs.items())
