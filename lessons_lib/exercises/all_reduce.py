"""Exercises of lesson 11: the two halves of the ring, chunks that don't divide, and halving-doubling."""

import operator
from dataclasses import dataclass

from lessons_lib import InvalidSchedule
from lessons_lib.exercises.core import Exercise, Outcome
from lessons_lib.schedules import Message, Schedule, count, replay, ring_reduce_scatter, verify

NUMEL = 1680  # divides by 1 to 8, 10, 12 and 14 to 16: chunks of the cases are equal


def _as_rounds(answer):
    """`answer` as a list of lists of `Message`; a `Schedule` stands for its rounds."""
    rounds = []
    for number, messages in enumerate(getattr(answer, "rounds", answer)):
        if isinstance(messages, Message):
            raise TypeError(f"item {number} is a Message: a list of rounds is needed, each of them a list of messages")
        rounds.append([Message(*message) for message in messages])
    return rounds


@dataclass(frozen=True)
class Judged:
    """What is wrong with an answer, in words ("" for nothing), and whatever else tells wrong answers apart."""

    problem: str = ""
    signs: tuple = ()


def _compare(expected, got):
    return None if expected == got else got.problem or "this is right"


def _cost(rounds, world_size):
    """What rounds cost: what the busiest rank sends and receives, in payloads; the rounds; how many it talks to."""
    counts = count(Schedule(world_size, world_size, rounds), NUMEL, itemsize=1)
    targets = [{m.dst for messages in rounds for m in messages if m.src == rank} for rank in range(world_size)]
    return {
        "payloads sent by the busiest rank": max(counts.bytes_sent) / NUMEL,
        "payloads received by the busiest rank": max(counts.bytes_received) / NUMEL,
        "rounds": len(rounds),
        "ranks that one rank sends to": max(map(len, targets)),
    }


def _sums(rounds, world_size):
    """What every rank holds of every chunk after the rounds, where rank r brought 100 ** r."""
    held = [[100**rank] * world_size for rank in range(world_size)]
    for _ in replay(rounds, held, operator.add):
        pass
    return tuple(map(tuple, held))


def _judge(answer, world_size, collective, best, before=()):
    """The `Outcome` of rounds that promise `collective` when they run after the rounds `before`.

    Where `verify` refuses them and a rank sends more than `best` payloads, the problem says both.
    """
    if answer is None or answer is ...:
        return Outcome(answer)
    rounds, signs = _as_rounds(answer), ()
    try:
        verify(Schedule(world_size, world_size, [*before, *rounds], collective=collective))
    except InvalidSchedule as error:
        problem = str(InvalidSchedule(error.problem, error.round - len(before), error.rank, error.chunk))
        if all(0 <= number < world_size for messages in rounds for m in messages for number in m[:3]):
            signs = _sums([*before, *rounds], world_size)
            sent = _cost(rounds, world_size)["payloads sent by the busiest rank"]
            if sent > best:
                problem += f"; and the busiest rank sends {sent:.3g} × the payload, where {best:.3g} × is enough"
        return Outcome(Judged(f"verify says: {problem}", signs), dict.fromkeys(_cost([], world_size), 0))
    return Outcome(Judged(), _cost(rounds, world_size))


# --- 1: ring reduce-scatter -------------------------------------------------------------------------------------------


def reduce_scatter(world_size):
    """The rounds of a ring reduce-scatter: a list of rounds, each a list of `Message`.

    N = world_size ranks, N chunks. Rank r sends to one neighbour only, rank (r + 1) % N, one chunk
    a round, and the neighbour adds it to its own. At the end rank r holds the sum of chunk r.
    """
    N = world_size
    return [[Message(r, (r + 1) % N, (r - k - 1) % N, "add") for r in range(N)] for k in range(N - 1)]


def _turn(N, num_rounds, chunk, op):
    return [[Message(r, (r + 1) % N, chunk(r, k) % N, op) for r in range(N)] for k in range(num_rounds)]


def _one_chunk_late(world_size):
    """The sums are all there, but one place off: chunk r is complete on rank r - 1. Let every chunk start one rank
    later, so that in round 0 rank r sends chunk r - 1."""
    return _turn(world_size, world_size - 1, lambda r, k: r - k, "add")


def _copies_while_reducing(world_size):
    """A "copy" throws away what the neighbour held. On the way to a sum every message is an "add"."""
    return _turn(world_size, world_size - 1, lambda r, k: r - k - 1, "copy")


