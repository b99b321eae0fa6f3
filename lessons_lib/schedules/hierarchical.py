"""Two levels: rings inside groups, where links are fast, and between them, where links are slow (lesson 11)."""

from .ring import ring, ring_all_gather, ring_reduce_scatter
from .schedule import Message, Schedule, check_world_size


def hierarchical(world_size, group_size=None):
    """All-reduce as reduce-scatter in each group, all-reduce across groups of what each rank owns, all-gather.

    Args:
        world_size: number of ranks N.
        group_size: ranks a group, G; divides N. Neighbouring ranks form a group (a machine, say). The default is the
            divisor of N nearest below or at sqrt(N).

    Communication: 2(G-1) + 2(N/G - 1) rounds. Between groups each rank sends 2(N/G - 1)/N of the payload only.
    """
    check_world_size(world_size)
    if group_size is None:
        group_size = max(g for g in range(1, world_size + 1) if world_size % g == 0 and g * g <= world_size)
    if group_size < 1 or world_size % group_size:
        raise ValueError(f"group_size={group_size!r}: a divisor of world_size={world_size} is needed")
    num_groups = world_size // group_size
    groups = [list(range(g * group_size, (g + 1) * group_size)) for g in range(num_groups)]
    columns = [[group[place] for group in groups] for place in range(group_size)]
    # Chunk c of a group's ring is the num_groups small chunks c * num_groups ...; column c's ring runs over those.
    inside = [(group, lambda c: range(c * num_groups, (c + 1) * num_groups)) for group in groups]
    across = [(column, lambda c, place=place: [place * num_groups + c]) for place, column in enumerate(columns)]
    rounds = (
        _side_by_side(ring_reduce_scatter(group_size), inside)
        + _side_by_side(ring(num_groups), across)
        + _side_by_side(ring_all_gather(group_size), inside)
    )
    return Schedule(world_size, group_size * num_groups, rounds, "hierarchical")


def _side_by_side(schedule, placements):
    """Run one schedule in several groups at once; a placement is (the group's ranks, chunk -> its small chunks)."""
    return [
        [
            Message(ranks[m.src], ranks[m.dst], small, m.op)
            for ranks, chunks in placements
            for m in messages
            for small in chunks(m.chunk)
        ]
        for messages in schedule.rounds
    ]
