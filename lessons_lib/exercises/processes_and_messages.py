"""Exercises of lesson 10: a shift round the circle, the rounds of a tree, and a scatter."""

import torch

from lessons_lib import launch
from lessons_lib.exercises.core import Exercise, Outcome, by_rank


def shift(comm, mine):
    """Hand `mine` to the right-hand neighbour, rank r to rank (r + 1) mod N; return what the left one had.

    comm: the communicator of N ≥ 2 ranks, N even or odd. mine: this rank's tensor, which must stay as it
    is; all have one shape and dtype. Neighbours that don't depend on one another must not wait for one
    another: with many ranks it may take two message times (three if N is odd), not N.
    """
    right, left = (comm.rank + 1) % comm.world_size, (comm.rank - 1) % comm.world_size
    theirs = torch.empty_like(mine)
    if comm.rank % 2 == 0:
        comm.send(mine, dst=right)
        comm.recv(theirs, src=left)
    else:
        comm.recv(theirs, src=left)
        comm.send(mine, dst=right)
    return theirs


class _Recorder:
    """A communicator that remembers the order of its sends and receives."""

    def __init__(self, comm):
        self.comm, self.calls = comm, []

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def send(self, tensor, dst):
        self.comm.send(tensor, dst)
        self.calls.append(("send", dst))

    def recv(self, tensor, src):
        self.comm.recv(tensor, src)
        self.calls.append(("recv", src))

    def barrier(self):
        self.comm.barrier()
        self.calls.append(("barrier", None))


def _recorded(comm, fn):
    recorder = _Recorder(comm)
    return fn(recorder, 10.0 * comm.rank + torch.arange(3)), recorder.calls


def _message_times(calls):
    """How long until the last rank is done, if a message takes a time of 1 from when both ranks are there."""
    calls, times = [list(each) for each in calls], [0] * len(calls)
    meets = {"send": "recv", "recv": "send"}
    while any(calls):
        if all(each and each[0] == ("barrier", None) for each in calls):
            times = [max(times)] * len(times)
            for each in calls:
                each.pop(0)
        for rank, each in enumerate(calls):
            kind, peer = each[0] if each else ("barrier", None)
            if peer is not None and calls[peer][:1] == [(meets[kind], rank)]:
                times[rank] = times[peer] = max(times[rank], times[peer]) + 1
                calls[rank].pop(0), calls[peer].pop(0)
    return max(times)


def _shifted(fn, world_size):
    ranks = launch(_recorded, fn, world_size=world_size, timeout_s=10)
    cost = {
        "messages sent by a rank": max(ledger.messages_sent for ledger in ranks.ledgers),
        "message times until the last rank is done": _message_times([calls for _, calls in ranks]),
    }
    return Outcome(by_rank([result for result, _ in ranks]), cost)


def _neighbours(comm):
    return (comm.rank + 1) % comm.world_size, (comm.rank - 1) % comm.world_size


def _all_send_first(comm, mine):
    """Every rank sends before anyone receives, so the whole circle waits. Some must receive first."""
    (right, left), theirs = _neighbours(comm), torch.empty_like(mine)
    comm.send(mine, dst=right)
    comm.recv(theirs, src=left)
    return theirs


def _all_receive_first(comm, mine):
    """Every rank waits for its left neighbour, which waits for its own. Some must send first."""
    (right, left), theirs = _neighbours(comm), torch.empty_like(mine)
    comm.recv(theirs, src=left)
    comm.send(mine, dst=right)
    return theirs


def _only_rank_0_is_different(comm, mine):
    """No deadlock, but a queue: one exception frees one rank, that one frees the next, all the way round. If every
    second rank does the opposite, all pairs can start at once."""
    (right, left), theirs = _neighbours(comm), torch.empty_like(mine)
    if comm.rank == 0:
        comm.recv(theirs, src=left)
        comm.send(mine, dst=right)
    else:
        comm.send(mine, dst=right)
        comm.recv(theirs, src=left)
    return theirs


def _to_the_left(comm, mine):
    """That turns the circle the other way: send to (rank + 1) % N, receive from (rank - 1) % N."""
    (right, left), theirs = _neighbours(comm), torch.empty_like(mine)
    if comm.rank % 2 == 0:
        comm.send(mine, dst=left)
        comm.recv(theirs, src=right)
    else:
        comm.recv(theirs, src=right)
        comm.send(mine, dst=left)
    return theirs


def _passes_on_what_came(comm, mine):
    """The ranks that receive first overwrite `mine` and then hand on what they were just given. Receive into a tensor
    of its own."""
    right, left = _neighbours(comm)
    if comm.rank % 2 == 0:
        comm.send(mine, dst=right)
        comm.recv(mine, src=left)
    else:
        comm.recv(mine, src=left)
        comm.send(mine, dst=right)
    return mine


