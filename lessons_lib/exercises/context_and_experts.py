"""Exercises of lesson 17: the online softmax, zigzag, keys round a ring, and tokens that travel to their experts."""

import torch

from lessons_lib.exercises.cases import drawn
from lessons_lib.exercises.core import Exercise, Outcome, edit, on_ranks
from lessons_lib.memory import Meter

# --- merge: two halves of the keys -----------------------------------------------------------------------------------


def merge(answer, lse, other, other_lse):
    """Return (answer, lse) of attention to both halves of the keys, given those of each half.

    answer, other: (T, d), softmax over the scores of one half of the keys, times its values.
    lse, other_lse: (T, 1), log Σ exp(score) over that half, perhaps in the thousands. Where a row sees no key of one
        half, lse is −inf there and the answer 0; one of the two halves always has a key.
    All stay as they are.
    """
    total = torch.logaddexp(lse, other_lse)
    return answer * (lse - total).exp() + other * (other_lse - total).exp(), total


def _without_a_largest(answer, lse, other, other_lse):
    """exp(lse) is inf beyond 709, and 0 below −745: your shares become nan. Subtract before `exp`: only differences of
    the two lse matter."""
    one, two = lse.exp(), other_lse.exp()
    return (answer * one + other * two) / (one + two), (one + two).log()


def _halves(num_rows, width, seed, dtype):
    """Both halves' answers and lse for scores near 0, far apart, huge, and hidden on one side."""
    answer, other = (drawn(num_rows, width, seed=seed + k, dtype=dtype) for k in range(2))
    lse, other_lse = (drawn(num_rows, 1, seed=seed + k, dtype=dtype) for k in (2, 3))
    far = 3e4 if dtype == torch.float64 else 30.0
    for row, (one, two) in enumerate([(9.0, -3.0), (-far, far), (far, far - 1), (-far, -far), (-torch.inf, 2.0)]):
        if row < num_rows:
            lse[row], other_lse[row] = one, two
    if num_rows > 5:
        lse[5], other_lse[5] = 1.5, -torch.inf
        answer[4], other[5] = 0, 0
    return answer, lse, other, other_lse


merge = Exercise(
    merge,
    cases=lambda: [
        _halves(1, 3, 0, torch.float64),
        _halves(9, 4, 10, torch.float64),
        _halves(7, 1, 20, torch.float32),
        _halves(0, 2, 30, torch.float64),
    ],
    rtol=1e-6,
    atol=1e-9,
    mistakes=[
        _without_a_largest,
        edit(
            "answer * (lse - total).exp() + other * (other_lse - total).exp()",
            "(answer + other) / 2",
            "The plain mean gives both halves the same say. A half counts by its sum of exponentials: exp(lse) of the "
            "half over exp(lse) of both.",
        ),
        edit(
            "torch.logaddexp(lse, other_lse)",
            "torch.maximum(lse, other_lse)",
            "The larger lse is a safe thing to subtract, but it is not the lse of both: the two shares add up to more "
            "than 1. Divide by their sum, and add its logarithm.",
        ),
        edit(
            "torch.logaddexp(lse, other_lse)",
            "lse + other_lse",
            "Adding logarithms multiplies the sums. It is the exponentials that add up: log(exp(a) + exp(b)).",
        ),
        edit(
            "answer * (lse - total).exp() + other * (other_lse - total).exp()",
            "answer * (other_lse - total).exp() + other * (lse - total).exp()",
            "Each answer got the other half's share.",
        ),
        edit(
            ", total\n",
            ", torch.maximum(lse, other_lse)\n",
            "The answer is right, and the lse is not that of both halves: with a third part of the keys the next merge "
            "would be wrong.",
        ),
    ],
    hints=[
        "Write softmax over all keys as a fraction. How much of its denominator comes from the first half?",
        "The first half's share is exp(lse) / (exp(lse) + exp(other_lse)) = exp(lse − total). What is total?",
        "`torch.logaddexp(a, b)` is log(exp(a) + exp(b)), also where exp alone would be inf.",
    ],
)


# --- zigzag_pairs: who computes what, and when -----------------------------------------------------------------------


