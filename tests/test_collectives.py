"""Collectives on real ranks: values against one process, bytes against the formula, disagreement named."""

import sys

import cloudpickle
import pytest
import torch

from lessons_lib import CollectiveMismatch, Links, RankFailed, launch
from lessons_lib.schedules import ALGORITHMS, Message, Schedule, chunk_bounds, count, ring

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ("shared_memory", "torch")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
NUMELS = (0, 1, 5, 1003, 70_000)


def values(rank, numel, dtype):
    """What rank `rank` starts with: small whole numbers, so that sums are exact in every dtype."""
    return torch.randint(0, 4, (numel,), generator=torch.Generator().manual_seed(rank * 1000 + numel)).to(dtype)


def reduce_all(comm, numels, dtypes):
    results = {}
    for numel in numels:
        for dtype in dtypes:
            x = values(comm.rank, numel, dtype)
            comm.all_reduce(x)
            results[numel, dtype] = x
    return results


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "auto"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_all_reduce_of_every_size_and_dtype(transport, algorithm, world_size):
    numels = NUMELS if transport == "shared_memory" else NUMELS[:4]
    results = launch(reduce_all, numels, DTYPES, world_size=world_size, transport=transport, algorithm=algorithm)
    for result in results:
        for (numel, dtype), x in result.items():
            expected = sum(values(rank, numel, dtype) for rank in range(world_size))
            assert x.dtype == dtype
            assert torch.equal(x, expected), (numel, dtype)


def reduce_random(comm, shape, op):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(comm.rank), dtype=torch.float64)
    comm.all_reduce(x, op=op)
    return x


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("algorithm", ["ring", "direct", "halving_doubling", "tree"])
@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
def test_replicas_are_bitwise_equal_and_right(transport, algorithm, op):
    shape = (13, 7)
    results = launch(reduce_random, shape, op, world_size=3, transport=transport, algorithm=algorithm)
    inputs = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(r), dtype=torch.float64) for r in range(3)]
    )
    expected = {"sum": inputs.sum(0), "mean": inputs.mean(0), "max": inputs.amax(0), "min": inputs.amin(0)}[op]
    assert all(torch.equal(result, results[0]) for result in results)
    torch.testing.assert_close(results[0], expected, rtol=1e-12, atol=1e-12)


def test_torch_algorithm_is_torch():
    results = launch(reduce_random, (50,), "sum", world_size=3, transport="torch", algorithm="torch")
    ours = launch(reduce_random, (50,), "sum", world_size=3, transport="torch", algorithm="ring")
    torch.testing.assert_close(results[0], ours[0], rtol=1e-13, atol=1e-13)


def odd_tensors(comm):
    base = torch.full((4, 6), float(comm.rank + 1))
    columns = base[:, ::2]
    comm.all_reduce(columns)
    scalar = torch.tensor(comm.rank + 1.0)
    comm.all_reduce(scalar)
    with_nan = torch.tensor([float("nan") if comm.rank == 1 else 1.0, float("inf"), 1.0])
    comm.all_reduce(with_nan)
    leaf = torch.ones(3, requires_grad=True)
    comm.all_reduce(leaf)
    return base, scalar, with_nan, leaf.detach()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_odd_tensors(transport):
    for base, scalar, with_nan, leaf in launch(odd_tensors, world_size=3, transport=transport):
        assert (base[:, ::2] == 6).all() and len(base[:, 1::2].unique()) == 1
        assert scalar == 6
        assert with_nan[0].isnan() and with_nan[1].isinf() and with_nan[2] == 3
        assert (leaf == 3).all()


def count_bytes(comm, numel, in_buffer):
    x = comm.buffer(numel) if in_buffer else torch.zeros(numel)
    x.fill_(comm.rank + 1)
    comm.all_reduce(x)
    return x.unique().tolist()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("numel", [1200, 1003, 3_000_001])
def test_ranks_move_exactly_the_counted_bytes(transport, algorithm, numel):
    world_size = 4
    results = launch(count_bytes, numel, True, world_size=world_size, transport=transport, algorithm=algorithm)
    counts = count(ALGORITHMS[algorithm](world_size), numel)
    assert results == [[10.0]] * world_size
    assert [ledger.bytes_sent for ledger in results.ledgers] == counts.bytes_sent
    assert [ledger.bytes_received for ledger in results.ledgers] == counts.bytes_received
    assert [ledger.messages_sent for ledger in results.ledgers] == counts.messages_sent
    assert {ledger.rounds for ledger in results.ledgers} == {counts.num_rounds}


def half_in_buffer(comm):
    buffer = comm.buffer(100)
    x = buffer[10:60] if comm.rank == 0 else torch.zeros(50)
    x.fill_(comm.rank + 1)
    comm.all_reduce(x)
    assert buffer[:10].sum() == 0 and buffer[60:].sum() == 0
    y = buffer[20:40] if comm.rank == 0 else buffer[40:60]
    y.fill_(comm.rank + 1)
    comm.all_reduce(y)
    return x[0].item(), y.unique().tolist()


