"""What holds for every input: random tensors, schedules, samplers and models, against one process."""

import multiprocessing
import random
import sys
import tempfile
from functools import partial
from itertools import chain
from typing import NamedTuple

import cloudpickle
import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from torch import nn

from lessons_lib import InvalidSchedule, Links, launch
from lessons_lib.data import RankSampler, batches
from lessons_lib.parallel import DataParallel
from lessons_lib.schedules import (
    ALGORITHMS,
    Message,
    Schedule,
    chunk_bounds,
    count,
    hierarchical,
    ring,
    ring_all_gather,
    ring_reduce_scatter,
    simulate,
    star_broadcast,
    tree_broadcast,
    verify,
)
from lessons_lib.schedules.schedule import transfers

cloudpickle.register_pickle_by_value(sys.modules[__name__])
FOLDER = tempfile.TemporaryDirectory()
set_hypothesis_home_dir(FOLDER.name)  # what it keeps is not to lie in the repository
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)
WAYS = [(size, transport) for transport in ("shared_memory", "torch") for size in range(1, 7)]
NUM_CASES = 30  # a launch


def settings(max_examples, phases=tuple(hypothesis.Phase)):
    return hypothesis.settings(
        max_examples=max_examples,
        phases=phases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def launches(number):
    """A few launches of many cases each; a failure names its case, so that none need be looked for by launching."""
    is_slow = "forkserver" not in multiprocessing.get_all_start_methods()
    return settings(2 if is_slow else number, phases=[hypothesis.Phase.generate])


# --- one operation on one tensor a rank -------------------------------------------------------------------------------


class Case(NamedTuple):
    """An operation: `name` on tensors of `shape` that lie in memory as `layout` says, drawn from `seed` and the rank.

    `how`: an algorithm of `run`, or whether an all-reduce is asynchronous. `peer`: a root, or how far a message goes.
    """

    name: str
    shape: tuple
    dtype: torch.dtype
    layout: str
    values: str
    op: str
    how: str
    peer: int
    seed: int


SHAPES = st.one_of(st.lists(st.integers(0, 6), max_size=3).map(tuple), st.sampled_from([(1003,), (40_000,), (7, 901)]))
CASES = st.builds(
    Case,
    name=st.sampled_from(["all_reduce", "run", "reduce_scatter", "all_gather", "broadcast", "send"]),
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["plain", "transposed", "strided", "offset", "leaf", "buffer", "buffers"]),
    values=st.sampled_from(["small", "wide", "extreme"]),
    op=st.sampled_from(["sum", "mean", "max", "min"]),
    how=st.sampled_from([*ALGORITHMS, "random trees"]),
    peer=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)


def values(case, rank, numel):
    draw = torch.Generator().manual_seed(case.seed * 7 + rank)
    if case.dtype == torch.bool:
        return torch.rand(numel, generator=draw) < 0.5
    if not case.dtype.is_floating_point:
        info = torch.iinfo(case.dtype)
        low, high = (max(info.min, -4), 5) if case.values == "small" else (info.min, info.max)
        return torch.randint(low, high, (numel,), generator=draw).to(case.dtype)
    if case.values == "extreme":
        info = torch.finfo(case.dtype)
        odd = [torch.nan, torch.inf, -torch.inf, info.max, info.min, info.tiny, info.tiny / 4, 0.0, -0.0, 1.0, -1.5]
        return torch.tensor(odd, dtype=case.dtype)[torch.randint(0, len(odd), (numel,), generator=draw)]
    powers = torch.tensor([2.0**power for power in range(-10, 11)])  # the same bits on any number of threads
    scale = powers[torch.randint(0, 21, (numel,), generator=draw)] if case.values == "wide" else 1
    return (torch.randn(numel, generator=draw, dtype=torch.float64) * scale).to(case.dtype)


def laid_out(case, flat, shape, comm):
    """(the whole of the memory, the part of it that holds `flat` in `shape`)."""
    if case.layout == "transposed":
        whole = flat.new_zeros(shape[::-1])
        part = whole.permute(tuple(range(len(shape)))[::-1])
    elif case.layout == "strided":
        whole = flat.new_ones(*shape, 3)
        part = whole[..., 1]
    elif case.layout in ("offset", "buffer", "buffers"):
        at = 3 + (comm.rank if case.layout == "buffers" else 0)
        size = flat.numel() + 3 + comm.world_size
        whole = flat.new_ones(size) if case.layout == "offset" else comm.buffer(size, flat.dtype)
        part = whole[at : at + flat.numel()].view(shape)
    else:
        whole = part = flat.new_zeros(shape)
    part.copy_(flat.view(shape))
    return whole, part.requires_grad_() if case.layout == "leaf" and case.dtype in FLOATS else part