def zigzag_pairs(rank, world_size, turn):
    """Return the (query chunk, key chunk) pairs that `rank` computes in `turn` of causal ring attention, sorted.

    The sequence is cut into 2N chunks for N = world_size ranks. Rank r holds queries and keys of chunk r and of
    its mirror image: chunk 0 and the last one are rank 0's. In turn t, from 0 to N − 1, the keys of the rank t
    places before it on the ring are there. A query chunk sees itself and the chunks before it.
    """
    last = 2 * world_size - 1
    source = (rank - turn) % world_size
    queries, keys = (rank, last - rank), (source, last - source)
    return [(query, key) for query in queries for key in keys if key <= query]


zigzag_pairs = Exercise(
    zigzag_pairs,
    cases=[
        (1, 4, 0),
        (1, 4, 1),
        (1, 4, 2),
        (0, 4, 3),
        (0, 1, 0),
        (2, 3, 0),
        (2, 3, 1),
        (0, 2, 1),
        (6, 7, 4),
        (3, 7, 5),
    ],
    mistakes=[
        edit(
            " if key <= query",
            "",
            "That is attention without a mask: some of these keys come after all of the queries. Leave out pairs whose "
            "key chunk is the later one.",
        ),
        edit(
            "key <= query",
            "key < query",
            "A chunk sees itself too (with the triangular mask inside). In turn 0 both diagonal pairs are missing.",
        ),
        edit(
            "last - rank), (source, last - source)",
            "world_size + rank), (source, world_size + source)",
            "Chunks r and r + N are a stripe, not a mirror image: rank 0 would have the earliest of both halves, and "
            "less work than the others. The partner of chunk r is as far from the end as r is from the start.",
        ),
        edit(
            "(rank - turn) % world_size",
            "(rank + turn) % world_size",
            "Keys travel to the next rank, so in turn t those are here that started t places *before*.",
        ),
        edit(
            "(rank, last - rank), (source, last - source)",
            "(rank,), (source,)",
            "That is the straight cut, one chunk per rank, in which the last rank has most of the work. Each rank has "
            "two chunks here.",
        ),
        edit(
            "2 * world_size - 1",
            "2 * world_size",
            "Chunks are numbered from 0, so the last of 2N is 2N − 1.",
        ),
    ],
    hints=[
        "Three questions: which two chunks does a rank hold? Whose keys are here in this turn? Which pairs may meet?",
        "Rank r holds chunks r and 2N − 1 − r; in turn t the keys are those of rank (r − t) mod N.",
        "Of the four pairs keep those with key chunk ≤ query chunk.",
    ],
)


# --- ring_answers: keys go round -------------------------------------------------------------------------------------


def ring_answers(comm, q, k, v):
    """Return softmax(q kᵀ / √d) v of this rank's queries over the keys of all ranks, without a mask: (T, d).

    q: (T, d). k, v: (S, d), equally many on all ranks. All stay as they are.
    Keys and values go round the ring, from each rank to the next one (the last rank's to rank 0, or all of it the
    other way round), N − 1 times, as one or two messages a turn. No collective, and never the keys of more than
    four ranks at once. Scores may be in the hundreds.
    """
    size, after, before = comm.world_size, (comm.rank + 1) % comm.world_size, (comm.rank - 1) % comm.world_size
    answer, lse = torch.zeros_like(q), q.new_full((len(q), 1), -torch.inf)
    keys = torch.stack([k, v])
    for turn in range(size):
        if turn < size - 1:
            message = comm.isend(keys, after)
        scores = q @ keys[0].T / q.shape[1] ** 0.5
        part_lse = scores.logsumexp(1, keepdim=True)
        total = torch.logaddexp(lse, part_lse)
        answer = answer * (lse - total).exp() + (scores - total).exp() @ keys[1]
        lse = total
        if turn < size - 1:
            arriving = torch.empty_like(keys)
            comm.recv(arriving, before)
            message.wait()
            keys = arriving
    return answer


def _gathers_all_keys(comm, q, k, v):
    """Right, but after the all-gather every rank holds the keys of all: memory does not fall with N, and that is what
    the ring is for. Pass them on, one rank's at a time."""
    everybody = k.new_empty(comm.world_size, 2, *k.shape)
    comm.all_gather(everybody, torch.stack([k, v]))
    all_k, all_v = everybody[:, 0].flatten(0, 1), everybody[:, 1].flatten(0, 1)
    return (q @ all_k.T / q.shape[1] ** 0.5).softmax(1) @ all_v


