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


def shift_without_waiting(comm, mine):
    theirs = torch.full_like(mine, 7)
    works = [comm.irecv(theirs, (comm.rank - 1) % comm.world_size), comm.isend(mine, (comm.rank + 1) % comm.world_size)]
    for work in works:
        work.wait()
    return theirs


def shift_from_whoever_comes(comm, mine):
    theirs, right = mine.clone(), (comm.rank + 1) % comm.world_size
    if comm.rank % 2:
        comm.send(mine, right)
        comm.recv(theirs)
    else:
        comm.recv(theirs)
        comm.send(mine, right)
    return theirs


def shift_in_turn_without_blocking_calls(comm, mine):
    """The queue round the circle, with handles."""
    theirs, n = torch.empty_like(mine), comm.world_size
    work = comm.irecv(theirs, (comm.rank - 1) % n)
    if comm.rank:
        work.wait()
    comm.isend(mine, (comm.rank + 1) % n).wait()
    work.wait()
    return theirs


def shift_in_float32(comm, mine):
    return shift_odd_ranks_first(comm, mine.float())


def shift_in_float64(comm, mine):
    return shift_odd_ranks_first(comm, mine.double()).to(mine.dtype)


def shift_into_what_is_kept(comm, mine, kept={}):  # noqa: B006
    theirs = kept.setdefault("theirs", torch.empty_like(mine))
    return theirs.copy_(shift_odd_ranks_first(comm, mine))


def shift_without_the_end_of_its_send(comm, mine):
    theirs = torch.empty_like(mine)
    comm.isend(mine, (comm.rank + 1) % comm.world_size)
    comm.recv(theirs, (comm.rank - 1) % comm.world_size)
    return theirs


def shift_flat(comm, mine):
    return shift_odd_ranks_first(comm, mine.reshape(-1))


def shift_over_mine(comm, mine):
    return mine.copy_(shift_odd_ranks_first(comm, mine))


def shift_by_arithmetic(comm, mine):
    return mine + 10 * ((comm.rank - 1) % comm.world_size - comm.rank)


def shift_by_two(comm, mine):
    return shift_odd_ranks_first(comm, shift_odd_ranks_first(comm, mine))


def shift_in_halves(comm, mine):
    """Ranks of the lower half first, those of the upper half later: two queues."""
    theirs, n = torch.empty_like(mine), comm.world_size
    if comm.rank < n // 2:
        comm.send(mine, (comm.rank + 1) % n)
        comm.recv(theirs, (comm.rank - 1) % n)
    else:
        comm.recv(theirs, (comm.rank - 1) % n)
        comm.send(mine, (comm.rank + 1) % n)
    return theirs


def tree_rounds_as_tuples_of_numpy(world_size, root):
    import numpy as np

    have = np.array([root])
    while len(have) < world_size:
        news = (root + np.arange(len(have), min(2 * len(have), world_size))) % world_size
        yield tuple(zip(have, news, strict=False))
        have = np.concatenate([have, news])


def tree_rounds_with_fractions(world_size, root):
    return [[(src / 1, dst / 1) for src, dst in pairs] for pairs in tree_rounds_with_two_queues(world_size, root)]


def tree_rounds_with_an_empty_round(world_size, root):
    return [*tree_rounds_with_two_queues(world_size, root), []]


def tree_rounds_turned_round(world_size, root):
    return [[(dst, src) for src, dst in pairs] for pairs in tree_rounds_with_two_queues(world_size, root)]


def tree_rounds_in_reverse(world_size, root):
    return tree_rounds_with_two_queues(world_size, root)[::-1]


def tree_rounds_for_powers_of_two(world_size, root):
    rounds, have = [], 1
    while 2 * have <= world_size:
        rounds.append([((root + k) % world_size, (root + k + have) % world_size) for k in range(have)])
        have *= 2
    return rounds


def tree_rounds_with_two_pairs_for_a_rank(world_size, root):
    rounds, have = [], 1
    while have < world_size:
        news = range(have, min(3 * have, world_size))
        rounds.append([((root + (k - have) % have) % world_size, (root + k) % world_size) for k in news])
        have *= 3
    return rounds


def tree_rounds_kept_by_size(world_size, root, kept={}):  # noqa: B006
    return kept.setdefault(world_size, tree_rounds_with_two_queues(world_size, root))


def tree_rounds_flat(world_size, root):
    return [pair for pairs in tree_rounds_with_two_queues(world_size, root) for pair in pairs]