def chunk(case, rank, world_size):
    start, stop = chunk_bounds(torch.Size(case.shape).numel(), world_size)[rank]
    return stop - start


def do(comm, case):
    """Do the operation; what is now in the tensor that it fills, or the error in words."""
    numel, mine = torch.Size(case.shape).numel(), chunk(case, comm.rank, comm.world_size)
    source = values(case, comm.rank, mine if case.name == "all_gather" else numel)
    flat = source.new_zeros(numel) if case.name == "all_gather" else source
    whole, tensor = laid_out(case, flat, case.shape, comm)
    before, outside = whole.detach().clone(), beside(whole, tensor)
    try:
        result = operate(comm, case, tensor, source, mine)
    except ValueError as error:
        comm.barrier()
        return str(error)
    if result is tensor:
        assert same(beside(whole, tensor), outside), f"{case.name} has changed memory beside the tensor"
    else:
        assert same(whole, before), f"{case.name} has changed what it only reads"
    return result.detach().clone()


def operate(comm, case, tensor, source, mine):
    if case.name == "all_reduce":
        work = comm.all_reduce(tensor, case.op, async_op=bool(case.peer % 2))
        if work is not None:
            work.wait()
    elif case.name == "run":
        trees = case.how == "random trees"
        schedule = random_trees(comm.world_size, case.seed) if trees else ALGORITHMS[case.how](comm.world_size)
        comm.run(schedule, tensor, case.op)
    elif case.name == "reduce_scatter":
        output = source.new_zeros(mine, 2)[:, 0]
        comm.reduce_scatter(output, tensor, case.op)
        return output
    elif case.name == "all_gather":
        comm.all_gather(tensor, source)
    elif case.name == "broadcast":
        comm.broadcast(tensor, case.peer % comm.world_size)
    elif case.name == "send" and comm.world_size > 1:
        return turn_round(comm, tensor, 1 + case.peer % (comm.world_size - 1))
    return tensor


def beside(whole, tensor):
    """A copy of `whole` with zeros where its part `tensor` lies."""
    copy = whole.detach().clone()
    copy.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() - whole.storage_offset()).zero_()
    return copy


def turn_round(comm, tensor, far):
    """Everybody's tensor goes `far` ranks on: those whose turn it is send, the others receive."""
    dst, src = (comm.rank + far) % comm.world_size, (comm.rank - far) % comm.world_size
    received = torch.zeros_like(tensor)
    for sender in range(comm.world_size):
        if sender == comm.rank:
            comm.send(tensor, dst)
        elif sender == src:
            comm.recv(received, src)
    return received


def do_all(comm, cases):
    return [do(comm, case) for case in cases]


