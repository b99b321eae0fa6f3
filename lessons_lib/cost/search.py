"""The cheapest plan that fits, and what each of the others lost by."""

from dataclasses import dataclass
from itertools import product
from math import inf
from typing import NamedTuple

from ..errors import check_whole
from .clock import Prediction, predict
from .shapes import RECOMPUTE, Plan, check_types

_LONG = 4096  # tokens


@dataclass(frozen=True)
class Budget:
    """What a step must do, and may take.

    Args:
        batch: sequences per step.
        time_s, money: the most that a step may take and cost.
    """

    batch: int
    time_s: float = inf
    money: float = inf

    def __post_init__(self):
        check_whole("batch", self.batch, 1)
        for name in ("time_s", "money"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: more than 0 is needed")


class Candidate(NamedTuple):
    """A plan with its `Prediction`, and why it lost: "" of the best."""

    plan: Plan
    prediction: Prediction
    reason: str


def search(model, cluster, budget, candidates=None):
    """Find the cheapest plan that fits: the least money; where devices have no price the least device-seconds.

    Args:
        model, cluster: a `Model` and a `Cluster`; a plan may leave devices unused.
        budget: a `Budget`.
        candidates: the plans to choose from; if not given, all that `plans` finds.

    Returns:
        A list of `Candidate`s, the best first, those that fit in their order, then those that do not.

    Raises:
        TypeError: an argument is of another type.
        ValueError: nothing fits; says what comes closest.
    """
    check_types(model=model, cluster=cluster)
    if not isinstance(budget, Budget):
        raise TypeError(f"budget is a {type(budget).__name__}: a Budget is needed")
    candidates = plans(model, cluster, budget.batch) if candidates is None else candidates
    tried = [(plan, predict(model, cluster, plan)) for plan in candidates]
    if not tried:
        raise ValueError(f"batch={budget.batch}: no plan divides it, the layers and the heads among the devices")
    fit = [each for each in tried if not _too_much(each[1], cluster, budget)]
    if not fit:
        plan, ran = min(tried, key=lambda each: (max(0, each[1].memory_bytes - cluster.memory_bytes), each[1].time_s))
        raise ValueError(
            f"none of {len(tried)} plans fits. What comes closest {_too_much(ran, cluster, budget)}: {plan}"
        )
    fit.sort(key=lambda each: (_device_s(*each), each[1].memory_bytes))
    best, *others = fit
    lost = [Candidate(*each, reason) for each in tried if (reason := _too_much(each[1], cluster, budget))]
    return [Candidate(*best, ""), *(Candidate(*each, _dearer(each, best)) for each in others), *lost]


def plans(model, cluster, batch):
    """Every plan that cuts evenly: tp inside a node, micro-batches of 1, 2, 4 or 8 sequences, and for each rank of cp
    at least `_LONG` tokens, as only long sequences are worth cutting."""
    inside = cluster.links.group_size if cluster.links.inside else cluster.num_devices
    sequences = [n for n in (1, 2, 4, 8, 16) if n == 1 or (model.context % n == 0 and model.context // n >= _LONG)]
    axes = product(_divisors(model.heads), _divisors(model.num_layers), _divisors(batch), sequences)
    for tp, pp, dp, cp in axes:
        if inside % tp or model.hidden % tp or tp * pp * dp * cp > cluster.num_devices:
            continue
        experts = [n for n in _divisors(dp) if model.num_experts and model.num_experts % n == 0] or [1]
        stages = [1, *(v for v in _divisors(model.num_layers // pp) if 1 < v <= 8 and pp > 1)]
        sizes = [n for n in (1, 2, 4, 8) if batch // dp % n == 0]
        ways = product(sizes, stages, experts, RECOMPUTE, {False, tp > 1}, (0, 1, 3) if dp > 1 else (0,))
        for micro_batch, v, ep, recompute, sequence, zero in ways:
            if v == 1 or batch // dp // micro_batch % pp == 0:
                yield Plan(batch, micro_batch, dp, tp, pp, cp, ep, v, zero, recompute, sequence, overlap=True)


def _divisors(number):
    return [n for n in range(1, number + 1) if number % n == 0]


def _device_s(plan, ran):
    """What is paid for. All devices of a cluster have one price."""
    return plan.num_devices * ran.time_s


def _too_much(ran, cluster, budget):
    """By what a plan breaks the budget, or ""."""
    if ran.memory_bytes > cluster.memory_bytes:
        return f"needs {ran.memory_bytes / 1e9:.4g} GB per device: {cluster.memory_bytes / 1e9:.4g} GB are there"
    if ran.time_s > budget.time_s:
        return f"takes {ran.time_s:.4g} s: {budget.time_s:.4g} s are allowed"
    return f"costs {ran.money:.4g}: {budget.money:.4g} is allowed" if ran.money > budget.money else ""


def _dearer(each, best):
    """By how much a plan is dearer than the best one, and the part that has grown most."""
    more = _device_s(*each) / _device_s(*best) - 1
    grown = {
        what: each[0].num_devices * part_s - best[0].num_devices * best[1].parts_s[what]
        for what, part_s in each[1].parts_s.items()
    }
    what = max(grown, key=grown.get)
    return (
        f"{more:.1%} dearer, most of all {what}: {grown[what] / _device_s(*best):.1%}"
        if more
        else "as cheap, but needs more memory"
    )
