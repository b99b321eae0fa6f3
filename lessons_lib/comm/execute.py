"""Execute a schedule: every rank takes its own messages out of every round and does them."""

import torch


def _maximum(mine, theirs):
    return torch.maximum(mine, theirs, out=mine)


def _minimum(mine, theirs):
    return torch.minimum(mine, theirs, out=mine)


REDUCE = {
    "sum": torch.Tensor.add_,
    "mean": torch.Tensor.add_,
    "product": torch.Tensor.mul_,
    "max": _maximum,
    "min": _minimum,
}


def run(call, plan, flat, transport, ledger, op="sum", source=None):
    """Do one rank's `plan` on its flat tensor, in place.

    Args:
        call: the `Call` that the ranks agree on before they start.
        plan: from `make_plan`.
        flat: 1-D contiguous tensor, changed in place; best one from `transport.buffer`.
        transport: how the chunks travel.
        ledger: `Ledger`, counts what is moved.
        op: what an "add" message does: "sum", "product", "max" or "min" ("mean" adds: who calls divides).
        source: 1-D contiguous tensor that this rank gives from, for the plan of a `Delivery`; by default `flat`.
    """
    itemsize = flat.element_size()
    window = transport.window(call, plan, flat, REDUCE[op], source)
    for step in plan.steps:
        num_messages = 0 if step.segment else 1  # later segments are parts of the same messages
        window.post(step)
        for part in step.outgoing:
            ledger.sent(part.numel * itemsize, num_messages)
        for part in step.incoming:
            window.take(part, step)
            ledger.received(part.numel * itemsize, num_messages)
        window.finish(step)
    window.close()
    ledger.ended(plan.num_rounds)