def same(one, other):
    """Bit for bit, where nan is nan."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


def expected(case, rank, world_size):
    """What one process says this rank ends with: (values, how far off they may be)."""
    numel = torch.Size(case.shape).numel()
    start, stop = chunk_bounds(numel, world_size)[rank]
    if case.name == "all_gather":
        parts = [values(case, r, chunk(case, r, world_size)) for r in range(world_size)]
        return torch.cat(parts).view(case.shape), 0
    if case.name in ("broadcast", "send"):
        far = 1 + case.peer % max(1, world_size - 1)
        src = (case.peer if case.name == "broadcast" else rank - far) % world_size
        return values(case, src, numel).view(case.shape), 0
    result, bound = reduced(torch.stack([values(case, r, numel) for r in range(world_size)]), case.op)
    if case.name == "reduce_scatter":
        return result[start:stop], bound[start:stop]
    return result.view(case.shape), bound.view(case.shape)


def reduced(inputs, op):
    """The result in float64 or whole numbers, and its bound.

    Adding N numbers in any order is off by at most (N - 1) ε Σ|x|; a mean is rounded once more, by half of the
    smallest number at least. Where Σ|x| is beyond the largest number, some orders end at infinity: nothing is asked.
    Whole numbers wrap round and are exact; for truth values a sum is "any".
    """
    zero = torch.zeros(inputs.shape[1:], dtype=torch.float64)
    if op in ("max", "min"):
        pick = inputs.amax if op == "max" else inputs.amin
        return (inputs.any(0) if op == "max" else inputs.all(0)) if inputs.dtype == torch.bool else pick(0), zero
    if not inputs.is_floating_point():
        return (inputs.any(0) if inputs.dtype == torch.bool else inputs.sum(0, dtype=inputs.dtype)), zero
    info, wide = torch.finfo(inputs.dtype), inputs.double()
    total, size = wide.sum(0), wide.abs().sum(0)
    bound = (len(inputs) - 1) * info.eps * size
    bound[size.isfinite() & (size >= info.max)] = torch.inf
    if op == "mean":
        total, bound = (
            total / len(inputs),
            bound / len(inputs) + info.eps * size / len(inputs) + info.smallest_normal * info.eps,
        )
    return total, bound


def agrees(result, wanted, bound):
    if result.dtype in FLOATS:
        result, wanted = result.double(), wanted.double()
        unordered = torch.as_tensor(bound) == torch.inf
        off = (result - wanted).abs()
        exact = (result == wanted) | (result.isnan() & wanted.isnan())
        return bool((exact | (off <= bound) | unordered).all())
    return torch.equal(result, wanted)


@pytest.mark.parametrize(("world_size", "transport"), WAYS)
def test_every_operation_is_right_or_refused(world_size, transport):
    algorithms = ["auto", *ALGORITHMS]

    @launches(3)
    @given(st.lists(CASES, min_size=NUM_CASES, max_size=NUM_CASES, unique=True), st.sampled_from(algorithms))
    def check(cases, algorithm):
        results = launch(do_all, cases, world_size=world_size, transport=transport, algorithm=algorithm, timeout_s=20)
        for index, case in enumerate(cases):
            mine = [result[index] for result in results]
            if case.op == "mean" and case.dtype not in FLOATS and case.name in ("all_reduce", "run", "reduce_scatter"):
                assert all("op='mean' of dtype" in text for text in mine), (case, mine)
                continue
            assert not any(isinstance(result, str) for result in mine), (case, mine)
            if case.name in ("all_reduce", "run"):
                assert all(same(result, mine[0]) for result in mine), ("replicas differ", case, mine)
            for rank, result in enumerate(mine):
                assert result.dtype == case.dtype
                assert agrees(result, *expected(case, rank, world_size)), (case, rank, result)

    check()


def test_the_algorithm_of_torch_is_right_with_every_dtype_that_gloo_adds():
    """Extreme values are left out: whether nan is the largest of all depends on the order in gloo."""
    dtypes = [dtype for dtype in DTYPES if dtype != torch.int16]
    kinds = [(dtype, values, op) for dtype in dtypes for values in ("small", "wide") for op in ("sum", "max", "min")]
    cases = [Case("all_reduce", (17, 3), dtype, "strided", values, op, "", 0, 5) for dtype, values, op in kinds]
    results = launch(do_all, cases, world_size=3, transport="torch", algorithm="torch")
    for index, case in enumerate(cases):
        assert all(agrees(result[index], *expected(case, 0, 3)) for result in results), (case, results[0][index])


def expanded(comm):
    x = torch.full((1,), comm.rank + 1.0).expand(4)
    part = torch.zeros(2)
    comm.reduce_scatter(part, x)
    pieces = torch.zeros(4)
    comm.all_gather(pieces, x[:2])
    seen = []
    for operation in (
        comm.all_reduce,
        comm.broadcast,
        partial(comm.run, ring(2)),
        partial(comm.recv, src=1 - comm.rank),
    ):
        with pytest.raises(ValueError, match=r"was given an expanded tensor.*use tensor\.clone") as caught:
            operation(x)
        seen.append(str(caught.value).partition(" ")[0])
    with pytest.raises(ValueError, match="reduce_scatter: output was given an expanded tensor"):
        comm.reduce_scatter(x[:2], torch.zeros(4))
    return part.tolist(), pieces.tolist(), seen


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_expanded_tensors_are_read_and_never_filled(transport):
    names = ["all_reduce", "broadcast", "run", "recv"]
    assert launch(expanded, world_size=2, transport=transport) == [([3.0, 3.0], [1.0, 1.0, 2.0, 2.0], names)] * 2


# --- schedules --------------------------------------------------------------------------------------------------------


def random_trees(world_size, seed):
    """An all-reduce: every chunk goes up a random tree of ranks and down another one, when it likes."""
    draw = random.Random(seed)
    num_chunks, rounds = draw.randint(1, 4), [[] for _ in range(5 * world_size)]
    for chunk in range(num_chunks):
        order = draw.sample(range(world_size), world_size)
        last = len(rounds) // 2
        when, parents = {order[0]: last}, {}
        for place, rank in enumerate(order[1:], 1):
            parents[rank] = draw.choice(order[:place])
            when[rank] = when[parents[rank]] - draw.randint(1, 2)
            rounds[when[rank]].append(Message(rank, parents[rank], chunk, "add"))
        there = [order[0]]
        heard = {order[0]: last}
        for rank in draw.sample(order[1:], world_size - 1):
            src = draw.choice(there)
            heard[rank] = heard[src] + draw.randint(1, 2)
            rounds[heard[rank]].append(Message(src, rank, chunk, "copy"))
            there.append(rank)
    return Schedule(world_size, num_chunks, [messages for messages in rounds if messages], name=f"trees {seed}")


def any_schedule(draw, world_size):
    group_size = draw.choice([size for size in range(1, world_size + 1) if world_size % size == 0])
    root = draw.randrange(world_size)
    return draw.choice(
        [
            *[make(world_size) for make in ALGORITHMS.values()],
            hierarchical(world_size, group_size),
            ring_reduce_scatter(world_size),
            ring_all_gather(world_size),
            star_broadcast(world_size, root),
            tree_broadcast(world_size, root),
            *[random_trees(world_size, draw.random()) for _ in range(6)],
        ]
    )


def mutated(schedule, draw):
    """`schedule` with one or two random mistakes."""
    rounds = [list(messages) for messages in schedule.rounds]
    for _ in range(draw.choice([1, 1, 2])):
        filled = [number for number, messages in enumerate(rounds) if messages]
        if not filled:
            break
        number = draw.choice(filled)
        place = draw.randrange(len(rounds[number]))
        message = rounds[number][place]
        kind = draw.choice(["drop", "twice", "op", "chunk", "src", "dst", "turn", "move", "swap", "merge", "beside"])
        changes = {
            "op": {"op": "copy" if message.op == "add" else "add"},
            "chunk": {"chunk": draw.randrange(-1, schedule.num_chunks + 1)},
            "src": {"src": draw.randrange(-1, schedule.world_size + 1)},
            "dst": {"dst": draw.randrange(-1, schedule.world_size + 1)},
            "turn": {"src": message.dst, "dst": message.src},
        }
        if kind in changes:
            rounds[number][place] = message._replace(**changes[kind])
        elif kind == "beside":
            other = message._replace(src=draw.randrange(schedule.world_size), op=draw.choice(["add", "copy"]))
            rounds[number].insert(draw.choice([place, place + 1]), other)
        elif kind == "swap":
            other = draw.choice(filled)
            rounds[number], rounds[other] = rounds[other], rounds[number]
        elif kind == "merge" and number + 1 < len(rounds):
            rounds[number : number + 2] = [rounds[number] + rounds[number + 1]]
        elif kind != "merge":
            if kind != "twice":
                del rounds[number][place]
            if kind != "drop":
                rounds[draw.randrange(len(rounds))].append(message)
    fields = schedule.world_size, schedule.num_chunks, rounds, schedule.name, schedule.collective, schedule.root
    return Schedule(*fields)


def played(schedule, inputs):
    """The definition of a schedule in one process: a round's messages read what stood at its start, in any order."""
    held, draw = [list(row) for row in inputs], random.Random(0)
    for messages in schedule.rounds:
        taken = [(message, held[message.src][message.chunk]) for message in messages]
        for (_, dst, chunk, op), value in draw.sample(taken, len(taken)):
            held[dst][chunk] = held[dst][chunk] + value if op == "add" else value
    return held