def _circle_not_closed(comm, mine):
    """A circle has no ends: the right neighbour of the last rank is rank 0, so take (rank ± 1) % N."""
    theirs = torch.empty_like(mine)
    if comm.rank % 2 == 0:
        comm.send(mine, dst=comm.rank + 1)
        comm.recv(theirs, src=comm.rank - 1)
    else:
        comm.recv(theirs, src=comm.rank - 1)
        comm.send(mine, dst=comm.rank + 1)
    return theirs


shift = Exercise(
    shift,
    cases=[(4,), (5,)],
    outcome=_shifted,
    mistakes=[
        _all_send_first,
        _all_receive_first,
        _only_rank_0_is_different,
        _to_the_left,
        _passes_on_what_came,
        _circle_not_closed,
    ],
    hints=[
        "Think of pairs: whoever sends needs somebody who receives at that moment.",
        "Let even ranks send first and odd ranks receive first. With an odd number of ranks, two even ranks are "
        "neighbours: does anybody wait for ever?",
        "right = (comm.rank + 1) % comm.world_size; left = (comm.rank - 1) % comm.world_size; "
        "theirs = torch.empty_like(mine).",
    ],
)


def tree_rounds(world_size, root):
    """The rounds of a broadcast along a binomial tree: the ranks that have the tensor double every round.

    Returns a list of rounds. A round is a list of pairs (src, dst): rank src hands the tensor to rank dst.
    Before the first round rank `root` alone has it, after the last one all ranks have. In one round a rank
    may be in one pair.
    """
    rounds, have = [], 1
    while have < world_size:
        news = range(have, min(2 * have, world_size))
        rounds.append([((root + k - have) % world_size, (root + k) % world_size) for k in news])
        have *= 2
    return rounds


def _played(fn, world_size, root):
    rounds = [list(pairs) for pairs in fn(world_size, root)]
    holders, broken = {root}, "none"
    for number, pairs in enumerate(rounds):
        busy = [rank for pair in pairs for rank in pair]
        for src, dst in pairs:
            if not (0 <= src < world_size and 0 <= dst < world_size):
                broken = f"({src}, {dst}) in round {number} names a rank that is not there"
            elif src not in holders:
                broken = f"rank {src} sends in round {number} what it does not have"
            elif busy.count(src) + busy.count(dst) > 2:
                broken = f"round {number} has a rank in more than one pair"
            if broken != "none":
                return Outcome({"broken rule": broken, "ranks that have the tensor": 0}, {"rounds": 0, "messages": 0})
        holders |= {dst for _, dst in pairs}
    value = {"broken rule": broken, "ranks that have the tensor": len(holders)}
    return Outcome(value, {"rounds": len(rounds), "messages": sum(map(len, rounds))})


def _one_by_one(world_size, root):
    """Only the root sends, so each round reaches one rank more. Those that have the tensor can hand it on too."""
    return [[(root, rank)] for rank in range(world_size) if rank != root]


def _all_at_once(world_size, root):
    """The root cannot send to everybody in one round: a rank may be in one pair of a round."""
    return [[(root, rank) for rank in range(world_size) if rank != root]]


def _root_forgotten(world_size, root):
    """The tensor starts at `root`. Write the tree for root 0 with k = 0 … N − 1, then let k stand for rank (root + k) %
    N."""
    return tree_rounds.reference(world_size, 0)


def _too_many(world_size, root):
    """When N is no power of two, the last round has fewer pairs: only N − have ranks are still without."""
    rounds, have = [], 1
    while have < world_size:
        rounds.append([((root + k) % world_size, (root + k + have) % world_size) for k in range(have)])
        have *= 2
    return rounds


def _no_wrapping(world_size, root):
    """root + k runs past the last rank: take it modulo N."""
    rounds, have = [], 1
    while have < world_size:
        rounds.append([(root + k, root + k + have) for k in range(min(have, world_size - have))])
        have *= 2
    return rounds


def _last_round_missing(world_size, root):
    """The loop ends while ranks are still without the tensor: go on as long as have < N."""
    rounds, have = [], 1
    while 2 * have <= world_size:
        rounds.append([((root + k) % world_size, (root + k + have) % world_size) for k in range(have)])
        have *= 2
    return rounds


tree_rounds = Exercise(
    tree_rounds,
    cases=[(8, 0), (6, 4), (1, 0), (11, 7)],
    outcome=_played,
    mistakes=[_one_by_one, _all_at_once, _root_forgotten, _too_many, _no_wrapping, _last_round_missing],
    hints=[
        "How many ranks can have the tensor after round k, if each that has it tells one other in every round?",
        "Keep `have`, the number of ranks that have it: 1, 2, 4, … In a round, number k < have tells number k + have.",
        "Number k is rank (root + k) % world_size, and number k + have must be below world_size.",
    ],
)


