"""Exercises of lesson 10: a shift round the circle, the rounds of a tree, and a scatter."""

import operator

import torch

from lessons_lib.exercises.cases import full_range, spread
from lessons_lib.exercises.core import Exercise, Outcome, edit, on_ranks
from lessons_lib.exercises.message_times import Recorder, message_times

# --- shift: round the circle -----------------------------------------------------------------------------------------


def shift(comm, mine):
    """Hand `mine` to the right-hand neighbour, rank r to rank (r + 1) mod N; return what the left one had.

    comm: the communicator of N ≥ 2 ranks, N even or odd. mine: this rank's tensor, which must stay as it
    is; all have one shape and dtype, any of them. Neighbours that don't depend on one another must not wait
    for one another: with many ranks it may take two message times (three if N is odd), not N. On return no
    message is under way.
    """
    right, left = (comm.rank + 1) % comm.world_size, (comm.rank - 1) % comm.world_size
    theirs = torch.empty_like(mine)
    if comm.rank % 2 == 0:
        comm.send(mine, right)
        comm.recv(theirs, left)
    else:
        comm.recv(theirs, left)
        comm.send(mine, right)
    return theirs


def _recorded(comm, fn, shape, dtype, turn):
    recorder = Recorder(comm)
    theirs = fn(recorder, spread(full_range(*shape, seed=comm.rank + 10 * turn, dtype=dtype)))
    return theirs, recorder.is_open(), recorder.steps


def _shifted(fn, world_size, shape, dtype):
    ran = on_ranks(_recorded, fn, shape, dtype, world_size=world_size, num_calls=2)
    times = max(message_times([steps for *_, steps in turn]) for turn in zip(*ran.value.values(), strict=True))
    return _judged(ran, {"message times until the last rank is done": times})


def _judged(ran, more_costs):
    """The outcome of ranks that return (value, whether a message is left behind, …) for each of their calls."""
    is_open = any(call[1] for calls in ran.value.values() for call in calls)
    faults = ["leaves a message behind that nobody has waited for"] if is_open else []
    return Outcome(
        {rank: [call[0] for call in calls] for rank, calls in ran.value.items()}, ran.cost | more_costs, faults
    )


shift = Exercise(
    shift,
    cases=[
        (4, (3, 2), torch.float32),
        (5, (2, 2), torch.int64),
        (2, (), torch.float64),
        (7, (1,), torch.bfloat16),
        (3, (0, 2), torch.float32),
        (6, (9,), torch.bool),
    ],
    outcome=_shifted,
    rtol=0.0,
    atol=0.0,
    may_be_cheaper=True,  # `isend` and `irecv` take one message time
    mistakes=[
        edit(
            "comm.rank % 2 == 0",
            "True",
            "Every rank sends before anyone receives, so the whole circle waits. Some must receive first.",
        ),
        edit(
            "comm.rank % 2 == 0",
            "False",
            "Every rank waits for its left neighbour, which waits for its own. Some must send first.",
        ),
        edit(
            "comm.rank % 2 == 0",
            "comm.rank == 0",
            "No deadlock, but a queue: one exception frees one rank, that one frees the next, all the way round. If "
            "every second rank does the opposite, all pairs can start at once.",
        ),
        edit(
            "right, left",
            "left, right",
            "That turns the circle the other way: send to (rank + 1) % N, receive from (rank - 1) % N.",
        ),
        edit(
            "torch.empty_like(mine)",
            "mine",
            "The ranks that receive first overwrite `mine` and then hand on what they were just given. Receive into a "
            "tensor of its own.",
        ),
        edit(
            "(comm.rank + 1) % comm.world_size, (comm.rank - 1) % comm.world_size",
            "comm.rank + 1, comm.rank - 1",
            "A circle has no ends: the right neighbour of the last rank is rank 0, so take (rank ± 1) % N.",
        ),
    ],
    hints=[
        "Think of pairs: whoever sends needs somebody who receives at that moment.",
        "Let even ranks send first and odd ranks receive first. With an odd number of ranks, two even ranks are "
        "neighbours: does anybody wait for ever?",
        "right = (comm.rank + 1) % comm.world_size; left = (comm.rank - 1) % comm.world_size; "
        "theirs = torch.empty_like(mine).",
    ],
)