def promised(schedule, inputs):
    """{(rank, chunk): what has to stand there at the end}."""
    ranks, chunks = range(schedule.world_size), range(schedule.num_chunks)
    homes = [chunk * schedule.world_size // schedule.num_chunks for chunk in chunks]
    wanted = {
        "all_reduce": lambda rank, chunk: sum(inputs[r][chunk] for r in ranks),
        "reduce_scatter": lambda rank, chunk: sum(inputs[r][chunk] for r in ranks) if rank == homes[chunk] else None,
        "all_gather": lambda rank, chunk: inputs[homes[chunk]][chunk],
        "broadcast": lambda rank, chunk: inputs[schedule.root][chunk],
    }[schedule.collective]
    return {(rank, chunk): value for rank in ranks for chunk in chunks if (value := wanted(rank, chunk)) is not None}


def passes(schedule):
    try:
        verify(schedule)
    except InvalidSchedule:
        return False
    return True


def numbers(schedule):
    """A power of 16 for each rank and chunk: a contribution that is missing or there twice is seen in any sum."""
    size = schedule.num_chunks
    return [[16 ** (rank * size + chunk) for chunk in range(size)] for rank in range(schedule.world_size)]


@settings(max_examples=300)
@given(world_size=st.integers(1, 9), seed=st.integers(0, 10**9))
def test_schedules_that_pass_are_right_and_ledgers_add_up(world_size, seed):
    schedule = any_schedule(random.Random(seed), world_size)
    verify(schedule)
    inputs = numbers(schedule)
    held = played(schedule, inputs)
    assert all(held[rank][chunk] == value for (rank, chunk), value in promised(schedule, inputs).items())
    counts = count(schedule, 1003, itemsize=2)
    sizes = [2 * (stop - start) for start, stop in chunk_bounds(1003, schedule.num_chunks)]
    moved = sum(sizes[message.chunk] for messages in schedule.rounds for message in messages)
    assert sum(counts.bytes_sent) == sum(counts.bytes_received) == moved
    assert sum(counts.messages_sent) == sum(counts.messages_received)


@settings(max_examples=1500)
@given(world_size=st.integers(1, 7), seed=st.integers(0, 10**9))
def test_a_schedule_with_a_mistake_is_refused_or_still_right(world_size, seed):
    draw = random.Random(seed)
    schedule = mutated(any_schedule(draw, world_size), draw)
    if passes(schedule):
        inputs = numbers(schedule)
        held = played(schedule, inputs)
        assert all(held[rank][chunk] == value for (rank, chunk), value in promised(schedule, inputs).items())


def run_mutants(comm, schedules, numel):
    results = []
    for schedule in schedules:
        x = torch.arange(numel) % 97 + 1000 * 31**comm.rank
        try:
            comm.run(schedule, x)
        except InvalidSchedule as error:
            x = str(error)
        results.append(x)
    return results


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_what_ranks_do_is_what_the_schedule_says(world_size, transport):
    draw, numel = random.Random(world_size), 1003
    schedules = [any_schedule(draw, world_size) for _ in range(15)]
    mutants = [mutated(draw.choice(schedules), draw) for _ in range(150)]
    right = [mutant for mutant in mutants if passes(mutant)]
    schedules += right + [mutant for mutant in mutants if mutant not in right][:5]
    slow = Links.two_level(2, fast=Links(), slow=Links(1e-3))  # so that some ranks are far behind others
    results = launch(run_mutants, schedules, numel, world_size=world_size, transport=transport, links=slow)
    for index, schedule in enumerate(schedules):
        if not passes(schedule):
            assert all(isinstance(result[index], str) for result in results)
            continue
        bounds = chunk_bounds(numel, schedule.num_chunks)
        inputs = [torch.arange(numel) % 97 + 1000 * 31**rank for rank in range(world_size)]
        chunks = [[x[start:stop] for start, stop in bounds] for x in inputs]
        for (rank, chunk), value in promised(schedule, chunks).items():
            start, stop = bounds[chunk]
            assert torch.equal(results[rank][index][start:stop], value), (schedule, rank, chunk)


def round_of(*messages):
    return [Message(src, dst, 0, op) for src, dst, op in messages]


LATE_READER = [  # rank 1 reads from 0 in round 2, what rank 4 adds to in round 3, and goes on with what it has read
    round_of((4, 2, "add")),
    round_of((1, 4, "copy"), (2, 3, "add")),
    round_of((0, 1, "add")),
    round_of((4, 0, "add")),
    round_of((3, 0, "add"), (3, 1, "add")),
    round_of((0, 2, "copy"), (0, 3, "copy"), (0, 4, "copy")),
]


def run_late_reader(comm):
    x = torch.full((1000,), 10**comm.rank)
    comm.run(Schedule(5, 1, LATE_READER), x)
    return x.unique().tolist()


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_nothing_is_overwritten_that_a_slow_rank_has_yet_to_read(transport):
    slow_from_0_to_1 = Links.two_level(2, fast=Links(0.02), slow=Links())
    results = launch(run_late_reader, world_size=5, transport=transport, links=slow_from_0_to_1)
    assert results == [[11111]] * 5


# --- arithmetic without processes -------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(numel=st.integers(0, 10**12), num_chunks=st.integers(1, 300))
def test_chunks_cover_every_element_once_and_differ_by_one_at_most(numel, num_chunks):
    bounds = chunk_bounds(numel, num_chunks)
    sizes = [stop - start for start, stop in bounds]
    assert len(bounds) == num_chunks and sum(sizes) == numel and max(sizes) - min(sizes) <= 1
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])] and bounds[-1][1] == numel


