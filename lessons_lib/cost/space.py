"""The memory of one device, in bytes: what parameters, optimiser and activations take under a plan."""

from ..memory import RECIPES


def memory_of(model, plan):
    """The bytes of the fullest device, which has the first stage: {what: bytes}.

    Layers are shared out evenly, also where pp does not divide them. "ends" is the table of tokens with its share of
    the optimiser; without a pipeline also the logits, their logarithms and their gradients.

    Source: Korthikanti et al. (2022), §4 and §5; Rajbhandari et al., ZeRO (2020), §5.
    """
    t = plan.tp
    divided = {"parameters": 3, "gradients": 2}  # from which stage of ZeRO on; the optimizer's state from 1
    per_number = {
        what: size / (plan.dp if plan.zero >= divided.get(what, 1) else 1)
        for what, size in RECIPES[model.recipe].items()
    }
    table = model.vocabulary * model.width / t
    blocks = weights_of(model, plan) - table
    ends = table * sum(per_number.values())
    if plan.pp == 1:
        ends += tokens_of(model, plan) * model.vocabulary / t * (model.itemsize + 8)
    kept = model.num_layers / plan.pp / plan.v * most_kept(plan) * layer_activations(model, plan)
    optimizer = sum(size for what, size in per_number.items() if what not in divided)
    return {
        "parameters": blocks * per_number["parameters"],
        "gradients": blocks * per_number["gradients"],
        "optimizer": blocks * optimizer,
        "activations": kept,
        "ends": ends,
    }


def tokens_of(model, plan):
    """How many tokens of a micro-batch one device has."""
    return plan.micro_batch * model.context / plan.cp


def weights_of(model, plan):
    """How many weights one device of the first stage has, before ZeRO divides them."""
    experts = max(1, model.num_experts) * model.expert_weights / plan.ep
    blocks = model.num_layers / plan.pp * (model.attention_weights + experts)
    return (blocks + model.vocabulary * model.width) / plan.tp


def most_kept(plan):
    """How many stashes of one stage the first rank holds at once: as `count` finds in the schedule."""
    whole = plan.num_micro_batches * plan.v
    ahead = plan.pp if plan.v == 1 else plan.v * plan.pp + plan.pp - 1
    return min(ahead, whole)


def layer_activations(model, plan):
    """The bytes that one block keeps of one micro-batch: with 16 bits, dropout and f = 4 h, s b h (10 + 24/t + 5as/ht).

    With full recomputation what one block keeps while it is run again comes on top, once; that is left out, as there.
    """
    item, t, h = model.itemsize, plan.tp, model.width
    tokens = tokens_of(model, plan)
    around = t if plan.sequence else 1
    if plan.recompute == "full":
        return tokens * h * item / around
    alike = 4 * item + 2 * model.dropout  # the inputs of two norms and two branches, and two masks
    heads = item * (2 + 2 * model.kv_width / h)  # queries, keys, values, answers
    hidden = item * (2 + model.gated) * model.hidden / h * (model.active if model.num_experts else 1)
    scores = (
        0
        if model.fused or plan.recompute == "selective"
        else (2 * item + model.dropout) * model.heads * model.context / h
    )
    return tokens * h * (alike / around + (heads + hidden + scores) / t)