def _own_chunk_every_round(world_size):
    """Every round sends the same chunks again, so contributions count twice. In round k a rank passes on the chunk that
    it received in round k - 1: the chunk's number depends on k too."""
    return _turn(world_size, world_size - 1, lambda r, k: r, "add")


def _chunks_upwards(world_size):
    """The chunk that a rank sends must be the one that has just come in from the left. That one's number falls by one
    with every round; yours rises."""
    return _turn(world_size, world_size - 1, lambda r, k: r + k, "add")


def _a_whole_turn(world_size):
    """One round too many: a chunk that visits N ranks travels over N - 1 links. The last round adds a chunk to the rank
    that it started from."""
    return _turn(world_size, world_size, lambda r, k: r - k - 1, "add")


def _one_round_short(world_size):
    """One round is missing: a chunk that visits N ranks travels over N - 1 links."""
    return _turn(world_size, world_size - 2, lambda r, k: r - k - 1, "add")


def _whole_tensor_added(world_size):
    """This sends the whole tensor in every round: both halves of an all-reduce built so cost 6.0 payloads a rank at N =
    4, where chunks cost 1.5. One rank sends one chunk a round, the one that grows on its way."""
    N = world_size
    return [[Message(r, (r + 1) % N, c, "add") for r in range(N) for c in range(N)] for _ in range(N - 1)]


def _no_wrap(world_size):
    """A ring is closed: the neighbour of rank N - 1 is rank 0. Take the rank modulo N."""
    N = world_size
    return [[Message(r, r + 1, (r - k - 1) % N, "add") for r in range(N)] for k in range(N - 1)]


def _chains_in_turn(world_size):
    """Right sums, but one chain after the other, so one link works while the others wait. Let all N chains run at once:
    round k holds step k of every chain."""
    N = world_size
    return [[Message((c + k + 1) % N, (c + k + 2) % N, c, "add")] for c in range(N) for k in range(N - 1)]


def _star_in_disguise(world_size):
    """Right sums, but rank 0 receives everybody's tensor: a star in disguise. Let each chunk travel from neighbour to
    neighbour."""
    N = world_size
    gather = [Message(r, 0, c, "add") for r in range(1, N) for c in range(N)]
    return [gather, [Message(0, r, r, "copy") for r in range(1, N)]]


def _direct_reduce_scatter(world_size):
    """Right sums and few bytes: you have found the schedule called direct, where everybody sends to everybody. A ring
    talks to one neighbour only."""
    N = world_size
    return [[Message(r, c, c, "add") for r in range(N) for c in range(N) if r != c]] if N > 1 else []


def _judge_reduce_scatter(fn, world_size):
    return _judge(fn(world_size), world_size, "reduce_scatter", (world_size - 1) / world_size)


reduce_scatter = Exercise(
    reduce_scatter,
    [(4,), (3,), (5,), (1,), (8,)],
    [
        _one_chunk_late,
        _copies_while_reducing,
        _own_chunk_every_round,
        _chunks_upwards,
        _a_whole_turn,
        _one_round_short,
        _whole_tensor_added,
        _no_wrap,
        _chains_in_turn,
        _star_in_disguise,
        _direct_reduce_scatter,
    ],
    [
        "Follow chunk 0 alone: it starts on rank 1, then goes to 2, 3, … and ends on rank 0. Where is chunk c in "
        "round k?",
        "Chunk c is sent by rank c + 1 + k in round k. Turn that round: which chunk does rank r send in round k?",
        'In round k = 0 … N - 2, rank r sends chunk (r - k - 1) % N to rank (r + 1) % N, op "add".',
    ],
    outcome=_judge_reduce_scatter,
    compare=_compare,
)


# --- 2: ring all-gather -----------------------------------------------------------------------------------------------


def all_gather(world_size):
    """The rounds of a ring all-gather: a list of rounds, each a list of `Message`.

    N = world_size ranks, N chunks. At the start rank r holds the finished sum of chunk r, and
    unfinished sums of the others. It sends to one neighbour only, rank (r + 1) % N, one chunk a
    round. At the end every rank holds all finished chunks.
    """
    N = world_size
    return [[Message(r, (r + 1) % N, (r - k) % N, "copy") for r in range(N)] for k in range(N - 1)]


def _adds_while_gathering(world_size):
    """The chunk that arrives is finished. Added to the neighbour's unfinished sum, it counts ranks twice: "copy" it
    over."""
    return _turn(world_size, world_size - 1, lambda r, k: r - k, "add")


