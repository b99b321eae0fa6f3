"""Exercises of lesson 11: the two halves of the ring, chunks that don't divide, and halving-doubling."""

import itertools
import operator

from lessons_lib import InvalidSchedule
from lessons_lib.exercises.core import Exercise, Outcome, edit
from lessons_lib.schedules import Message, Schedule, count, ring_reduce_scatter, verify

NUMEL = 3360  # divides by 1 to 8, 15, 16 and 32: chunks of the cases are equal
SENT = "payloads sent by the busiest rank"


def _as_rounds(answer):
    """`answer` as a list of sorted lists of `Message`."""
    if isinstance(answer, Schedule):
        raise TypeError("this is a Schedule: a list of its rounds is needed")
    rounds = []
    for number, messages in enumerate(answer):
        if isinstance(messages, Message):
            raise TypeError(f"item {number} is a Message: a list of rounds is needed, each of them a list of messages")
        rounds.append(sorted(Message(*message) for message in messages))
    return rounds


def _cost(rounds, world_size):
    """What rounds cost: what the busiest rank sends and receives, in payloads, and the number of rounds."""
    counts = count(Schedule(world_size, world_size, rounds), NUMEL, itemsize=1)
    received = max(counts.bytes_received) / NUMEL
    return {
        SENT: max(counts.bytes_sent) / NUMEL,
        "payloads received by the busiest rank": received,
        "rounds": len(rounds),
    }


def _judge(answer, task, world_size, collective, rule, before=()):
    """The `Outcome` of rounds that promise `collective` when they run after the rounds `before`.

    The value of rounds with a fault are these rounds, so that a hint is given to no others.
    """
    if answer is None or answer is ...:
        return Outcome(answer)
    rounds, best = _as_rounds(answer), _cost(task.reference(world_size), world_size)
    refused = _refused(rounds, world_size, collective, before, best[SENT])
    fault = refused or rule(rounds, world_size) or _too_dear(_cost(rounds, world_size), best)
    return Outcome(rounds, faults=(fault,)) if fault else Outcome("right", _cost(rounds, world_size))


def _refused(rounds, world_size, collective, before, best):
    """Why `verify` refuses the rounds, and whether a rank sends more than `best` payloads; "" if it accepts them."""
    try:
        verify(Schedule(world_size, world_size, [*before, *rounds], collective=collective))
    except InvalidSchedule as error:
        problem = str(InvalidSchedule(error.problem, error.round - len(before), error.rank, error.chunk))
    else:
        return ""
    if all(number in range(world_size) for messages in rounds for m in messages for number in m[:3]):
        sent = _cost(rounds, world_size)[SENT]
        if sent > best:
            problem += f"; and the busiest rank sends {sent:.3g} × the payload, where {best:.3g} × is enough"
    return f"is refused by verify: {problem}"


def _too_dear(cost, best):
    name = next((name for name in cost if cost[name] > best[name]), "")
    return name and f"gives the right values, but {name}: {cost[name]:.3g}, where {best[name]:.3g} is enough"


def _neighbours_only(rounds, world_size):
    """The first message that does not go to the right-hand neighbour, in words."""
    for number, messages in enumerate(rounds):
        for src, dst, *_ in messages:
            if dst != (src + 1) % world_size:
                neighbour = (src + 1) % world_size
                return f"leaves the ring: in round {number} rank {src} sends to rank {dst}, not to rank {neighbour}"
    return ""


# --- 1: ring reduce-scatter -------------------------------------------------------------------------------------------


def reduce_scatter(world_size):
    """The rounds of a ring reduce-scatter: a list of rounds, each a list of `Message`.

    N = world_size ranks, N chunks. Rank r sends to one neighbour only, rank (r + 1) % N, one chunk
    a round, and the neighbour adds it to its own. At the end rank r holds the sum of chunk r.
    """
    N = world_size
    return [[Message(r, (r + 1) % N, (r - k - 1) % N, "add") for r in range(N)] for k in range(N - 1)]


def _star_in_disguise(world_size):
    """Right sums, but rank 0 receives everybody's tensor: a star in disguise. Let each chunk travel from neighbour to
    neighbour."""
    N = world_size
    gather = [Message(r, 0, c, "add") for r in range(1, N) for c in range(N)]
    return [gather, [Message(0, r, r, "copy") for r in range(1, N)]]


def _judge_reduce_scatter(fn, world_size):
    return _judge(fn(world_size), reduce_scatter, world_size, "reduce_scatter", _neighbours_only)