def _attended(comm, fn, num_queries, num_keys, width, scale, turn):
    """The answer, the most bytes alive in units of one rank's keys, and the collectives that were called."""
    seed = 100 * turn + comm.rank
    q = drawn(num_queries, width, seed=seed, dtype=torch.float64) * scale
    k, v = (drawn(num_keys, width, seed=seed + 10 * k, dtype=torch.float64) for k in (1, 2))
    with Meter() as meter:
        answer = fn(comm, q, k, v)
    one_to_one = {"send", "recv", "isend", "irecv"}
    calls = sorted(comm.ledger.calls.keys() - one_to_one)
    return answer, meter.peak / (k.nbytes + v.nbytes), calls


def _run_ring(fn, world_size, num_queries, num_keys, width, scale):
    costs = ["bytes sent by a rank", "bytes received by a rank"]
    options = {"world_size": world_size, "costs": costs, "num_calls": 2, "transport": "torch", "timeout_s": 5}
    ran = on_ranks(_attended, fn, num_queries, num_keys, width, scale, **options)
    turns = [turn for rank in ran.value.values() for turn in rank]
    collectives = sorted({name for turn in turns for name in turn[2]})
    faults = [f"calls {', '.join(collectives)}: keys should go from rank to rank"] if collectives else []
    most = max(turn[1] for turn in turns)
    if num_keys > 50 and most > 5:  # with the small things beside the keys
        faults.append("holds the keys of more than four ranks at once")
    return Outcome({rank: [turn[0] for turn in each] for rank, each in ran.value.items()}, ran.cost, faults=faults)


ring_answers = Exercise(
    ring_answers,
    cases=[(3, 5, 2, 3, 300.0), (1, 2, 3, 2, 1.0), (5, 2, 200, 8, 1.0)],
    outcome=_run_ring,
    rtol=1e-9,
    atol=1e-12,
    mistakes=[
        _gathers_all_keys,
        edit(
            "keys = arriving",
            "pass",
            "What arrives is never used: every turn computes with this rank's own keys, and sends them again.",
        ),
        edit(
            "lse = total\n",
            "lse = part_lse\n",
            "After a merge the lse is that of all keys so far, not of the last ones alone.",
        ),
        edit(
            " / q.shape[1] ** 0.5",
            "",
            "The scores are q kᵀ / √d: without the square root softmax is far too sharp.",
        ),
        edit(
            "range(size):",
            "range(size - 1):",
            "N − 1 messages, but N turns: in the last one the rank computes with what came last, and sends nothing.",
        ),
        edit(
            "isend(keys, after)",
            "isend(keys, after) if comm.rank else comm.isend(k.new_zeros(keys.shape), after)",
            "Rank 0 passes on something else than the keys that it got.",
        ),
    ],
    hints=[
        "A turn: start to send the keys that are here, compute with them, receive the next, wait for your message.",
        "Keep `answer` and `lse` of all keys so far, as in the first exercise. Start with zeros and −inf.",
        "`message = comm.isend(keys, after)`; compute; `comm.recv(arriving, before)`; `message.wait()`; "
        "`keys = arriving`. The last turn has no message.",
    ],
)


# --- through_experts: there and home again ---------------------------------------------------------------------------


def through_experts(comm, x, chosen, expert):
    """Return what the experts make of this rank's tokens: (n, D), row i for token i.

    x: (n, D); n differs between ranks and may be 0. It stays as it is.
    chosen: (n,), int64, for each token the rank whose expert it goes to. It stays as it is.
    expert: this rank's own: (m, D) -> (m, D), row by row. Call it once, also where no token came (m = 0).
    No token is dropped or padded. Beside the tokens, which go there and come home, and the numbers of tokens,
    one for each pair of ranks, nothing travels.
    """
    given = torch.bincount(chosen, minlength=comm.world_size)
    taken = torch.empty_like(given)
    comm.all_to_all(taken, given)
    given, taken = given.tolist(), taken.tolist()
    order = chosen.argsort()
    came = x.new_empty(sum(taken), x.shape[1])
    comm.all_to_all(came, x[order], taken, given)
    home = torch.empty_like(x)
    comm.all_to_all(home, expert(came), given, taken)
    answers = torch.empty_like(x)
    answers[order] = home
    return answers


def _everything_to_everybody(comm, x, chosen, expert):
    """Right, but every token went to every rank, though one expert wants it. Send each rank its own rows, with
    `all_to_all` and split sizes."""
    sizes = torch.zeros(comm.world_size, dtype=torch.int64)
    comm.all_gather(sizes, torch.tensor([len(x)]))
    longest = int(sizes.max())
    padded = x.new_zeros(longest, x.shape[1])
    padded[: len(x)] = x
    everybody = x.new_empty(comm.world_size, longest, x.shape[1])
    comm.all_gather(everybody, padded)
    done = expert(everybody.flatten(0, 1))
    results = torch.empty_like(everybody)
    comm.all_to_all(results, done.view_as(everybody))
    return results[chosen, torch.arange(len(x))]