def _starts_with_an_unfinished_chunk(world_size):
    """This spreads unfinished sums. In round 0 the only finished chunk of rank r is chunk r: start with that one."""
    return _turn(world_size, world_size - 1, lambda r, k: r - k - 1, "copy")


def _own_chunk_only(world_size):
    """A rank's own chunk reaches its neighbour and no one else. From round 1 on, pass on the chunk that has just come
    in."""
    return _turn(world_size, world_size - 1, lambda r, k: r, "copy")


def _gathers_upwards(world_size):
    """The chunk that a rank passes on must be the one that has just come in from the left. That one's number falls by
    one with every round; yours rises."""
    return _turn(world_size, world_size - 1, lambda r, k: r + k, "copy")


def _gathers_a_whole_turn(world_size):
    """The last round brings every chunk back to the rank that it started from, where it is known. N - 1 rounds are
    enough."""
    return _turn(world_size, world_size, lambda r, k: r - k, "copy")


def _gathers_one_round_short(world_size):
    """One round is missing: the chunk of a right-hand neighbour has the longest way."""
    return _turn(world_size, world_size - 2, lambda r, k: r - k, "copy")


def _whole_tensor_copied(world_size):
    """This sends the whole tensor in every round: both halves of an all-reduce built so cost 6.0 payloads a rank at N =
    4, where chunks cost 1.5. Send the one chunk that the neighbour does not have yet."""
    N = world_size
    return [[Message(r, (r + 1) % N, c, "copy") for r in range(N) for c in range(N)] for _ in range(N - 1)]


def _chunks_in_turn(world_size):
    """Right, but one chunk after the other, so one link works while the others wait. Let all N chunks travel at
    once."""
    N = world_size
    return [[Message((c + k) % N, (c + k + 1) % N, c, "copy")] for c in range(N) for k in range(N - 1)]


def _gathers_by_a_star(world_size):
    """Right, but rank 0 sends nearly everything: a star in disguise. Let each chunk travel from neighbour to
    neighbour."""
    N = world_size
    to_0 = [Message(r, 0, r, "copy") for r in range(1, N)]
    return [to_0, [Message(0, r, c, "copy") for r in range(1, N) for c in range(N) if c != r]] if N > 1 else []


def _direct_all_gather(world_size):
    """Right, and few bytes: that is the second round of the schedule called direct, where everybody sends to everybody.
    A ring talks to one neighbour only."""
    N = world_size
    return [[Message(c, r, c, "copy") for r in range(N) for c in range(N) if r != c]] if N > 1 else []


def _judge_all_gather(fn, world_size):
    before = ring_reduce_scatter(world_size).rounds
    return _judge(fn(world_size), world_size, "all_reduce", (world_size - 1) / world_size, before)


all_gather = Exercise(
    all_gather,
    [(4,), (3,), (5,), (1,), (8,)],
    [
        _adds_while_gathering,
        _starts_with_an_unfinished_chunk,
        _own_chunk_only,
        _gathers_upwards,
        _gathers_a_whole_turn,
        _gathers_one_round_short,
        _whole_tensor_copied,
        _chunks_in_turn,
        _gathers_by_a_star,
        _direct_all_gather,
    ],
    [
        "It is the same journey as in the reduce-scatter; only where a chunk starts and what its arrival does are new.",
        "Chunk c starts on rank c, where its sum is finished. Which rank sends it in round k?",
        'In round k = 0 … N - 2, rank r sends chunk (r - k) % N to rank (r + 1) % N, op "copy".',
    ],
    outcome=_judge_all_gather,
    compare=_compare,
)


# --- 3: sizes that don't divide ---------------------------------------------------------------------------------------


