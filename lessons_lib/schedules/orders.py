"""From the order in which each rank computes to a whole pipeline program: its messages are put in (lesson 16)."""

from collections import defaultdict

from .pipeline import COMPUTES, Pipeline
from .program import Step


def pipeline(orders, placement=None, name="own pipeline"):
    """Make a program out of the order in which each rank computes.

    A block is sent as soon as it is made, and received just before it is used; what the same rank has sent before it is
    received before it.

    Args:
        orders: for each rank a list of (op, stage, micro_batch), such as ("forward", 0, 2); the ops are "forward",
            "backward", and its two halves "input" and "weight".
        placement: for each stage its rank; by default the first rank that has the stage in its order.
        name: how figures and errors call it.

    Returns:
        A `Pipeline` of all micro-batches that occur. It need not be right: `verify` says whether it is.

    Raises:
        ValueError: `orders` holds something else, or a stage is in no order.
    """
    _check(orders)
    placement = tuple(placement) if placement is not None else _first_places(orders)
    num_micro_batches = 1 + max((micro_batch for order in orders for _, _, micro_batch in order), default=0)
    queues = _queues(orders, placement)
    steps = [_with_messages(rank, order, placement, queues) for rank, order in enumerate(orders)]
    return Pipeline(steps, name, placement, num_micro_batches)


def _check(orders):
    for rank, order in enumerate(orders):
        for each in order:
            if not isinstance(each, tuple | list) or len(each) != 3 or each[0] not in COMPUTES:
                accepted = f"(op, stage, micro_batch) is needed, with op {', '.join(COMPUTES)}"
                raise ValueError(f"orders[{rank}] holds {each!r}: {accepted}")
            if any(not isinstance(part, int) or part < 0 for part in each[1:]):
                raise ValueError(f"orders[{rank}] holds {each!r}: stage and micro_batch are whole numbers from 0")


def _first_places(orders):
    """For each stage the first rank that computes it."""
    places = {}
    for rank, order in enumerate(orders):
        for _, stage, _ in order:
            places.setdefault(stage, rank)
    if missing := sorted(set(range(max(places, default=0) + 1)) - set(places)):
        raise ValueError(f"orders: stage {missing[0]} is computed by no rank")
    return tuple(places[stage] for stage in sorted(places))


def _queues(orders, placement):
    """{(src, dst): the blocks that go that way, in the order in which they are made}."""
    queues = defaultdict(list)
    for src, order in enumerate(orders):
        for each in order:
            if (block := made_by(*each)) and (dst := _goes_to(block, placement)) not in (None, src):
                queues[src, dst].append(block)
    return queues


def _with_messages(rank, order, placement, queues):
    """The steps of one rank."""
    steps, taken = [], defaultdict(int)  # src: how many blocks of its queue have been received
    for op, stage, micro_batch in order:
        block = used_by(op, stage, micro_batch)
        for src, dst in queues:
            rest = queues[src, dst][taken[src] :]
            if dst == rank and block in rest:
                upto = rest.index(block) + 1
                steps += [Step("recv", each, src) for each in rest[:upto]]
                taken[src] += upto
        steps.append(Step(op, (stage, micro_batch)))
        made = made_by(op, stage, micro_batch)
        if made and (dst := _goes_to(made, placement)) not in (None, rank):
            steps.append(Step("send", made, dst))
    return steps


def made_by(op, stage, micro_batch):
    """The block for another stage that a computing step makes, or None."""
    made = {"forward": ("activation", stage), "backward": ("gradient", stage - 1), "input": ("gradient", stage - 1)}
    return (*made[op], micro_batch) if op in made else None


def used_by(op, stage, micro_batch):
    """The block of another stage that a computing step uses up, or None."""
    used = {"forward": ("activation", stage - 1), "backward": ("gradient", stage), "input": ("gradient", stage)}
    return (*used[op], micro_batch) if op in used else None


def _goes_to(block, placement):
    """The rank of the stage that uses a block up, or None where the pipeline ends."""
    kind, stage, _ = block
    user = stage + 1 if kind == "activation" else stage
    return placement[user] if 0 <= user < len(placement) else None
