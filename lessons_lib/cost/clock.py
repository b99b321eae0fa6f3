"""The time of a step on a virtual cluster: computing, memory, messages, the idle ends of a pipeline, the optimizer."""

from dataclasses import dataclass, replace

import numpy as np

from ..memory import RECIPES
from ..schedules import Links, interleaved, one_f_one_b, simulate
from .shapes import check_fits, check_types
from .space import memory_of, tokens_of, weights_of
from .wires import traffic


@dataclass(frozen=True)
class Prediction:
    """What one step costs.

    Attributes:
        time_s: seconds. parts_s: {what: seconds} that add up to it, on the last and slowest stage.
        memory: {what: bytes} of the fullest device. memory_bytes: their sum.
        sent_bytes: {axis: bytes} that one device sends, in the middle of the pipeline.
        flops: operations of the model, without those that are done again. flops_per_s: of each device.
        energy_J, money: of all devices of the plan.
    """

    time_s: float
    parts_s: dict
    memory: dict
    sent_bytes: dict
    flops: float
    flops_per_s: float
    energy_J: float
    money: float

    @property
    def memory_bytes(self):
        return sum(self.memory.values())


def predict(model, cluster, plan):
    """Predict what one training step costs.

    A matrix product of F operations takes (F + half_flops) / flops; what lies between the products takes the bytes that
    it reads and writes over memory_Bps. A backward pass computes twice what a forward pass does, and moves 1.5 times as
    much. Collectives are rings of α-β links. A pipeline of p ranks with v stages each is idle for (p - 1) / v
    micro-batches. With `overlap` messages of dp, cp and pp count only as far as they take longer than the computing
    beside them.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the plan needs more devices than there are, or cuts what cannot be cut.

    Source: Narayanan et al. (2021), §2.2 and §3; Korthikanti et al. (2022), §4 to §6; Isaev et al., Calculon (2023).
    """
    _check(model, cluster, plan)
    rings, m = traffic(model, plan), plan.num_micro_batches
    wires_s = {axis: each.time_s(cluster.links, plan.num_devices) for axis, each in rings.items()}
    compute_s, memory_s, scores_s = _blocks(model, cluster, plan)
    if plan.overlap:
        beside_s = {"cp": m * scores_s, "dp": compute_s * 2 / 3 * (m if plan.zero == 3 else 1), "pp": compute_s * m}
        wires_s |= {axis: max(0.0, wires_s[axis] - hidden_s) for axis, hidden_s in beside_s.items()}
    stage_s = compute_s + memory_s + sum(wires_s[axis] for axis in ("tp", "cp", "ep")) / m
    parts_s = {"compute": m * compute_s, "memory": m * memory_s, "logits": m * _logits(model, cluster, plan), **wires_s}
    parts_s["idle"] = (plan.pp - 1) / plan.v * stage_s
    optimized = weights_of(model, plan) / (plan.dp if plan.zero else 1)
    parts_s["optimizer"] = 2 * optimized * sum(RECIPES[model.recipe].values()) / cluster.memory_Bps
    time_s, flops = sum(parts_s.values()), model_flops(model, plan)
    sent = {axis: each.sent_bytes for axis, each in rings.items()}
    device_s = plan.num_devices * time_s
    costs = (flops / device_s, cluster.watts * device_s, cluster.price * device_s / 3600)
    return Prediction(time_s, parts_s, memory_of(model, plan), sent, flops, *costs)


def _check(model, cluster, plan):
    check_types(model=model, cluster=cluster, plan=plan)
    check_fits(model, plan)
    if plan.num_devices > cluster.num_devices:
        needed = f"dp · tp · pp · cp = {plan.num_devices}"
        raise ValueError(f"{needed}: at most num_devices={cluster.num_devices} are possible")


def _blocks(model, cluster, plan):
    """Seconds per micro-batch and stage, of all passes: to compute, to move memory, and to compute the scores alone."""
    tokens, t, stage = tokens_of(model, plan), plan.tp, model.num_layers / plan.pp
    active = model.active if model.num_experts else 1
    weights = model.attention_weights + active * model.expert_weights
    causal = 0.5 if model.fused else 1.0  # a fused kernel skips the half above the diagonal
    products = (2 * tokens * weights / t + (6 + model.gated) * cluster.half_flops) / cluster.flops
    scores = (causal * 4 * tokens * model.context * model.width / t + 2 * cluster.half_flops) / cluster.flops
    # Read or written once each: by two norms 4 h, by two dropouts with their additions 7 h; by the activation 2 f.
    around = 11 * model.width / (t if plan.sequence else 1) + (2 + model.gated) * active * model.hidden / t
    matrix = 0 if model.fused else 6.5 * model.heads * model.context / t  # by softmax, dropout and the product after
    moves, moves_scores = (tokens * model.itemsize * each / cluster.memory_Bps for each in (around, matrix))
    all_again = plan.recompute == "full"
    passes, passes_scores = 3 + all_again, 3 + (plan.recompute != "none")
    compute_s = stage * (passes * products + passes_scores * scores)
    return (
        compute_s,
        stage * ((passes - 0.5) * moves + (passes_scores - 0.5) * moves_scores),
        stage * passes_scores * scores,
    )