RATES = st.floats(1e3, 1e12)
LINKS = st.builds(Links, st.floats(0, 1e-2), RATES, RATES)
TWO_LEVELS = st.builds(Links.two_level, st.integers(1, 4), LINKS, LINKS)


@settings(max_examples=150)
@given(st.integers(1, 8), st.integers(0, 10**9), LINKS | TWO_LEVELS, st.floats(0, 1e9))
def test_a_simulation_is_that_of_each_transfer_by_itself(world_size, seed, links, size):
    schedule = any_schedule(random.Random(seed), world_size)
    finish_s = finished_s(schedule, size, links)
    assert simulate(schedule, size, links).finish_s == pytest.approx(finish_s, rel=1e-12, abs=1e-300)


def finished_s(schedule, size_bytes, links):
    """When each rank has ended its last round, from one transfer to the next: nothing is kept, nothing left out."""
    done_s = [0.0] * schedule.world_size
    for messages in schedule.rounds:
        ready_s, out_free_s, in_free_s = done_s.copy(), done_s.copy(), done_s.copy()
        for src, dst, chunks, op in transfers(messages):
            latency_s, bandwidth_Bps = links.between(src, dst)
            payload = size_bytes / schedule.num_chunks * len(chunks)
            leave_s = max(out_free_s[src], in_free_s[dst] - latency_s, ready_s[dst] - latency_s, ready_s[src])
            out_free_s[src] = leave_s + payload / bandwidth_Bps
            in_free_s[dst] = leave_s + latency_s + payload / bandwidth_Bps
            done_s[dst] = max(in_free_s[dst], done_s[dst]) + (payload / links.reduce_Bps if op == "add" else 0.0)
            done_s[src] = max(done_s[src], out_free_s[src])
    return done_s