reduce_scatter = Exercise(
    reduce_scatter,
    [(4,), (3,), (5,), (1,), (2,), (7,), (8,), (6,), (15,)],
    [
        edit(
            "r - k - 1",
            "r - k",
            "The sums are all there, but one place off: chunk r is complete on rank r - 1. Let every chunk start one "
            "rank later, so that in round 0 rank r sends chunk r - 1.",
        ),
        edit(
            '"add"',
            '"copy"',
            'A "copy" throws away what the neighbour held. On the way to a sum every message is an "add".',
        ),
        edit(
            "(r - k - 1) % N",
            "r",
            "Every round sends the same chunks again, so contributions count twice. In round k a rank passes on the "
            "chunk that it received in round k - 1: the chunk's number depends on k too.",
        ),
        edit(
            "(r - k - 1)",
            "(r + k)",
            "The chunk that a rank sends must be the one that has just come in from the left. That one's number falls "
            "by one with every round; yours rises.",
        ),
        edit(
            "range(N - 1)",
            "range(N)",
            "One round too many: a chunk that visits N ranks travels over N - 1 links. The last round adds a chunk to "
            "the rank that it started from.",
        ),
        edit(
            "(r - k - 1) % N",
            "c",
            "for r in range(N)",
            "for r in range(N) for c in range(N)",
            "This sends the whole tensor in every round: both halves of an all-reduce built so cost 6.0 payloads per "
            "rank at N = 4, where chunks cost 1.5. One rank sends one chunk a round, the one that grows on its way.",
        ),
        _star_in_disguise,
    ],
    [
        "Follow chunk 0 alone: it starts on rank 1, then goes to 2, 3, … and ends on rank 0. Where is chunk c in "
        "round k?",
        "Chunk c is sent by rank c + 1 + k in round k. Turn that round: which chunk does rank r send in round k?",
        'In round k = 0 … N - 2, rank r sends chunk (r - k - 1) % N to rank (r + 1) % N, op "add".',
    ],
    outcome=_judge_reduce_scatter,
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


def _judge_all_gather(fn, world_size):
    before = ring_reduce_scatter(world_size).rounds
    return _judge(fn(world_size), all_gather, world_size, "all_reduce", _neighbours_only, before)


all_gather = Exercise(
    all_gather,
    [(4,), (3,), (5,), (1,), (2,), (7,), (8,), (6,), (15,)],
    [
        edit(
            '"copy"',
            '"add"',
            "The chunk that arrives is finished. Added to the neighbour's unfinished sum, it counts ranks twice: "
            '"copy" it over.',
        ),
        edit(
            "r - k",
            "r - k - 1",
            "This spreads unfinished sums. In round 0 the only finished chunk of rank r is chunk r: start with it.",
        ),
        edit(
            "(r - k) % N",
            "r",
            "A rank's own chunk reaches its neighbour and no one else. From round 1 on, pass on the chunk that has "
            "just come in.",
        ),
        edit(
            "r - k",
            "r + k",
            "The chunk that a rank passes on must be the one that has just come in from the left. That one's number "
            "falls by one with every round; yours rises.",
        ),
        edit(
            "range(N - 1)",
            "range(N)",
            "The last round brings every chunk back to the rank that it started from, where it is known. N - 1 rounds "
            "are enough.",
        ),
        edit(
            "(r - k) % N",
            "c",
            "for r in range(N)",
            "for r in range(N) for c in range(N)",
            "This sends the whole tensor in every round: both halves of an all-reduce built so cost 6.0 payloads per "
            "rank at N = 4, where chunks cost 1.5. Send the one chunk that the neighbour does not have yet.",
        ),
    ],
    [
        "It is the same journey as in the reduce-scatter; only where a chunk starts and what its arrival does are new.",
        "Chunk c starts on rank c, where its sum is finished. Which rank sends it in round k?",
        'In round k = 0 … N - 2, rank r sends chunk (r - k) % N to rank (r + 1) % N, op "copy".',
    ],
    outcome=_judge_all_gather,
)


# --- 3: sizes that don't divide ---------------------------------------------------------------------------------------


def cut(numel, num_chunks):
    """Cut `numel` elements into `num_chunks` chunks in order: a list of (start, stop), both whole numbers.

    `stop` is not included, as in a slice. Every element lies in exactly one chunk, and the sizes
    of the chunks differ by at most one. A chunk may be empty.
    """
    return [(k * numel // num_chunks, (k + 1) * numel // num_chunks) for k in range(num_chunks)]


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


def _judge_cut(fn, numel, num_chunks):
    """Chunks with a fault are the value themselves, so that a hint is given to no others."""
    answer = fn(numel, num_chunks)
    if answer is None or answer is ...:
        return Outcome(answer)
    chunks = list(itertools.islice(answer, numel + num_chunks + 1))
    fault = _gap(chunks, numel, num_chunks)
    if fault:
        return Outcome(chunks, faults=(fault,))
    sizes = [int(stop) - int(start) for start, stop in chunks]
    if max(sizes) - min(sizes) > 1:
        return Outcome(chunks, faults=(f"gives chunks of {min(sizes)} to {max(sizes)} elements: one more is allowed",))
    return Outcome("right")


def _gap(chunks, numel, num_chunks):
    """The first place where chunks leave out an element, take one twice or are no chunks; "" if there is none."""
    reached = 0
    for k, chunk in enumerate(chunks):
        try:
            start, stop = chunk
            start, stop = operator.index(start), operator.index(stop)
        except (TypeError, ValueError):
            return f"gives {chunk!r} as chunk {k}: a pair (start, stop) of whole numbers is needed"
        if start != reached:
            return f"lets chunk {k} start at {start}, where {reached} comes next"
        if not start <= stop <= numel:
            return f"gives ({start}, {stop}) as chunk {k}, and the tensor has {numel} elements"
        reached = stop
    if reached != numel:
        return f"lets the last chunk stop at {reached}, and the tensor has {numel} elements"
    return "" if len(chunks) == num_chunks else f"gives {len(chunks)} chunks, where {num_chunks} are asked for"


cut = Exercise(
    cut,
    [
        *[(10, 4), (12, 4), (9, 8), (3, 4), (0, 2), (7, 1), (1, 1), (13, 5), (1001, 16)],
        *[(29, 30), (49, 49), (1, 49), (7, 25), (2**24 + 3, 5)],  # where floats round
    ],
    [
        edit(
            "(k * numel // num_chunks, (k + 1) * numel // num_chunks)",
            "(k * (numel // num_chunks), (k + 1) * (numel // num_chunks))",
            "Whole-number division leaves a remainder, and these elements are in no chunk: they would never be "
            "reduced, and nothing would complain.",
        ),
        _tail_on_the_last,
        _rounded_up,
        edit(
            "(k * numel // num_chunks, (k + 1) * numel // num_chunks)",
            "(k * numel // num_chunks, (k + 1) * numel // num_chunks - 1)",
            "A slice `x[start:stop]` leaves out `stop`: where a chunk stops, the next one starts.",
        ),
        edit(
            "(k * numel // num_chunks, (k + 1) * numel // num_chunks)",
            "(k * numel / num_chunks, (k + 1) * numel / num_chunks)",
            "`/` gives fractions, and there is no element 2.5: `//` rounds down to a whole number.",
        ),
        edit(
            "(k * numel // num_chunks, (k + 1) * numel // num_chunks)",
            "(k + 1) * numel // num_chunks - k * numel // num_chunks",
            "These are sizes; a pair (start, stop) is asked for each chunk.",
        ),
    ],
    [
        "Where would chunk k start if an element could be split? Round that down.",
        "Chunk k starts at k * numel // num_chunks and stops where chunk k + 1 starts.",
    ],
    outcome=_judge_cut,
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


def _ring_in_disguise(world_size):
    """Right, and few bytes, but the 2(N - 1) rounds of a ring. Halving needs 2 log2(N)."""
    return reduce_scatter.reference(world_size) + all_gather.reference(world_size)


def _swaps_only(rounds, world_size):
    """The first rank that does not swap with one partner, in words."""
    for number, messages in enumerate(rounds):
        pairs = {message[:2] for message in messages}
        for rank in range(world_size):
            to, by = {dst for src, dst in pairs if src == rank}, {src for src, dst in pairs if dst == rank}
            if to != by or len(to) != 1:
                words = f"sends to ranks {sorted(to)} and receives from ranks {sorted(by)}"
                return f"does not swap with one partner: in round {number} rank {rank} {words}"
    return ""


def _judge_halving_doubling(fn, world_size):
    return _judge(fn(world_size), halving_doubling, world_size, "all_reduce", _swaps_only)


halving_doubling = Exercise(
    halving_doubling,
    [(4,), (2,), (8,), (1,), (16,), (32,)],
    [
        edit(
            "range(first, first + distance)",
            "range(N)",
            "Both partners would change the chunks that they are sending, and log2(N) swaps of whole tensors cost "
            "log2(N) payloads a rank. Halve what is swapped: each partner adds up one half only.",
        ),
        edit(
            "(r ^ distance) // distance",
            "r // distance",
            "A rank gives away the half that its partner will add up, and keeps the half with its own number in it. In "
            "the next round it must work on the half that it kept.",
        ),
        edit(
            "reversed(halving)",
            "halving",
            "At the end of the halving only the nearest partners hold finished chunks worth swapping. Doubling undoes "
            "the halving: its rounds run in reverse.",
        ),
        edit(
            '"copy"',
            '"add"',
            'While doubling, the chunks that arrive are finished: "copy" them over the unfinished ones.',
        ),
        edit(
            "halving + doubling",
            "halving",
            "That is the reduce-scatter half. The finished chunks still have to reach everybody.",
        ),
        edit(
            "m.dst, m.src",
            "m.src, m.dst",
            "While halving, a rank sends away what it does not keep. While doubling it sends what it did keep: turn "
            "every message round.",
        ),
        _ring_in_disguise,
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
)
