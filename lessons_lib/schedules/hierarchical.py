"""Two levels: rings inside groups, where links are fast, and between them, where links are slow (lesson 11)."""

from .ring import ring, ring_all_gather, ring_reduce_scatter
from .schedule import Message, Schedule, check_world_size, no_collection


def hierarchical(world_size, group_size=None):
    """All-reduce as reduce-scatter in each group, all-reduce across groups of what each rank owns, all-gather.

    Args:
        world_size: the number of ranks, N.
        group_size: how many ranks form a group, G; it divides N. A group is G neighbouring ranks, for example those of
            one machine. The default is the largest divisor of N that is at most sqrt(N).

    Raises:
        ValueError: `group_size` does not divide `world_size`.

    Communication: 2(G-1) + 2(N/G - 1) rounds. Between groups each rank sends only 2(N/G - 1)/N of the payload.
    """
    check_world_size(world_size)
    if group_size is None:
        group_size = max(g for g in range(1, world_size + 1) if world_size % g == 0 and g * g <= world_size)
    if group_size < 1 or world_size % group_size:
        raise ValueError(f"group_size={group_size!r}: a divisor of world_size={world_size} is needed")
    num_groups = world_size // group_size
    groups = [list(range(g * group_size, (g + 1) * group_size)) for g in range(num_groups)]
    columns = [list(range(first, world_size, group_size)) for first in range(group_size)]
    # A chunk of a ring inside a group is cut once more, into num_groups small chunks: column k, whose ranks own chunk k
    # after the reduce-scatter, has a ring across the groups over the small chunks of chunk k.
    small_chunks = [range(k * num_groups, (k + 1) * num_groups) for k in range(group_size)]
    inside = [(group, small_chunks) for group in groups]
    across = [(column, [[small] for small in small_chunks[k]]) for k, column in enumerate(columns)]
    rounds = (
        _side_by_side(ring_reduce_scatter(group_size), inside)
        + _side_by_side(ring(num_groups), across)
        + _side_by_side(ring_all_gather(group_size), inside)
    )
    return Schedule(world_size, group_size * num_groups, rounds, "hierarchical")


@no_collection()
def _side_by_side(schedule, groups):
    """The rounds of one schedule, run in several groups at once.

    Args:
        schedule: a `Schedule` for as many ranks as each group has.
        groups: pairs (ranks, chunks): ranks[r] does what the schedule says of rank r, and chunks[c] are the chunks of
            the whole that stand for chunk c.
    """
    return [
        [
            Message(ranks[m.src], ranks[m.dst], small, m.op)
            for ranks, chunks in groups
            for m in messages
            for small in chunks[m.chunk]
        ]
        for messages in schedule.rounds
    ]