def test_buffers_that_only_some_ranks_use_still_add_up():
    assert launch(half_in_buffer, world_size=3) == [(6.0, [6.0])] * 3


def gather_and_scatter(comm, numel):
    start, stop = chunk_bounds(numel, comm.world_size)[comm.rank]
    gathered = torch.zeros(numel)
    comm.all_gather(gathered, torch.full((stop - start,), float(comm.rank)))
    own = torch.zeros(stop - start)
    source = torch.arange(numel, dtype=torch.float32) * (comm.rank + 1)
    comm.reduce_scatter(own, source)
    return gathered, own, source[-1].item() == (numel - 1) * (comm.rank + 1)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("numel", [12, 13, 2])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_all_gather_and_reduce_scatter(transport, numel, world_size):
    bounds = chunk_bounds(numel, world_size)
    results = launch(gather_and_scatter, numel, world_size=world_size, transport=transport)
    expected = torch.cat([torch.full((stop - start,), float(r)) for r, (start, stop) in enumerate(bounds)])
    total = torch.arange(numel) * sum(range(1, world_size + 1))
    for (start, stop), (gathered, own, input_untouched) in zip(bounds, results, strict=True):
        assert torch.equal(gathered, expected)
        assert torch.equal(own, total[start:stop].float())
        assert input_untouched


def spread(comm, src):
    x = torch.full((5, 3), float(comm.rank))
    comm.broadcast(x, src=src)
    return x.unique().tolist()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("algorithm", ["auto", "star", "torch"])
@pytest.mark.parametrize("src", [0, 2])
def test_broadcast(transport, algorithm, src):
    if algorithm == "torch" and transport != "torch":
        pytest.skip("torch's own collectives need torch's transport")
    assert launch(spread, src, world_size=3, transport=transport, algorithm=algorithm) == [[float(src)]] * 3


def pass_on(comm, numel, dtype):
    """Rank 0's tensor goes once round; each rank adds one."""
    x = torch.zeros(numel, dtype=dtype)
    before, after = (comm.rank - 1) % comm.world_size, (comm.rank + 1) % comm.world_size
    if comm.rank:
        comm.recv(x, before)
        x += 1
    comm.send(x, after)
    if comm.rank == 0:
        comm.recv(x, before)
    return x.unique().tolist() if numel else []


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("numel", "dtype"), [(0, torch.float32), (1, torch.int64), (700_001, torch.float32), (9, torch.int8)]
)
def test_send_and_recv(transport, numel, dtype):
    results = launch(pass_on, numel, dtype, world_size=3, transport=transport)
    assert results[0] == ([2] if numel else [])
    assert [ledger.bytes_sent for ledger in results.ledgers] == [numel * dtype.itemsize] * 3


def run_own(comm, schedule):
    x = torch.arange(10.0) * (comm.rank + 1)
    comm.run(schedule, x)
    return x


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_own_schedules_run(transport):
    chain = Schedule(
        3,
        1,
        [[Message(2, 1, 0, "add")], [Message(1, 0, 0, "add")], [Message(0, 1, 0, "copy"), Message(0, 2, 0, "copy")]],
    )
    for x in launch(run_own, chain, world_size=3, transport=transport):
        assert torch.equal(x, torch.arange(10.0) * 6)
    assert torch.equal(launch(run_own, ring(2), world_size=2, transport=transport)[1], torch.arange(10.0) * 3)
    with pytest.raises(RankFailed, match="is missing at the end"):
        launch(run_own, Schedule(3, 1, chain.rounds[:2]), world_size=3, transport=transport)
    with pytest.raises(ValueError, match="made for 3 ranks, here are 2"):
        launch(run_own, chain, world_size=2, transport=transport, algorithm=chain)


def two_async(comm):
    first, second = torch.full((1000,), comm.rank + 1.0), torch.full((10,), comm.rank + 2.0)
    works = [comm.all_reduce(first, async_op=True), comm.all_reduce(second, op="mean", async_op=True)]
    third = torch.ones(3)
    comm.all_reduce(third)
    for work in works:
        work.wait()
    return first[0].item(), second[0].item(), third[0].item(), all(work.is_completed() for work in works)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_asynchronous_operations_keep_their_order(transport):
    assert launch(two_async, world_size=2, transport=transport) == [(3.0, 2.5, 2.0, True)] * 2


# --- disagreement -----------------------------------------------------------------------------------------------------


def other_shape(comm):
    comm.all_reduce(torch.ones(3 + (comm.rank == 1)))


def other_dtype(comm):
    comm.all_reduce(torch.ones(3, dtype=torch.float64 if comm.rank == 1 else torch.float32))


def other_op(comm):
    comm.all_reduce(torch.ones(3), op="max" if comm.rank == 1 else "sum")


def other_order(comm):
    if comm.rank == 1:
        comm.barrier()
    comm.all_reduce(torch.ones(3))
    if comm.rank == 0:
        comm.barrier()


def one_returns_early(comm):
    if comm.rank == 0:
        comm.all_reduce(torch.ones(3))


def other_root(comm):
    comm.broadcast(torch.ones(3), src=comm.rank)


