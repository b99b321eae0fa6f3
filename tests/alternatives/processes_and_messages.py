"""Other answers to the exercises of lesson 10."""

import torch


def shift_odd_ranks_first(comm, mine):
    theirs = torch.zeros_like(mine)
    steps = [
        lambda: comm.recv(theirs, (comm.rank - 1) % comm.world_size),
        lambda: comm.send(mine, (comm.rank + 1) % comm.world_size),
    ]
    for step in steps if comm.rank % 2 == 0 else reversed(steps):
        step()
    return theirs


def shift_by_all_gather(comm, mine):
    everything = torch.empty(comm.world_size * len(mine))
    comm.all_gather(everything, mine)
    return everything.view(comm.world_size, -1)[comm.rank - 1]


def shift_one_rank_at_a_time(comm, mine):
    theirs, n = torch.empty_like(mine), comm.world_size
    for sender in range(n):
        if comm.rank == sender:
            comm.send(mine, (sender + 1) % n)
        elif comm.rank == (sender + 1) % n:
            comm.recv(theirs, sender)
    return theirs


def tree_rounds_from_far_to_near(world_size, root):
    span = 1
    while span < world_size:
        span *= 2
    rounds = []
    while span > 1:
        pairs = [(k, k + span // 2) for k in range(0, world_size, span) if k + span // 2 < world_size]
        rounds.append([((root + a) % world_size, (root + b) % world_size) for a, b in pairs])
        span //= 2
    return rounds


def tree_rounds_with_two_queues(world_size, root):
    have, without, rounds = [root], [rank for rank in range(world_size) if rank != root], []
    while without:
        pairs = list(zip(have, without, strict=False))
        rounds.append(pairs)
        have, without = have + [dst for _, dst in pairs], without[len(pairs) :]
    return rounds


def chain(world_size, root):
    return [[((root + k) % world_size, (root + k + 1) % world_size)] for k in range(world_size - 1)]


def tree_rounds_that_tell_some_twice(world_size, root):
    rounds = tree_rounds_with_two_queues(world_size, root)
    return rounds + [[(dst, src) for src, dst in pairs] for pairs in rounds[:1]]


def scatter_with_chunk_bounds(comm, whole, numel):
    from lessons_lib.schedules import chunk_bounds

    bounds = chunk_bounds(numel, comm.world_size)
    start, stop = bounds[comm.rank]
    mine = torch.empty(stop - start)
    if comm.rank != 0:
        comm.recv(mine, 0)
        return mine
    for rank, (first, last) in reversed(list(enumerate(bounds))):
        if rank:
            comm.send(whole[first:last].clone(), rank)
    return whole[start:stop].clone()


def scatter_the_chunk_before(comm, whole, numel):
    cuts = [rank * numel // comm.world_size for rank in range(comm.world_size + 1)]
    if comm.rank == 0:
        for rank in range(1, comm.world_size):
            size = cuts[rank + 1] - cuts[rank]
            comm.send(whole[cuts[rank - 1] : cuts[rank - 1] + size], rank)
        return whole[: cuts[1]]
    chunk = torch.empty(cuts[comm.rank + 1] - cuts[comm.rank])
    comm.recv(chunk, 0)
    return chunk


def scatter_along_a_chain(comm, whole, numel):
    """Every rank hands the rest on: right chunks, and the first message holds nearly everything."""
    cuts = [rank * numel // comm.world_size for rank in range(comm.world_size + 1)]
    if comm.rank:
        whole = torch.empty(numel)
        comm.recv(whole, comm.rank - 1)
    if comm.rank < comm.world_size - 1:
        comm.send(whole, comm.rank + 1)
    return whole[cuts[comm.rank] : cuts[comm.rank + 1]]


alternatives = {
    "shift": [shift_odd_ranks_first],
    "tree_rounds": [tree_rounds_from_far_to_near, tree_rounds_with_two_queues],
    "scatter": [scatter_with_chunk_bounds],
}
wrong = {
    "shift": [shift_by_all_gather, shift_one_rank_at_a_time],
    "tree_rounds": [chain, tree_rounds_that_tell_some_twice],
    "scatter": [scatter_the_chunk_before, scatter_along_a_chain],
}