def _logits(model, cluster, plan):
    """Seconds per micro-batch of the logits and their loss, in both passes."""
    numbers = tokens_of(model, plan) * model.vocabulary / plan.tp
    moved = 4 * 4 * numbers / cluster.memory_Bps  # written, read for the maximum, the sum and the gradient
    return 3 * (2 * numbers * model.width + cluster.half_flops) / cluster.flops + moved


def model_flops(model, plan):
    """Operations of a step as papers count them: 72 B L s h² (1 + s/6h + V/12hL) with batch B and f = 4 h.

    With fused attention the half above the diagonal is not counted, as it is not computed.
    """
    active = model.active if model.num_experts else 1
    scores = (6 if model.fused else 12) * model.context * model.width
    block = 6 * (model.attention_weights + active * model.expert_weights) + scores
    return plan.batch * model.context * (model.num_layers * block + 6 * model.vocabulary * model.width)


def timeline(model, cluster, plan, spans=None):
    """Play the pipeline of a plan on the virtual clock of `schedules.simulate`: a `Simulation`, and its trace.

    It begins with the first forward pass and ends with the last backward pass: without dp and the optimizer.
    """
    part = predict(model, cluster, plan).parts_s
    m, whole = plan.num_micro_batches, plan.v * plan.num_micro_batches
    again = {"none": 0, "selective": 0, "full": 1}[plan.recompute]
    forward = (sum(part[what] for what in ("compute", "memory", "tp", "cp", "ep"))) / whole / (3 + again)
    program = one_f_one_b(plan.pp, m) if plan.v == 1 else interleaved(plan.pp, m, plan.v)
    last, logits = plan.pp * plan.v - 1, part["logits"] / m / 3

    def cost_s(rank, step):
        passes = 1 if step.op == "forward" else 2
        return forward * (passes + again * (passes == 2)) + passes * logits * (step.block[0] == last)

    journey_s = traffic(model, plan)["pp"]._replace(num_rings=1).time_s(cluster.links, plan.num_devices)
    return simulate(program, cost_s=cost_s, links=Links(latency_s=journey_s), spans=spans)


def fit(cluster, rows):
    """Fit what share of its `flops`, and what share of its bandwidths, a cluster reaches: a new `Cluster`.

    Args:
        cluster: with the numbers of the data sheet.
        rows: (model, plan, measured seconds), at least two, none with `overlap`.

    Returns:
        The cluster that makes the sum of the squared relative errors smallest. There are two constants, no more.

    Raises:
        ValueError: `rows` has fewer than two, one that is not as above, or times that no positive constants explain.
    """
    check_types(cluster=cluster)
    if any(plan.overlap or not took_s > 0 for _, plan, took_s in rows):
        raise ValueError("rows has a plan with overlap, or a time that is not positive")
    if len(rows) < 2:
        raise ValueError(f"rows has {len(rows)}: at least 2 are needed, as there are 2 constants")
    never = 1e30
    still = replace(cluster, memory_Bps=never, links=_scaled(cluster.links, never))
    parts = [[predict(model, still, plan).time_s / took_s for model, plan, took_s in rows]]
    parts.append([predict(m, cluster, p).time_s / took_s - c for (m, p, took_s), c in zip(rows, parts[0], strict=True)])
    (slower, later), *_ = np.linalg.lstsq(np.array(parts).T, np.ones(len(rows)), rcond=None)
    if slower <= 0 or later <= 0:
        raise ValueError(f"rows of {len(rows)} steps: no shares of flops and bandwidths above 0 explain their times")
    bandwidth = {"memory_Bps": cluster.memory_Bps / later, "links": _scaled(cluster.links, 1 / later)}
    return replace(cluster, flops=cluster.flops / slower, **bandwidth)


def _scaled(links, share):
    inside = links.inside and _scaled(links.inside, share)
    return replace(links, bandwidth_Bps=links.bandwidth_Bps * share, inside=inside)