def scatter_without_waiting(comm, whole, numel):
    cuts = [rank * numel // comm.world_size for rank in range(comm.world_size + 1)]
    if comm.rank:
        chunk = torch.empty(cuts[comm.rank + 1] - cuts[comm.rank])
        comm.irecv(chunk, 0).wait()
        return chunk
    for work in [comm.isend(whole[cuts[rank] : cuts[rank + 1]], rank) for rank in range(1, comm.world_size)]:
        work.wait()
    return whole[: cuts[1]]


def scatter_without_empty_messages(comm, whole, numel):
    start, stop = comm.rank * numel // comm.world_size, (comm.rank + 1) * numel // comm.world_size
    if comm.rank:
        chunk = torch.empty(stop - start)
        if stop > start:
            comm.recv(chunk)
        return chunk
    for rank in range(1, comm.world_size):
        part = whole[rank * numel // comm.world_size : (rank + 1) * numel // comm.world_size]
        if len(part):
            comm.send(part, rank)
    return whole[:stop]


def scatter_down_a_tree(comm, whole, numel):
    """Each rank gets all chunks of the half that it is the head of."""
    cuts, low, high = [rank * numel // comm.world_size for rank in range(comm.world_size + 1)], 0, comm.world_size
    while high - low > 1:
        middle = (low + high + 1) // 2
        if comm.rank == low:
            comm.send(whole[cuts[middle] - cuts[low] : cuts[high] - cuts[low]], middle)
        elif comm.rank == middle:
            whole = torch.empty(cuts[high] - cuts[middle])
            comm.recv(whole, low)
        low, high = (low, middle) if comm.rank < middle else (middle, high)
    return whole[: cuts[comm.rank + 1] - cuts[comm.rank]]


def scatter_by_broadcast(comm, whole, numel):
    whole = torch.empty(numel) if whole is None else whole
    comm.broadcast(whole, src=0)
    start, stop = comm.rank * numel // comm.world_size, (comm.rank + 1) * numel // comm.world_size
    return whole[start:stop]


def scatter_one_number_at_a_time(comm, whole, numel):
    cuts = [rank * numel // comm.world_size for rank in range(comm.world_size + 1)]
    if comm.rank == 0:
        for rank in range(1, comm.world_size):
            for k in range(cuts[rank], cuts[rank + 1]):
                comm.send(whole[k : k + 1], rank)
        return whole[: cuts[1]]
    chunk = torch.empty(cuts[comm.rank + 1] - cuts[comm.rank])
    for k in range(len(chunk)):
        comm.recv(chunk[k : k + 1], 0)
    return chunk


def scatter_backwards(comm, whole, numel):
    whole = whole.flip(0) if whole is not None else None
    return scatter_with_chunk_bounds(comm, whole, numel)


def scatter_that_keeps_the_whole_on_rank_0(comm, whole, numel):
    chunk = scatter_with_chunk_bounds(comm, whole, numel)
    return chunk if comm.rank else whole


def scatter_that_empties_the_whole(comm, whole, numel):
    chunk = scatter_with_chunk_bounds(comm, whole, numel)
    if whole is not None:
        whole.zero_()
    return chunk


def scatter_without_the_end_of_its_sends(comm, whole, numel):
    cuts = [rank * numel // comm.world_size for rank in range(comm.world_size + 1)]
    if comm.rank:
        return scatter_with_chunk_bounds(comm, whole, numel)
    for rank in range(1, comm.world_size):
        comm.isend(whole[cuts[rank] : cuts[rank + 1]], rank)
    return whole[: cuts[1]]


def scatter_of_the_first_whole(comm, whole, numel, kept={}):  # noqa: B006
    return scatter_with_chunk_bounds(comm, kept.setdefault("whole", whole), numel)


def scatter_computed_on_the_spot(comm, whole, numel):
    start, stop = comm.rank * numel // comm.world_size, (comm.rank + 1) * numel // comm.world_size
    return torch.arange(100.0 + start, 100.0 + stop)


alternatives = {
    "shift": [shift_odd_ranks_first, shift_without_waiting, shift_from_whoever_comes],
    "tree_rounds": [tree_rounds_from_far_to_near, tree_rounds_with_two_queues, tree_rounds_as_tuples_of_numpy],
    "scatter": [scatter_with_chunk_bounds, scatter_without_waiting, scatter_without_empty_messages],
}
wrong = {
    "shift": [
        shift_by_all_gather,
        shift_one_rank_at_a_time,
        shift_in_turn_without_blocking_calls,
        shift_in_float32,
        shift_in_float64,
        shift_into_what_is_kept,
        shift_without_the_end_of_its_send,
        shift_flat,
        shift_over_mine,
        shift_by_arithmetic,
        shift_by_two,
        shift_in_halves,
    ],
    "tree_rounds": [
        chain,
        tree_rounds_that_tell_some_twice,
        tree_rounds_with_fractions,
        tree_rounds_with_an_empty_round,
        tree_rounds_turned_round,
        tree_rounds_in_reverse,
        tree_rounds_for_powers_of_two,
        tree_rounds_with_two_pairs_for_a_rank,
        tree_rounds_kept_by_size,
        tree_rounds_flat,
    ],
    "scatter": [
        scatter_the_chunk_before,
        scatter_along_a_chain,
        scatter_down_a_tree,
        scatter_by_broadcast,
        scatter_one_number_at_a_time,
        scatter_backwards,
        scatter_that_keeps_the_whole_on_rank_0,
        scatter_that_empties_the_whole,
        scatter_without_the_end_of_its_sends,
        scatter_of_the_first_whole,
        scatter_computed_on_the_spot,
    ],
}