# --- tree_rounds: whose turn it is -----------------------------------------------------------------------------------


def tree_rounds(world_size, root):
    """The rounds of a broadcast along a binomial tree: all who have the tensor hand it on, so few rounds do.

    Returns a list of rounds, as few as possible. A round is a list of pairs (src, dst): rank src hands the
    tensor to rank dst. Before the first round rank `root` alone has it, after the last one all ranks have.
    In one round a rank may be in one pair, and no rank is handed what it has.
    """
    rounds, have = [], 1
    while have < world_size:
        news = range(have, min(2 * have, world_size))
        rounds.append([((root + k - have) % world_size, (root + k) % world_size) for k in news])
        have *= 2
    return rounds


def _played(fn, world_size, root):
    """Rounds with a fault are the value themselves, so that a hint is given to no others."""
    answer = fn(world_size, root)
    if answer is None or answer is ...:
        return Outcome(answer)
    rounds = [sorted((operator.index(src), operator.index(dst)) for src, dst in pairs) for pairs in answer]
    fault = _broken_rule(rounds, world_size, root)
    enough = (world_size - 1).bit_length()
    if not fault and len(rounds) > enough:
        fault = f"reaches all ranks in {len(rounds)} rounds, where {enough} are enough"
    if fault:
        return Outcome(rounds, faults=(fault,))
    return Outcome("right", {"rounds": len(rounds), "messages": sum(map(len, rounds))})


def _broken_rule(rounds, world_size, root):
    """The first pair that breaks a rule, or who goes without, in words."""
    have = {root}
    for number, pairs in enumerate(rounds):
        busy = [rank for pair in pairs for rank in pair]
        for src, dst in pairs:
            if not (0 <= src < world_size and 0 <= dst < world_size):
                return f"breaks a rule: ({src}, {dst}) in round {number} names a rank that is not there"
            if src not in have:
                return f"breaks a rule: rank {src} sends in round {number} what it does not have"
            if busy.count(src) + busy.count(dst) > 2:
                twice = src if busy.count(src) > 1 else dst
                return f"breaks a rule: rank {twice} is in more than one pair of round {number}"
            if dst in have:
                return f"breaks a rule: rank {dst} is handed in round {number} what it has"
        have |= {dst for _, dst in pairs}
    without = sorted(set(range(world_size)) - have)
    return f"leaves rank {without[0]} without the tensor" if without else ""


def _one_by_one(world_size, root):
    """Only the root sends, so each round reaches one rank more. Those that have the tensor can hand it on too."""
    return [[(root, rank)] for rank in range(world_size) if rank != root]


def _all_at_once(world_size, root):
    """The root cannot send to everybody in one round: a rank may be in one pair of a round."""
    return [[(root, rank) for rank in range(world_size) if rank != root]]


tree_rounds = Exercise(
    tree_rounds,
    cases=[(8, 0), (6, 4), (1, 0), (11, 7), (2, 1), (3, 2), (7, 6), (17, 5), (8, 3), (70, 69)],
    outcome=_played,
    mistakes=[
        _one_by_one,
        _all_at_once,
        edit(
            "(root + k - have) % world_size, (root + k) % world_size",
            "k - have, k",
            "The tensor starts at `root`. Write the tree for root 0 with k = 0 … N − 1, then let k stand for rank "
            "(root + k) % N.",
        ),
        edit(
            "min(2 * have, world_size)",
            "2 * have",
            "When N is no power of two, the last round has fewer pairs: only N − have ranks are still without.",
        ),
        edit(
            "(root + k - have) % world_size, (root + k) % world_size",
            "root + k - have, root + k",
            "root + k runs past the last rank: take it modulo N.",
        ),
        edit(
            "have < world_size:",
            "2 * have <= world_size:",
            "The loop ends while ranks are still without the tensor: go on as long as have < N.",
        ),
    ],
    hints=[
        "How many ranks can have the tensor after round k, if each that has it tells one other in every round?",
        "Keep `have`, the number of ranks that have it: 1, 2, 4, … In a round, number k < have tells number k + have.",
        "Number k is rank (root + k) % world_size, and number k + have must be below world_size.",
    ],
)


# --- scatter: to each its own ----------------------------------------------------------------------------------------