@settings(max_examples=150)
@given(st.integers(1, 8), st.integers(0, 10**9), LINKS, st.floats(0, 1e9))
def test_a_simulation_is_between_what_the_busiest_rank_and_one_link_for_all_would_take(world_size, seed, links, size):
    schedule = any_schedule(random.Random(seed), world_size)
    result = simulate(schedule, size, links, spans=False)
    sent, received = [0] * world_size, [0] * world_size
    for message in (m for messages in schedule.rounds for m in messages):
        sent[message.src] += size / schedule.num_chunks
        received[message.dst] += size / schedule.num_chunks
    num_messages = sum(map(len, schedule.rounds))
    least_s = max(sent + received) / links.bandwidth_Bps
    most_s = num_messages * links.latency_s + sum(sent) * (1 / links.bandwidth_Bps + 1 / links.reduce_Bps)
    assert least_s * (1 - 1e-9) <= result.total_s <= most_s * (1 + 1e-9)
    assert result.total_s == max(result.finish_s) and len(result.finish_s) == world_size
    slower = Links(links.latency_s * 2 + 1e-6, links.bandwidth_Bps / 2, links.reduce_Bps / 2)
    assert simulate(schedule, size, slower, spans=False).total_s >= result.total_s


@settings(max_examples=200)
@given(
    num_samples=st.integers(0, 200),
    world_size=st.integers(1, 9),
    batch_size=st.integers(1, 60),
    shuffle=st.booleans(),
    seed=st.integers(0, 10**12),
    epoch=st.integers(0, 10**6),
)
def test_samplers_deal_out_the_batches_of_one_process(num_samples, world_size, batch_size, shuffle, seed, epoch):
    def steps(rank, size):
        sampler = RankSampler(num_samples, rank, size, batch_size, shuffle, seed)
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    shares = [steps(rank, world_size) for rank in range(world_size)]
    alone = steps(0, 1)
    assert sorted(chain(*alone)) == list(range(num_samples))
    for batch, *parts in zip(alone, *shares, strict=True):
        assert sorted(chain(*parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


# --- models -----------------------------------------------------------------------------------------------------------


class Training(NamedTuple):
    """A little model and how it is trained. `odd`: what is unusual about its parameters."""

    sizes: list
    odd: str
    num_samples: int
    batch_size: int
    bucket_cap_mb: float
    overlap: bool | None
    micro_batches: int
    set_to_none: bool
    seed: int


TRAININGS = st.builds(
    Training,
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    odd=st.sampled_from(["", "tied", "frozen", "unused", "sometimes unused", "mixed dtypes", "0-d"]),
    num_samples=st.integers(1, 40),
    batch_size=st.integers(1, 16),
    bucket_cap_mb=st.sampled_from([25, 1e-4, 1e-9]),
    overlap=st.sampled_from([None, True, False]),
    micro_batches=st.integers(1, 3),
    set_to_none=st.booleans(),
    seed=st.integers(0, 2**31),
)


class Net(nn.Module):
    def __init__(self, training, seed):
        super().__init__()
        torch.manual_seed(seed)
        pairs = zip(training.sizes, training.sizes[1:], strict=False)
        self.layers = nn.ModuleList([nn.Linear(*pair, dtype=torch.float64) for pair in pairs])
        self.odd, self.scale = training.odd, nn.Parameter(torch.rand((), dtype=torch.float64))
        self.extra, self.passes = nn.Linear(3, 3, dtype=torch.float64), 0
        if self.odd == "tied":
            self.extra.weight = self.layers[0].weight
        if self.odd == "frozen":
            self.layers[-1].weight.requires_grad_(False)
        if self.odd == "mixed dtypes":
            self.layers[0].float()

    def forward(self, x):
        x = x.to(self.layers[0].weight.dtype)
        for layer in self.layers:
            x = torch.tanh(layer(x)).double()
        self.passes += 1
        used = self.odd == "0-d" or (self.odd == "sometimes unused" and self.passes % 3 == 0)
        if self.odd == "tied":
            x = x + self.extra.weight.sum() * 1e-2
        return x * self.scale if used else x


def trained(comm, training):
    """The parameters after every step, of one process (comm=None) or of a rank."""
    rank, world_size = (comm.rank, comm.world_size) if comm else (0, 1)
    net = model = Net(training, training.seed + rank)
    if comm:
        model = DataParallel(net, comm, training.bucket_cap_mb, training.overlap)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    num_samples, batch_size = training.num_samples, training.batch_size
    if (
        training.micro_batches > 1
    ):  # micro-batches count alike, however many samples they have: here as many on each rank
        num_samples, batch_size = 48, 6 * (1 + batch_size % 2)
    draw = torch.Generator().manual_seed(training.seed)
    ends = training.sizes[0], training.sizes[-1]
    data = [torch.randn(num_samples, size, generator=draw, dtype=torch.float64) for size in ends]
    steps, due = [], 0
    for x, y in batches(RankSampler(num_samples, rank, world_size, batch_size), *data):
        if due == 0:
            optimizer.zero_grad(training.set_to_none)
        due = (due + 1) % training.micro_batches
        with model.no_sync() if comm and due else torch.enable_grad():
            ((model(x) - y) ** 2).mean().backward()
        if due == 0:
            optimizer.step()
            steps.append([parameter.detach().clone() for parameter in net.parameters()])
    return steps


def train_all(comm, trainings):
    return [trained(comm, training) for training in trainings]


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_any_model_trains_on_many_ranks_as_on_one(world_size, transport):
    @launches(3)
    @given(st.lists(TRAININGS, min_size=8, max_size=8, unique_by=repr))
    def check(trainings):
        results = launch(train_all, trainings, world_size=world_size, transport=transport, timeout_s=20)
        for index, training in enumerate(trainings):
            alone = trained(None, training)
            for result in results:
                assert len(result[index]) == len(alone)
                for mine, theirs in zip(result[index], alone, strict=True):
                    for one, other in zip(mine, theirs, strict=True):
                        rounding = 1e-4 if training.odd == "mixed dtypes" else 1e-11
                        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding, msg=str(training))

    check()
