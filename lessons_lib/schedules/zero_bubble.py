"""Pipelines that split the backward pass, so that the gradients of the weights fill the idle slots (lesson 16)."""

from ..errors import check_sizes
from .orders import made_by, pipeline


def zb_h1(num_stages, num_micro_batches):
    """1F1B with backward in two halves: the gradient of the input first, since another stage waits for it.

    Stage s puts the weight gradients off by s micro-batches, and does them where 1F1B is idle. No rank holds more than
    min(p, m) stashes, and a step is idle for (p-1)(F + I - W) with the times F, I, W of the three computations: with
    F = I = W a third of 1F1B's (p-1)(F + I + W).

    Source: Qi et al., Zero Bubble Pipeline Parallelism (2023), §2.1; lesson 16.
    """
    check_sizes(num_stages=num_stages, num_micro_batches=num_micro_batches)
    orders = []
    for stage in range(num_stages):
        ahead = min(num_stages - stage, num_micro_batches)
        order = [("forward", stage, m) for m in range(ahead)]
        for m in range(num_micro_batches + stage):
            if m < num_micro_batches:
                order.append(("input", stage, m))
            if m - stage >= 0:
                order.append(("weight", stage, m - stage))
            if m + ahead < num_micro_batches:
                order.append(("forward", stage, m + ahead))
        orders.append(order)
    return pipeline(orders, range(num_stages), "ZB-H1")


def zbv(num_ranks, num_micro_batches):
    """Two stages per rank, placed like a V: rank r holds the stages r and 2p - 1 - r.

    The first and the last stage lie on one rank, so that gradients come back at once. No rank holds more than 2p
    stashes of half the size of a 1F1B stage's, as much as rank 0 of 1F1B. With F = I = W and m ≥ 2p no rank is idle
    between its first step and its last but while the first micro-batch comes down the V.

    Source: Qi et al., Pipeline Parallelism with Controllable Memory (2024), §3; lesson 16. There the order is written
    down; here it follows from what is most urgent.
    """
    check_sizes(num_ranks=num_ranks, num_micro_batches=num_micro_batches)
    placement = [*range(num_ranks), *reversed(range(num_ranks))]
    return pipeline(_most_urgent_first(num_ranks, num_micro_batches), placement, "ZBV")


def _most_urgent_first(num_ranks, num_micro_batches):
    """Slot by slot, each rank does the most urgent step that can be done: the orders that `pipeline` takes.

    A forward on the way up to the loss comes first, then the gradient of an input, since others wait for it; then a
    forward on the way down, if the rank holds fewer than 2p stashes; then the gradient of weights, for which nobody
    waits.
    """
    parts = range(num_micro_batches)
    todo, orders = [], [[] for _ in range(num_ranks)]
    for rank in range(num_ranks):
        down, up = rank, 2 * num_ranks - 1 - rank
        urgent = [("forward", up), ("input", up), ("input", down), ("forward", down), ("weight", up), ("weight", down)]
        todo.append([(*each, part) for each in urgent for part in parts])
    there = {("activation", -1, part) for part in parts}
    while any(todo):
        chosen = [_first_possible(own, order, there, 2 * num_ranks) for own, order in zip(todo, orders, strict=True)]
        for rank, step in enumerate(chosen):
            if step is not None:
                orders[rank].append(step)
                todo[rank].remove(step)
                there |= {step, made_by(*step)}
    return orders


def _first_possible(todo, order, there, limit):
    """The first step of `todo` whose block is there, or None."""
    num_stashes = sum(op == "forward" for op, *_ in order) - sum(op == "weight" for op, *_ in order)
    for step in todo:
        op, stage, part = step
        is_last = stage == limit - 1
        needed = {
            "forward": {("activation", stage - 1, part)},
            "input": {("forward", stage, part)} | (set() if is_last else {("gradient", stage, part)}),
            "weight": {("input", stage, part)},
        }[op]
        if needed <= there and (op != "forward" or num_stashes < limit):
            return step
    return None