def cut(numel, num_chunks):
    """Cut `numel` elements into `num_chunks` chunks in order: a list of (start, stop).

    `stop` is not included, as in a slice. Every element lies in exactly one chunk, and the sizes
    of the chunks differ by at most one. A chunk may be empty.
    """
    cuts = [k * numel // num_chunks for k in range(num_chunks + 1)]
    return [(cuts[k], cuts[k + 1]) for k in range(num_chunks)]


def _tail_lost(numel, num_chunks):
    """Whole-number division leaves a remainder, and these elements are in no chunk: they would never be reduced, and
    nothing would complain."""
    size = numel // num_chunks
    return [(k * size, (k + 1) * size) for k in range(num_chunks)]


def _tail_on_the_last(numel, num_chunks):
    """Every element is there, but the last chunk takes the whole remainder, up to N - 1 elements. Each round waits for
    the largest chunk: give the remainder out one by one."""
    size = numel // num_chunks
    return [(k * size, (k + 1) * size if k < num_chunks - 1 else numel) for k in range(num_chunks)]


def _rounded_up(numel, num_chunks):
    """Sizes rounded up use the elements up too early: the last chunks are short or empty. Some chunks need the size
    rounded down."""
    size = -(-numel // num_chunks)
    return [(min(numel, k * size), min(numel, (k + 1) * size)) for k in range(num_chunks)]


def _rounded_up_past_the_end(numel, num_chunks):
    """Sizes rounded up run past the end of the tensor."""
    size = -(-numel // num_chunks)
    return [(k * size, (k + 1) * size) for k in range(num_chunks)]


def _stop_included(numel, num_chunks):
    """A slice `x[start:stop]` leaves out `stop`: where a chunk stops, the next one starts."""
    return [(start, stop - 1) for start, stop in cut.reference(numel, num_chunks)]


def _sizes_only(numel, num_chunks):
    """These are sizes; a pair (start, stop) is asked for each chunk."""
    return [stop - start for start, stop in cut.reference(numel, num_chunks)]


def _one_chunk_more(numel, num_chunks):
    """Steps of `numel // num_chunks` give more chunks than asked for where a remainder is left, and too few where there
    are fewer elements than chunks."""
    size = max(1, numel // num_chunks)
    return [(start, min(numel, start + size)) for start in range(0, numel, size)]


def _judge_cut(fn, numel, num_chunks):
    """What is wrong with the chunks, and how unequal they are."""
    answer = fn(numel, num_chunks)
    if answer is None or answer is ...:
        return Outcome(answer)
    chunks, unequal = list(answer), "largest chunk minus smallest chunk"
    problem = _gap(chunks, numel)
    if not problem and len(chunks) != num_chunks:
        problem = f"expected {num_chunks} chunks, got {len(chunks)}"
    if problem:
        return Outcome(Judged(problem), {unequal: 0})
    sizes = [stop - start for start, stop in chunks]
    return Outcome(Judged(), {unequal: max(sizes) - min(sizes)})


def _gap(chunks, numel):
    """The first place where chunks leave out an element, take one twice or are no chunks; "" if there is none."""
    reached = 0
    for k, chunk in enumerate(chunks):
        if not isinstance(chunk, tuple | list) or len(chunk) != 2:
            return f"item {k} is {chunk!r}, where a pair (start, stop) is asked for"
        start, stop = chunk
        if start != reached:
            return f"chunk {k} starts at {start}, where {reached} comes next"
        if not start <= stop <= numel:
            return f"chunk {k} is ({start}, {stop}), and the tensor has {numel} elements"
        reached = stop
    return f"the last chunk stops at {reached}, and the tensor has {numel} elements" if reached != numel else ""


cut = Exercise(
    cut,
    [(10, 4), (12, 4), (9, 8), (3, 4), (0, 2), (1001, 16)],
    [
        _tail_lost,
        _tail_on_the_last,
        _rounded_up,
        _rounded_up_past_the_end,
        _stop_included,
        _sizes_only,
        _one_chunk_more,
    ],
    [
        "Where would chunk k start if an element could be split? Round that down.",
        "Chunk k starts at k * numel // num_chunks and stops where chunk k + 1 starts.",
    ],
    outcome=_judge_cut,
    compare=_compare,
)


# --- 4: halving-doubling ----------------------------------------------------------------------------------------------


def halving_doubling(world_size):
    """The rounds of an all-reduce by recursive halving, then doubling: a list of lists of `Message`.

    N = world_size ranks, a power of two, and N chunks. In a round every rank swaps chunks with one
    partner: 2 log2(N) rounds in all, in which a rank sends 2(N - 1)/N of the payload.
    """
    N, halving, distance = world_size, [], world_size // 2
    while distance >= 1:
        # Rank r keeps the block of `distance` chunks that has its own number in it, and gives away its partner's.
        swap = []
        for r in range(N):
            first = (r ^ distance) // distance * distance
            swap += [Message(r, r ^ distance, chunk, "add") for chunk in range(first, first + distance)]
        halving.append(swap)
        distance //= 2
    doubling = [[Message(m.dst, m.src, m.chunk, "copy") for m in swap] for swap in reversed(halving)]
    return halving + doubling


def _swaps(N, distances, chunks, op):
    return [[Message(r, r ^ d, c, op) for r in range(N) for c in chunks(r, d)] for d in distances]


def _distances(N):
    return [N >> k for k in range(1, N.bit_length())]


def _block(r, d):
    return range(r // d * d, r // d * d + d)


def _halve(N):
    return _swaps(N, _distances(N), lambda r, d: _block(r ^ d, d), "add")


def _whole_tensor_swapped(world_size):
    """Both partners would change the chunks that they are sending, and log2(N) swaps of whole tensors cost log2(N)
    payloads a rank. Halve what is swapped: each partner adds up one half only."""
    return _swaps(world_size, _distances(world_size), lambda r, d: range(world_size), "add")


def _gives_away_its_own_half(world_size):
    """A rank gives away the half that its partner will add up, and keeps the half with its own number in it. In the
    next round it must work on the half that it kept."""
    halving = _swaps(world_size, _distances(world_size), _block, "add")
    return halving + [[m._replace(src=m.dst, dst=m.src, op="copy") for m in swap] for swap in reversed(halving)]


def _doubles_in_the_same_order(world_size):
    """At the end of the halving only the nearest partners hold finished chunks worth swapping. Doubling undoes the
    halving: its rounds run in reverse."""
    halving = _halve(world_size)
    return halving + [[m._replace(src=m.dst, dst=m.src, op="copy") for m in swap] for swap in halving]


def _adds_while_doubling(world_size):
    """While doubling, the chunks that arrive are finished: "copy" them over the unfinished ones."""
    halving = _halve(world_size)
    return halving + [[m._replace(src=m.dst, dst=m.src) for m in swap] for swap in reversed(halving)]


def _only_halves(world_size):
    """That is the reduce-scatter half. The finished chunks still have to reach everybody."""
    return _halve(world_size)


def _doubles_the_same_way(world_size):
    """While halving, a rank sends away what it does not keep. While doubling it sends what it did keep: turn every
    message round."""
    halving = _halve(world_size)
    return halving + [[m._replace(op="copy") for m in swap] for swap in reversed(halving)]


def _nearest_partner_first(world_size):
    """The blocks fit the order N/2, N/4, …, 1: the first swap must divide the tensor in two halves. With the nearest
    partner first, blocks overlap that were already given away."""
    halving = _halve(world_size)[::-1]
    return halving + [[m._replace(src=m.dst, dst=m.src, op="copy") for m in swap] for swap in reversed(halving)]


def _ring_in_disguise(world_size):
    """Right, and few bytes, but the 2(N - 1) rounds of a ring. Halving needs 2 log2(N)."""
    return reduce_scatter.reference(world_size) + all_gather.reference(world_size)


def _tree_in_disguise(world_size):
    """Right, and few rounds, but whole tensors travel up and down a tree, and its root sends one in every round. Swap
    halves, then quarters, then eighths."""
    N = world_size
    up = [[Message(r + d, r, c, "add") for r in range(0, N, 2 * d) for c in range(N)] for d in reversed(_distances(N))]
    return up + [[m._replace(src=m.dst, dst=m.src, op="copy") for m in messages] for messages in reversed(up)]


def _judge_halving_doubling(fn, world_size):
    return _judge(fn(world_size), world_size, "all_reduce", 2 * (world_size - 1) / world_size)


halving_doubling = Exercise(
    halving_doubling,
    [(4,), (2,), (8,), (1,), (16,)],
    [
        _whole_tensor_swapped,
        _gives_away_its_own_half,
        _doubles_in_the_same_order,
        _adds_while_doubling,
        _only_halves,
        _doubles_the_same_way,
        _nearest_partner_first,
        _ring_in_disguise,
        _tree_in_disguise,
    ],
    [
        "With N = 2: rank 0 adds up the first half, rank 1 the second, then they swap sums. With N = 4, first do that "
        "between ranks two apart.",
        "The partner at distance d is r ^ d, for d = N/2, N/4, …, 1. Rank r keeps the block of d chunks that has "
        "chunk r in it: the chunks from r // d * d on.",
        'Rank r sends the block of its partner p = r ^ d: chunks p // d * d to p // d * d + d - 1, op "add". '
        'The doubling is the same rounds in reverse order, every message turned round, op "copy".',
    ],
    outcome=_judge_halving_doubling,
    compare=_compare,
)