def _with_a_capacity(comm, x, chosen, expert):
    """Each expert takes the same number of tokens from each rank: some tokens of a hot expert are dropped in silence,
    and come home as zeros. Use the true numbers as split sizes."""
    capacity = torch.tensor([-(-len(x) // comm.world_size)])
    comm.all_reduce(capacity, op="max")
    capacity, answers = int(capacity), torch.zeros_like(x)
    slots = [(chosen == rank).nonzero().flatten()[:capacity] for rank in range(comm.world_size)]
    sent = x.new_zeros(comm.world_size, capacity, x.shape[1])
    for slot, rows in zip(sent, slots, strict=True):
        slot[: len(rows)] = x[rows]
    came, home = torch.empty_like(sent), torch.empty_like(sent)
    comm.all_to_all(came, sent)
    comm.all_to_all(home, expert(came.flatten(0, 1)).view_as(sent))
    for slot, rows in zip(home, slots, strict=True):
        answers[rows] = slot[: len(rows)]
    return answers


def _routed(comm, fn, sizes, hot, dtype, turn):
    """What `fn` gives on this rank, and how often it called the expert; in the second turn with other tokens."""
    size, num_calls = sizes[(comm.rank + turn) % len(sizes)], []
    x = drawn(size, 3, seed=10 * comm.rank + turn, dtype=dtype)
    chosen = (torch.arange(size) * 5 + comm.rank + turn) % comm.world_size
    if hot:
        chosen[::2] = comm.world_size - 1

    def expert(rows):
        num_calls.append(rows.shape[1:])
        return rows * (comm.rank + 2) + rows.square() * comm.rank

    return fn(comm, x, chosen, expert), num_calls


def _run_routed(fn, sizes, hot, dtype):
    costs = ["bytes sent by all ranks", "bytes received by a rank"]
    ran = on_ranks(_routed, fn, sizes, hot, dtype, world_size=len(sizes), costs=costs, num_calls=2, timeout_s=5)
    calls = [len(turn[1]) for rank in ran.value.values() for turn in rank]
    faults = [f"calls the expert {max(calls)} times in one call" for _ in range(max(calls) > 1)]
    faults += ["does not call the expert on every rank" for _ in range(min(calls) < 1)]
    return Outcome({rank: [turn[0] for turn in each] for rank, each in ran.value.items()}, ran.cost, faults=faults)


through_experts = Exercise(
    through_experts,
    cases=[
        ([5, 0, 8], False, torch.float64),
        ([6, 3, 9, 2], True, torch.float32),
        ([0, 1, 0], True, torch.bfloat16),
    ],
    outcome=_run_routed,
    rtol=1e-6,
    mistakes=[
        _everything_to_everybody,
        _with_a_capacity,
        edit(
            "answers[order] = home",
            "answers.copy_(home)",
            "The answers came home in the order of the experts, and row i is not token i's. Put them back: row "
            "`order[j]` is the one that was sent j-th.",
        ),
        edit(
            "answers[order] = home",
            "answers = home[order]",
            "`home[order]` sorts once more instead of undoing it. The other way round: `answers[order] = home`.",
        ),
        edit(
            "x[order], taken",
            "x, taken",
            "`all_to_all` cuts its input in the order of the ranks: first all rows for rank 0, and so on. Sort the "
            "tokens by `chosen` first.",
        ),
        edit(
            "comm.all_to_all(taken, given)",
            "taken.copy_(given)",
            "How many come is not how many go: the other ranks have to tell you, by an `all_to_all` of the numbers.",
        ),
        edit(
            "expert(came), given, taken",
            "came, given, taken",
            "The tokens went there and came home, and no expert has touched them.",
        ),
    ],
    hints=[
        "Three exchanges: how many tokens, the tokens, the answers. All ranks take part in each, also without tokens.",
        "`torch.bincount(chosen, minlength=comm.world_size)` counts what goes to each rank. `chosen.argsort()` puts "
        "rows for the same rank together.",
        "`comm.all_to_all(came, x[order], taken, given)` takes them there; on the way home the lists change places.",
    ],
)