def scatter(comm, whole, numel):
    """Give every rank its chunk of the tensor that rank 0 has; return this rank's chunk.

    comm: the communicator of N ranks. whole: on rank 0 a float32 tensor of shape (numel,), which must stay as
    it is, on the others None. Rank r's chunk is whole[r · numel // N : (r + 1) · numel // N], so sizes may
    differ by one and may be zero. No rank is sent what it does not need, and one message for each is enough
    (an empty one counts too). What rank 0 returns may be a view of `whole`. On return no message is under way.
    """
    cuts = [rank * numel // comm.world_size for rank in range(comm.world_size + 1)]
    if comm.rank == 0:
        for rank in range(1, comm.world_size):
            comm.send(whole[cuts[rank] : cuts[rank + 1]], dst=rank)
        return whole[: cuts[1]]
    chunk = torch.empty(cuts[comm.rank + 1] - cuts[comm.rank])
    comm.recv(chunk, src=0)
    return chunk


def _deal(comm, fn, numel, turn):
    recorder = Recorder(comm)
    chunk = fn(recorder, spread(full_range(numel, seed=turn + 6)) if comm.rank == 0 else None, numel)
    return chunk, recorder.is_open()


def _scattered(fn, world_size, numel):
    costs = [f"{unit} {way}" for unit in ("bytes", "messages") for way in ("sent by all ranks", "received by a rank")]
    return _judged(on_ranks(_deal, fn, numel, world_size=world_size, costs=costs, num_calls=2), {})


def _whole_to_everyone(comm, whole, numel):
    """Every rank gets the whole tensor and throws most of it away. Cut first, on rank 0, then send."""
    if comm.rank == 0:
        for rank in range(1, comm.world_size):
            comm.send(whole, dst=rank)
    else:
        whole = torch.empty(numel)
        comm.recv(whole, src=0)
    start, stop = (rank * numel // comm.world_size for rank in (comm.rank, comm.rank + 1))
    return whole[start:stop]


def _along_a_chain(comm, whole, numel):
    """A chain: each rank gets the chunks of all that come after it, and hands them on, so that most bytes travel many
    times. Let rank 0 send to each rank its own chunk."""
    cuts = [rank * numel // comm.world_size for rank in range(comm.world_size + 1)]
    first = cuts[comm.rank]
    if comm.rank > 0:
        whole = torch.empty(numel - first)
        comm.recv(whole, src=comm.rank - 1)
    if comm.rank < comm.world_size - 1:
        comm.send(whole[cuts[comm.rank + 1] - first :], dst=comm.rank + 1)
    return whole[: cuts[comm.rank + 1] - first]


scatter = Exercise(
    scatter,
    cases=[(4, 10), (3, 8), (4, 3), (1, 5), (2, 0)],
    outcome=_scattered,
    rtol=0.0,
    atol=0.0,
    may_be_cheaper=True,  # empty chunks need no message
    mistakes=[
        _whole_to_everyone,
        _along_a_chain,
        edit(
            "rank * numel // comm.world_size for",
            "rank * (numel // comm.world_size) for",
            "numel // N elements each leave a rest that nobody gets. Cut at r · numel // N instead.",
        ),
        edit(
            "rank * numel // comm.world_size for",
            "min(numel, rank * -(-numel // comm.world_size)) for",
            "Chunks of numel / N rounded up (as torch.chunk cuts) starve the last ranks. Cut at r · numel // N.",
        ),
        edit(
            "[rank * numel // comm.world_size for rank in range(comm.world_size + 1)]",
            "[rank * (numel // comm.world_size) for rank in range(comm.world_size)] + [numel]",
            "Here the last rank gets its own chunk and all of the rest. Cut at r · numel // N: no chunk is then more "
            "than one longer than another.",
        ),
        edit(
            "range(1, comm.world_size)",
            "range(comm.world_size)",
            "Rank 0 has its own chunk already and cannot send to itself: let the loop begin with rank 1.",
        ),
    ],
    hints=[
        "Rank 0 sends, all others receive once. How long a tensor must each of them have ready?",
        "All ranks can compute all cuts: cuts = [r * numel // N for r in range(N + 1)].",
        "Rank 0: for rank in 1 … N − 1, comm.send(whole[cuts[rank] : cuts[rank + 1]], dst=rank). Its own chunk stays.",
    ],
)