def wrong_receiver(comm):
    if comm.rank == 0:
        comm.send(torch.ones(3), 1)
    else:
        comm.recv(torch.ones(4), 0)


def message_against_collective(comm):
    if comm.rank == 0:
        comm.recv(torch.ones(3), 1)
    else:
        comm.barrier()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (other_shape, ["shape (3,)", "shape (4,)"]),
        (other_dtype, ["float32", "float64"]),
        (other_op, ["sum", "max"]),
        (other_order, ["barrier", "all_reduce"]),
        (one_returns_early, ["all_reduce", "return from the function"]),
        (other_root, ["src=0", "src=1"]),
        (wrong_receiver, ["send(float32, shape (3,)", "recv(float32, shape (4,)"]),
        (message_against_collective, ["recv", "barrier"]),
    ],
)
def test_ranks_that_disagree_are_named_with_their_calls(transport, fn, says):
    with pytest.raises(CollectiveMismatch) as caught:
        launch(fn, world_size=2, transport=transport, timeout_s=20)
    assert set(caught.value.calls) == {0, 1}
    assert all(text in str(caught.value) for text in says), str(caught.value)


def both_send(comm):
    x = torch.ones(3)
    if comm.rank < 2:
        comm.send(x, 1 - comm.rank)
        comm.recv(x, 1 - comm.rank)


def circle_of_three(comm):
    x = torch.ones(3)
    with comm.compute("before"):
        pass
    comm.recv(x, (comm.rank + 1) % 3)


@pytest.mark.parametrize(("fn", "ranks"), [(both_send, {0, 1}), (circle_of_three, {0, 1, 2})])
def test_a_deadlock_is_found_before_the_time_limit(fn, ranks):
    with pytest.raises(CollectiveMismatch) as caught:
        launch(fn, world_size=3, timeout_s=60, trace=True)
    assert ranks <= set(caught.value.calls)
    assert caught.value.trace is not None


def test_a_deadlock_over_torch_ends_at_the_time_limit():
    with pytest.raises(RankFailed, match=r"timeout_s=1 s.*send\(float32, shape \(3,\), dst=1\)"):
        launch(both_send, world_size=3, transport="torch", timeout_s=1)


def call(comm, name, args, kwargs):
    getattr(comm, name)(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "says"),
    [
        ("all_reduce", ([1.0],), {}, "all_reduce was given a list"),
        ("all_reduce", (torch.ones(2),), {"op": "median"}, "op='median'"),
        ("all_reduce", (torch.ones(2, dtype=torch.int64),), {"op": "mean"}, "floating-point"),
        ("send", (torch.ones(2), 2), {}, "dst=2"),
        ("send", (torch.ones(2), "1"), {}, "dst='1'"),
        ("recv", (torch.ones(2), -1), {}, "src=-1"),
        ("broadcast", (torch.ones(2),), {"src": 7}, "src=7"),
        ("buffer", (-1,), {}, "numel=-1"),
        ("buffer", (2.5,), {}, "numel=2.5"),
        ("all_gather", (torch.ones(4), torch.ones(4)), {}, "input has 4 elements"),
        ("reduce_scatter", (torch.ones(4), torch.ones(4)), {}, "output has 4 elements"),
        ("run", ("ring", torch.ones(4)), {}, "a Schedule is needed"),
    ],
)
def test_bad_arguments_are_named(name, args, kwargs, says):
    with pytest.raises(RankFailed) as caught:
        launch(call, name, args, kwargs, world_size=2)
    assert says in caught.value.reason


def send_to_itself(comm):
    comm.send(torch.ones(2), comm.rank)


def test_sending_to_oneself_is_refused():
    with pytest.raises(RankFailed, match="dst=0 is this rank itself"):
        launch(send_to_itself, world_size=2)


# --- what is recorded -------------------------------------------------------------------------------------------------


def traced(comm):
    with comm.compute("work"):
        x = torch.ones(3000) * comm.rank
    comm.all_reduce(x)
    return x[0].item()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("links", [None, Links(latency_s=2e-3, bandwidth_Bps=1e7)])
def test_traces_hold_every_message_on_one_clock(transport, links):
    results = launch(traced, world_size=3, transport=transport, links=links, algorithm="ring", trace=True)
    trace = results.trace
    assert results == [3.0] * 3
    assert trace.source == ("emulated links" if links else "measured")
    for rank in range(3):
        mine = [span for span in trace.spans if span.rank == rank]
        assert [span.label for span in mine if span.kind == "compute"] == ["work"]
        moved = [span for span in mine if span.kind in ("add", "copy")]
        assert sum(span.size_bytes for span in moved) == results.ledgers[rank].bytes_received == 16000
        assert {span.peer for span in moved} == {(rank - 1) % 3}
    assert all(0 <= span.start_s <= span.end_s for span in trace.spans)
    if links:
        first = min(span.end_s for span in trace.spans if span.kind == "add")
        begin = min(span.start_s for span in trace.spans if span.kind in ("wait", "recv"))
        assert first - begin >= 2e-3
