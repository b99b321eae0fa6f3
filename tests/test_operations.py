"""Deliveries: reduce-scatter, all-gather, gather, scatter and all-to-all, beside what one process says."""

import random
import sys
from typing import NamedTuple

import cloudpickle
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401

from lessons_lib import CollectiveMismatch, InvalidSchedule, Links, RankFailed, launch
from lessons_lib.schedules import (
    Message,
    Schedule,
    all_to_all,
    chunk_bounds,
    count,
    direct_all_gather,
    direct_reduce_scatter,
    gather,
    scatter,
    verify,
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ["shared_memory", "torch"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.complex64]


# --- schedules --------------------------------------------------------------------------------------------------------


def deliveries(size):
    rooted = [make(size, root) for make in (gather, scatter) for root in range(size)]
    return [*rooted, all_to_all(size), direct_all_gather(size), direct_reduce_scatter(size)]


@pytest.mark.parametrize("world_size", range(1, 9))
def test_deliveries_verify(world_size):
    for schedule in deliveries(world_size):
        verify(schedule)
        assert len(schedule.rounds) == (world_size > 1)


def with_round(schedule, messages):
    fields = schedule.world_size, schedule.num_chunks, [messages], schedule.name, schedule.collective, schedule.root
    return Schedule(*fields)


def mistakes(schedule):
    """Every schedule with one message dropped, doubled in a round of its own, or with one field changed."""
    (messages,) = schedule.rounds
    for index, message in enumerate(messages):
        others = messages[:index] + messages[index + 1 :]
        yield with_round(schedule, others)
        changed = [message._replace(src=src) for src in range(schedule.world_size)]
        changed += [message._replace(dst=dst) for dst in range(schedule.world_size)]
        changed += [message._replace(chunk=chunk) for chunk in range(schedule.num_chunks)]
        changed += [message._replace(op="add" if message.op == "copy" else "copy")]
        yield from (with_round(schedule, [*others, other]) for other in changed if other != message)


def played(schedule):
    """What each rank must end with is right: the definition, with numbers that tell all contributions apart."""
    size, chunks = schedule.world_size, schedule.num_chunks
    held = [[16 ** (rank * chunks + chunk) for chunk in range(chunks)] for rank in range(size)]
    start = [list(row) for row in held]
    for message in schedule.rounds[0]:
        taken = start[message.src][message.chunk]
        held[message.dst][message.chunk] = taken + (held[message.dst][message.chunk] if message.op == "add" else 0)
    ends = {
        "gather": lambda: [(schedule.root, chunk, start[chunk][chunk]) for chunk in range(chunks)],
        "scatter": lambda: [(chunk, chunk, start[schedule.root][chunk]) for chunk in range(chunks)],
        "all_to_all": lambda: [(chunk % size, chunk, start[chunk // size][chunk]) for chunk in range(chunks)],
        "all_gather": lambda: [(rank, chunk, start[chunk][chunk]) for rank in range(size) for chunk in range(chunks)],
        "reduce_scatter": lambda: [(chunk, chunk, sum(row[chunk] for row in start)) for chunk in range(chunks)],
    }[schedule.collective]()
    return all(held[rank][chunk] == value for rank, chunk, value in ends)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_mistake_that_changes_the_result_is_refused(world_size):
    num_refused = 0
    for schedule in deliveries(world_size):
        assert played(schedule)
        for wrong in mistakes(schedule):
            try:
                verify(wrong)
            except InvalidSchedule:
                num_refused += 1
            else:
                assert played(wrong), wrong
    assert num_refused > 50


def test_a_message_that_comes_twice_is_refused_where_it_adds():
    (messages,) = direct_reduce_scatter(3).rounds
    with pytest.raises(InvalidSchedule, match="added a second time"):
        verify(Schedule(3, 3, [messages, messages[:1]], collective="reduce_scatter"))


def test_an_all_to_all_over_a_third_rank_verifies_and_runs():
    rounds = [
        [Message(0, 2, 1, "copy"), Message(1, 0, 3, "copy"), Message(2, 1, 7, "copy")],  # 0 → 1 goes by way of 2
        [Message(2, 1, 1, "copy"), Message(0, 2, 2, "copy"), Message(1, 2, 5, "copy"), Message(2, 0, 6, "copy")],
    ]
    verify(Schedule(3, 9, rounds, "by way of 2", "all_to_all"))
    with pytest.raises(ValueError, match="num_chunks=3: a multiple of 9 is needed"):
        Schedule(3, 3, rounds, collective="all_to_all")


def test_uneven_chunks_are_counted():
    counts = count(all_to_all(2), [1, 2, 30, 4], itemsize=2)
    assert counts.bytes_sent == [4, 60] and counts.bytes_received == [60, 4] and counts.messages_sent == [1, 1]
    with pytest.raises(ValueError, match="one number for each of 4 chunks"):
        count(all_to_all(2), [1, 2, 3])
    with pytest.raises(ValueError, match="numel=-1"):
        count(all_to_all(2), [1, 2, 3, -1])


# --- ranks ------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One operation; what is not said in its fields is drawn from `seed`."""

    name: str
    dtype: torch.dtype
    layout: str
    op: str
    seed: int


def cases(seed, number):
    draw = random.Random(seed)
    names = ["reduce_scatter", "all_gather", "gather", "scatter", "all_to_all", "all_to_all lists", "all_to_all uneven"]
    layouts = ["plain", "strided", "buffer", "in place"]
    ops = ["sum", "product", "max", "min"]
    return [
        Case(draw.choice(names), draw.choice(DTYPES), draw.choice(layouts), draw.choice(ops), draw.randrange(2**30))
        for _ in range(number)
    ]


def values(case, rank, *shape):
    """Small whole numbers: exact in every dtype, also where a few are multiplied."""
    draw = torch.Generator().manual_seed(case.seed * 16 + rank)
    return torch.randint(0, 4, shape, generator=draw).to(case.dtype)


def inside(comm, case, tensor):
    """A copy of `tensor` that lies as the case says."""
    if case.layout == "strided":
        return torch.stack([tensor] * 2, -1)[..., 0]
    if case.layout in ("buffer", "in place"):
        room = comm.buffer(20_000, tensor.dtype)[comm.rank : comm.rank + tensor.numel()]
        return room.copy_(tensor.reshape(-1)).view(tensor.shape)
    return tensor.clone()


def split_sizes(case, size):
    """sizes[src][dst], many of them 0."""
    draw = random.Random(case.seed)
    return [[draw.choice([0, 0, 1, 2, 9, 40]) for _ in range(size)] for _ in range(size)]


def do(comm, case):
    """What this rank ends with, as a list of tensors."""
    size, rank, draw = comm.world_size, comm.rank, random.Random(case.seed)
    numel, root = draw.choice([0, 1, 5, 700]), draw.randrange(size)
    bounds = chunk_bounds(numel, size)
    mine = slice(*bounds[rank])
    if case.name == "reduce_scatter":
        op = "sum" if case.dtype.is_complex and case.op in ("max", "min") else case.op
        whole = inside(comm, case, values(case, rank, numel))
        before = whole.clone()
        part = whole[mine] if case.layout == "in place" else whole.new_zeros(mine.stop - mine.start)
        comm.reduce_scatter(part, whole, op)
        if case.layout != "in place":
            assert torch.equal(whole, before), "the input has changed"
        return [part]
    if case.name == "all_gather":
        whole = inside(comm, case, torch.zeros(numel, dtype=case.dtype))
        part = values(case, rank, mine.stop - mine.start)
        if case.layout == "in place":
            whole[mine] = part
            part = whole[mine]
        comm.all_gather(whole, part)
        return [whole]
    if case.name == "gather":
        filled = [torch.zeros(numel, dtype=case.dtype) for _ in range(size)] if rank == root else None
        comm.gather(inside(comm, case, values(case, rank, numel)), filled, dst=root)
        return filled or []
    if case.name == "scatter":
        filled = inside(comm, case, torch.zeros(numel, dtype=case.dtype))
        comm.scatter(filled, list(values(case, root, size, numel)) if rank == root else None, src=root)
        return [filled]
    if case.name == "all_to_all":
        source = inside(comm, case, values(case, rank, size * 3, numel))
        target = inside(comm, case, torch.zeros(size * 3, numel, dtype=case.dtype))
        comm.all_to_all(target, source)
        return [target]
    sizes = split_sizes(case, size)
    row, column = sizes[rank], [sizes[src][rank] for src in range(size)]
    source = inside(comm, case, values(case, rank, sum(row), 2))
    target = inside(comm, case, torch.zeros(sum(column), 2, dtype=case.dtype))
    if case.name == "all_to_all lists":
        comm.all_to_all(list(target.split(column)), list(source.split(row)))
    else:
        comm.all_to_all(target, source, column, row)
    return [target]


def do_all(comm, seed, number):
    results = [[tensor.clone() for tensor in do(comm, case)] for case in cases(seed, number)]
    return results, comm.ledger


REDUCE = {"sum": torch.sum, "product": torch.prod, "max": torch.amax, "min": torch.amin}


def expected(case, rank, size):
    """What one process says."""
    draw = random.Random(case.seed)
    numel, root = draw.choice([0, 1, 5, 700]), draw.randrange(size)
    bounds = chunk_bounds(numel, size)
    if case.name == "reduce_scatter":
        op = "sum" if case.dtype.is_complex and case.op in ("max", "min") else case.op
        wide = torch.stack([values(case, r, numel) for r in range(size)])
        return [REDUCE[op](wide, 0).to(case.dtype)[slice(*bounds[rank])]]
    if case.name == "all_gather":
        return [torch.cat([values(case, r, stop - start) for r, (start, stop) in enumerate(bounds)])]
    if case.name == "gather":
        return [values(case, r, numel) for r in range(size)] if rank == root else []
    if case.name == "scatter":
        return [values(case, root, size, numel)[rank]]
    if case.name == "all_to_all":
        return [torch.cat([values(case, r, size * 3, numel).chunk(size)[rank] for r in range(size)])]
    sizes = split_sizes(case, size)
    return [torch.cat([values(case, r, sum(sizes[r]), 2).split(sizes[r])[rank] for r in range(size)])]


def moved_bytes(case, size):
    """(sent, received) by each rank, as `count` says."""
    draw = random.Random(case.seed)
    numel, root = draw.choice([0, 1, 5, 700]), draw.randrange(size)
    even = [stop - start for start, stop in chunk_bounds(numel, size)]
    make, sizes = {
        "reduce_scatter": (direct_reduce_scatter(size), even),
        "all_gather": (direct_all_gather(size), even),
        "gather": (gather(size, root), [numel] * size),
        "scatter": (scatter(size, root), [numel] * size),
        "all_to_all": (all_to_all(size), [3 * numel] * size**2),
    }.get(case.name, (all_to_all(size), [2 * n for row in split_sizes(case, size) for n in row]))
    counts = count(make, sizes, case.dtype.itemsize)
    return list(zip(counts.bytes_sent, counts.bytes_received, strict=True))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("world_size", "links"), [(1, None), (2, None), (3, None), (4, Links(1e-5)), (8, None)])
def test_every_delivery_is_right_and_moves_the_counted_bytes(world_size, transport, links):
    seed, number = world_size, 40
    options = {"world_size": world_size, "transport": transport, "links": links, "timeout_s": 60}
    results = launch(do_all, seed, number, **options)
    for index, case in enumerate(cases(seed, number)):
        for rank, (outputs, _) in enumerate(results):
            wanted = expected(case, rank, world_size)
            assert len(outputs[index]) == len(wanted), (case, rank)
            for got, right in zip(outputs[index], wanted, strict=True):
                assert torch.equal(got, right), (case, rank, got, right)
    moved = [moved_bytes(case, world_size) for case in cases(seed, number)]
    for rank, (_, ledger) in enumerate(results):
        assert ledger.bytes_sent == sum(each[rank][0] for each in moved)
        assert ledger.bytes_received == sum(each[rank][1] for each in moved)


def overlapping(comm):
    """Input and output share memory, but not as a rank's own chunk: no number may be read after it was overwritten."""
    size, rank = comm.world_size, comm.rank
    whole = comm.buffer(8 * size)
    whole[:8] = rank + 1.0
    comm.all_gather(whole, whole[:8])
    gathered = whole.view(size, 8)[:, 0].tolist()
    whole[:] = torch.arange(8.0 * size) + rank
    comm.reduce_scatter(whole[1:9], whole)
    reduced = whole[1:9].tolist()
    whole[:] = torch.arange(8.0 * size) + 100 * rank
    comm.all_to_all(whole, whole)
    return gathered, reduced, whole.view(size, 8)[:, 0].tolist()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_overlapping_tensors_are_right(transport):
    results = launch(overlapping, world_size=3, transport=transport)
    for rank, (gathered, reduced, exchanged) in enumerate(results):
        assert gathered == [1.0, 2.0, 3.0]
        assert reduced == [3.0 * (8 * rank + k) + 3 for k in range(8)]
        assert exchanged == [100.0 * src + 8 * rank for src in range(3)]


def products(comm):
    x = torch.tensor([2.0, -1.0, 0.5]) + comm.rank
    comm.all_reduce(x, "product")
    truth = torch.tensor([True, comm.rank == 0])
    comm.all_reduce(truth, "product")
    return x.tolist(), truth.tolist()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("algorithm", ["auto", "ring", "tree"])
def test_a_product_multiplies(transport, algorithm):
    results = launch(products, world_size=3, transport=transport, algorithm=algorithm)
    assert results == [([24.0, 0.0, 0.5 * 1.5 * 2.5], [True, False])] * 3


# --- what cannot be right ---------------------------------------------------------------------------------------------


def uneven_disagreement(comm):
    sizes = [[1, 2], [3, 4]][comm.rank]
    taken = [1, 3] if comm.rank == 0 else [5, 4]
    comm.all_to_all(torch.zeros(sum(taken)), torch.zeros(sum(sizes)), taken, sizes)


def other_shape(comm):
    comm.gather(torch.zeros(2 + comm.rank), [torch.zeros(2)] * 2 if comm.rank == 0 else None)


def other_root(comm):
    root = comm.rank
    comm.scatter(torch.zeros(2), [torch.zeros(2)] * 2, src=root)


def even_and_uneven(comm):
    x = torch.zeros(2)
    comm.all_to_all(torch.zeros(2), x, *([[1, 1], [1, 1]] if comm.rank else []))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (uneven_disagreement, ["rank 0: all_to_all with 2 elements for rank 1", "takes|with 5 elements from rank 0"]),
        (other_shape, ["gather(float32, shape (2,), dst=0)", "gather(float32, shape (3,), dst=0)"]),
        (other_root, ["src=0", "src=1"]),
        (even_and_uneven, ["all_to_all(float32, shape (2,))", "all_to_all(float32, uneven)"]),
    ],
)
def test_ranks_that_disagree_are_named(transport, fn, says):
    with pytest.raises(CollectiveMismatch) as caught:
        launch(fn, world_size=2, transport=transport, timeout_s=20)
    assert set(caught.value.calls) == {0, 1}
    assert all(any(text in str(caught.value) for text in each.split("|")) for each in says), str(caught.value)


def call(comm, name, args, kwargs):
    getattr(comm, name)(*args, **kwargs)


ONE, FOUR = torch.ones(1), torch.ones(4)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "says"),
    [
        ("gather", (ONE, [ONE]), {}, "gather: gather_list is a list of 1: a list of 2 tensors is needed"),
        ("gather", (ONE, None), {}, "gather: gather_list is a NoneType: a list of 2 tensors is needed"),
        ("gather", (ONE, [FOUR, ONE]), {}, "gather_list has a tensor of torch.float32, shape (4,)"),
        ("gather", (ONE, [ONE, ONE]), {"dst": 2}, "dst=2"),
        ("scatter", (ONE, [ONE.long(), ONE]), {}, "scatter_list has a tensor of torch.int64"),
        ("all_to_all", (FOUR, [FOUR]), {}, "output is a Tensor, input a list: two tensors or two lists are needed"),
        ("all_to_all", ([FOUR], [FOUR]), {}, "output has 1 tensors: 2 are needed, one for each rank"),
        ("all_to_all", (torch.ones(3), torch.ones(3)), {}, "output has 3 rows: a multiple of 2 is needed"),
        ("all_to_all", (FOUR, torch.ones(2)), {}, "output and input have shapes (4,) and (2,)"),
        ("all_to_all", (torch.tensor(1.0), torch.tensor(1.0)), {}, "output has no dimension"),
        ("all_to_all", (FOUR, FOUR.double()), {}, "input is torch.float64: torch.float32 is needed"),
        ("all_to_all", (FOUR, FOUR, [2, 2], [1, 2]), {}, "input_split_sizes=[1, 2]: a sum of 4 is needed"),
        ("all_to_all", (FOUR, FOUR, [4], [2, 2]), {}, "output_split_sizes=[4]: a list of 2 numbers is needed"),
        ("all_to_all", (FOUR, FOUR, [5, -1], [2, 2]), {}, "output_split_sizes=-1: a whole number of at least 0"),
        ("all_to_all", ([ONE, ONE], [ONE, ONE], [1, 1]), {}, "output_split_sizes=[1, 1]: None is needed with lists"),
    ],
)
def test_bad_arguments_are_named(name, args, kwargs, says):
    with pytest.raises(RankFailed) as caught:
        launch(call, name, args, kwargs, world_size=2)
    assert says in caught.value.reason