def scatter(comm, whole, numel):
    """Give every rank its chunk of the tensor that rank 0 has; return this rank's chunk.

    comm: the communicator of N ranks. whole: on rank 0 a float32 tensor of shape (numel,), on the others
    None. Rank r's chunk is whole[r · numel // N : (r + 1) · numel // N], so sizes may differ by one and may
    be zero. No rank is sent what it does not need.
    """
    cuts = [rank * numel // comm.world_size for rank in range(comm.world_size + 1)]
    if comm.rank == 0:
        for rank in range(1, comm.world_size):
            comm.send(whole[cuts[rank] : cuts[rank + 1]], dst=rank)
        return whole[: cuts[1]]
    chunk = torch.empty(cuts[comm.rank + 1] - cuts[comm.rank])
    comm.recv(chunk, src=0)
    return chunk


def _deal(comm, fn, numel):
    return fn(comm, 100 + torch.arange(float(numel)) if comm.rank == 0 else None, numel)


def _scattered(fn, world_size, numel):
    ranks = launch(_deal, fn, numel, world_size=world_size, timeout_s=10)
    return Outcome(by_rank(ranks), {"bytes sent by a rank": max(ledger.bytes_sent for ledger in ranks.ledgers)})


def _by_cuts(comm, whole, numel, cuts):
    if comm.rank == 0:
        for rank in range(1, comm.world_size):
            comm.send(whole[cuts[rank] : cuts[rank + 1]], dst=rank)
        return whole[: cuts[1]]
    chunk = torch.empty(cuts[comm.rank + 1] - cuts[comm.rank])
    comm.recv(chunk, src=0)
    return chunk


def _cuts(comm, numel):
    return [rank * numel // comm.world_size for rank in range(comm.world_size + 1)]


def _whole_to_everyone(comm, whole, numel):
    """Every rank gets the whole tensor and throws most of it away. Cut first, on rank 0, then send."""
    if comm.rank == 0:
        for rank in range(1, comm.world_size):
            comm.send(whole, dst=rank)
    else:
        whole = torch.empty(numel)
        comm.recv(whole, src=0)
    cuts = _cuts(comm, numel)
    return whole[cuts[comm.rank] : cuts[comm.rank + 1]]


def _broadcast_and_cut(comm, whole, numel):
    """A broadcast takes the whole tensor to everyone: fewer rounds, but far more bytes than the chunks have."""
    whole = torch.empty(numel) if whole is None else whole
    comm.broadcast(whole, src=0)
    cuts = _cuts(comm, numel)
    return whole[cuts[comm.rank] : cuts[comm.rank + 1]]


def _rest_lost(comm, whole, numel):
    """numel // N elements each leave a rest that nobody gets. Cut at r · numel // N instead."""
    size = numel // comm.world_size
    return _by_cuts(comm, whole, numel, [rank * size for rank in range(comm.world_size + 1)])


def _rounded_up(comm, whole, numel):
    """Chunks of numel / N rounded up (as torch.chunk cuts) starve the last ranks. Cut at r · numel // N."""
    size = -(-numel // comm.world_size)
    return _by_cuts(comm, whole, numel, [min(numel, rank * size) for rank in range(comm.world_size + 1)])


def _rest_to_the_last(comm, whole, numel):
    """Here the last rank gets its own chunk and all of the rest. Cut at r · numel // N: no chunk is then more than one
    longer than another."""
    size = numel // comm.world_size
    return _by_cuts(comm, whole, numel, [rank * size for rank in range(comm.world_size)] + [numel])


def _to_itself_too(comm, whole, numel):
    """Rank 0 has its own chunk already and cannot send to itself: let the loop begin with rank 1."""
    cuts = _cuts(comm, numel)
    if comm.rank == 0:
        for rank in range(comm.world_size):
            comm.send(whole[cuts[rank] : cuts[rank + 1]], dst=rank)
    chunk = torch.empty(cuts[comm.rank + 1] - cuts[comm.rank])
    comm.recv(chunk, src=0)
    return chunk


scatter = Exercise(
    scatter,
    cases=[(4, 10), (3, 8), (4, 3)],
    outcome=_scattered,
    mistakes=[_whole_to_everyone, _broadcast_and_cut, _rest_lost, _rounded_up, _rest_to_the_last, _to_itself_too],
    hints=[
        "Rank 0 sends, all others receive once. How long a tensor must each of them have ready?",
        "All ranks can compute all cuts: cuts = [r * numel // N for r in range(N + 1)].",
        "Rank 0: for rank in 1 … N − 1, comm.send(whole[cuts[rank] : cuts[rank + 1]], dst=rank). Its own chunk stays.",
    ],
)
