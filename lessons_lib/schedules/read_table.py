"""Pipeline schedules in the notation of `torch.distributed.pipelining`: "2F0" is stage 2, forward, micro-batch 0."""

import re

from .orders import pipeline

_OPS = {"F": "forward", "B": "backward", "I": "input", "W": "weight"}
_CELL = re.compile(r"(\d+)([FBIW])(\d+)")
_LEFT_OUT = re.compile(r"\d+(SEND_[FB]|RECV_[FB]|UNSHARD|RESHARD|REDUCE_GRAD)\d*")


def read_table(rows, name="own pipeline"):
    """Read a table of actions, one row per rank.

    Args:
        rows: for each rank a list of texts such as "0F2"; F is forward, B backward, I and W its halves for the input
            and for the weights. An empty text is an idle slot. The rows of torch's `schedule.pipeline_order[rank]`,
            as texts, are of this form; what they say of messages and of sharded weights is left out.
        name: how figures and errors call the program.

    Returns:
        A `Pipeline`, messages included. It need not be right: `verify` says whether it is.

    Raises:
        ValueError: a cell has another form.
    """
    orders = []
    for rank, row in enumerate(rows):
        orders.append([_read(rank, cell) for cell in row if cell and not _LEFT_OUT.fullmatch(cell)])
    return pipeline(orders, name=name)


def _read(rank, cell):
    match = _CELL.fullmatch(cell)
    if match is None:
        raise ValueError(
            f"rows: rank {rank} has {cell!r}: stage, F, B, I or W, and micro-batch are needed, such as '0F2'"
        )
    stage, op, part = match.groups()
    return _OPS[op], int(stage), int(part)
