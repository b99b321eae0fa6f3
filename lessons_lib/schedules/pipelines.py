"""Pipelines for any number of stages and micro-batches: GPipe, 1F1B and interleaved 1F1B (lesson 16)."""

from ..errors import check_sizes
from .orders import pipeline


def gpipe(num_stages, num_micro_batches):
    """All micro-batches forward, then all backward. A rank holds the stashes of all of them at once.

    With equal stages a share of (p-1)/(m+p-1) of each rank's time is idle, for p stages and m micro-batches.

    Source: Huang et al., GPipe (2019), §2.3; lesson 16.
    """
    check_sizes(num_stages=num_stages, num_micro_batches=num_micro_batches)
    orders = [
        [(op, stage, m) for op in ("forward", "backward") for m in range(num_micro_batches)]
        for stage in range(num_stages)
    ]
    return pipeline(orders, range(num_stages), "GPipe")


def one_f_one_b(num_stages, num_micro_batches):
    """One forward, one backward by turns, after as many forwards as it takes until the first gradient comes back.

    As idle as GPipe, but stage s holds at most min(p - s, m) stashes.

    Source: Narayanan et al., Memory-Efficient Pipeline-Parallel DNN Training (2021), §3.2, PipeDream-Flush; lesson 16.
    """
    check_sizes(num_stages=num_stages, num_micro_batches=num_micro_batches)
    orders = []
    for stage in range(num_stages):
        blocks = [(stage, m) for m in range(num_micro_batches)]
        orders.append(_turns(blocks, blocks, ahead=min(num_stages - 1 - stage, num_micro_batches)))
    return pipeline(orders, range(num_stages), "1F1B")


def interleaved(num_ranks, num_micro_batches, stages_per_rank=2):
    """1F1B over v stages per rank: rank r holds the stages r, r + p, r + 2p, …

    The idle time of 1F1B is divided by v, and v times as many messages travel. Micro-batches go through in groups of p:
    each group passes all stages of a rank before the next one starts. Where p does not divide m, the last group lacks
    the micro-batches that there are not.

    Source: Narayanan et al., Efficient Large-Scale Language Model Training (2021), §2.2; lesson 16.
    """
    check_sizes(num_ranks=num_ranks, num_micro_batches=num_micro_batches, stages_per_rank=stages_per_rank)
    groups = [range(first, first + num_ranks) for first in range(0, num_micro_batches, num_ranks)]
    orders = []
    for rank in range(num_ranks):
        own = range(rank, num_ranks * stages_per_rank, num_ranks)
        forwards = [(stage, m) for group in groups for stage in own for m in group]
        backwards = [(stage, m) for group in groups for stage in reversed(own) for m in group]
        ahead = 2 * (num_ranks - 1 - rank) + (stages_per_rank - 1) * num_ranks
        orders.append(_turns(forwards, backwards, min(ahead, len(forwards))))
    orders = [[each for each in order if each[2] < num_micro_batches] for order in orders]
    placement = [stage % num_ranks for stage in range(num_ranks * stages_per_rank)]
    return pipeline(orders, placement, f"interleaved 1F1B, {stages_per_rank} stages per rank")


def _turns(forwards, backwards, ahead):
    """`ahead` forwards, then a forward and a backward by turns, then the backwards that are left."""
    order = [("forward", *block) for block in forwards[:ahead]]
    for block, back in zip(forwards[ahead:], backwards, strict=False):
        order += [("forward", *block), ("backward", *back)]
    return order + [("backward", *block) for block in backwards[len(forwards) - ahead :]]
