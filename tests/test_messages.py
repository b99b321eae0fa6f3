"""Messages from one rank to another: begun and awaited later, in any order, and from whoever comes."""

import random
import sys

import cloudpickle
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401

from lessons_lib import CollectiveMismatch, Links, RankFailed, launch

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ["shared_memory", "torch"]


def messages(seed, size):
    """[(src, dst, numel)]: who sends what to whom, in order; some are larger than a mailbox."""
    draw = random.Random(seed)
    pairs = [draw.sample(range(size), 2) for _ in range(25)]
    return [(src, dst, draw.choice([0, 1, 9, 5000, 100_000])) for src, dst in pairs]


def values(index, numel):
    return torch.arange(numel, dtype=torch.float32) % 89 + index


def exchange(comm, seed):
    """Begin all that this rank sends and receives, in random order beside each other, and wait in random order."""
    draw, works, received = random.Random(seed * 100 + comm.rank), [], {}
    mine = [(index, *message) for index, message in enumerate(messages(seed, comm.world_size))]
    sends = [each for each in mine if each[1] == comm.rank]
    receives = [each for each in mine if each[2] == comm.rank]
    while sends or receives:
        from_sends = bool(sends) and (not receives or draw.random() < 0.5)
        index, src, dst, numel = (sends if from_sends else receives).pop(0)
        if from_sends:
            works.append(comm.isend(values(index, numel), dst))
        else:
            received[index] = torch.full((numel, 2), -1.0)[:, 1] if index % 2 else torch.full((numel,), -1.0)
            works.append(comm.irecv(received[index], src))
        if draw.random() < 0.2:
            draw.choice(works).is_completed()
    for work in draw.sample(works, len(works)):
        work.wait()
        assert work.is_completed()
    comm.barrier()
    return {index: tensor.clone() for index, tensor in received.items()}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("size", "links"), [(2, None), (3, Links(1e-4)), (4, None), (8, None)])
def test_any_order_of_messages_is_right(size, links, transport):
    for seed in range(3):
        results = launch(exchange, seed, world_size=size, transport=transport, links=links, timeout_s=30)
        sent = messages(seed, size)
        for index, (src, dst, numel) in enumerate(sent):
            assert torch.equal(results[dst][index], values(index, numel)), (seed, index, src, dst)
        for rank, ledger in enumerate(results.ledgers):
            assert ledger.bytes_sent == sum(4 * numel for src, _, numel in sent if src == rank)
            assert ledger.bytes_received == sum(4 * numel for _, dst, numel in sent if dst == rank)
            assert ledger.messages_sent == sum(src == rank for src, _, _ in sent)


def through_a_collective(comm):
    """Large messages go on while both ranks are in a collective."""
    x, y = torch.full((300_000,), 1.0 + comm.rank), torch.zeros(300_000)
    sent, received = comm.isend(x, 1 - comm.rank), comm.irecv(y, 1 - comm.rank)
    z = torch.ones(4)
    comm.all_reduce(z)
    comm.barrier()
    received.wait()
    sent.wait()
    return y.unique().tolist(), z.tolist()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_messages_go_on_during_a_collective(transport):
    results = launch(through_a_collective, world_size=2, transport=transport)
    assert results == [([2.0], [2.0] * 4), ([1.0], [2.0] * 4)]


def polled(comm):
    if comm.rank == 0:
        work = comm.irecv(y := torch.zeros(100_000), 1)
        early = work.is_completed()
        comm.send(torch.ones(1), 1)
        while not work.is_completed():
            pass
        return early, y.sum().item()
    comm.recv(torch.zeros(1), 0)
    comm.send(torch.ones(100_000), 0)
    return None


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_message_can_be_asked_whether_it_has_come(transport):
    assert launch(polled, world_size=2, transport=transport)[0] == (False, 100_000.0)


def whoever_comes(comm, num_each):
    if comm.rank:
        for k in range(num_each):
            comm.send(torch.tensor([comm.rank, k]), 0)
        return None
    x, seen = torch.zeros(2, dtype=torch.int64), []
    for _ in range(num_each * (comm.world_size - 1)):
        src = comm.recv(x)
        seen.append((src, *x.tolist()))
    return seen


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_receiving_from_whoever_comes_names_the_source(transport):
    seen = launch(whoever_comes, 5, world_size=4, transport=transport)[0]
    assert all(src == said for src, said, _ in seen)
    for rank in (1, 2, 3):
        assert [k for src, _, k in seen if src == rank] == list(range(5))


def named_source(comm):
    x = torch.ones(2)
    if comm.rank == 0:
        comm.send(x, 1)
    return comm.recv(x, 0) if comm.rank else None


def test_receiving_returns_the_source():
    assert launch(named_source, world_size=2) == [None, 0]


def other_shape(comm):
    comm.isend(torch.ones(3), 1).wait() if comm.rank == 0 else comm.irecv(torch.ones(4), 0).wait()


def nobody_sends(comm):
    if comm.rank == 0:
        comm.recv(torch.ones(1))
    comm.barrier()


def never_sent(comm):
    if comm.rank == 0:
        comm.irecv(torch.ones(1), 1).wait()
    while comm.rank:
        pass


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_cannot_arrive_raises(transport):
    with pytest.raises(CollectiveMismatch) as caught:
        launch(other_shape, world_size=2, transport=transport, timeout_s=20)
    assert "send(float32, shape (3,)" in str(caught.value) and "recv(float32, shape (4,)" in str(caught.value)
    with pytest.raises((RankFailed, CollectiveMismatch), match=r"recv\(float32, shape \(1,\), src=None\)"):
        launch(nobody_sends, world_size=2, transport=transport, timeout_s=1)
    with pytest.raises(RankFailed, match="rank 1 did not answer within timeout_s=1 s"):
        launch(never_sent, world_size=2, transport=transport, timeout_s=1)


def call(comm, name, args):
    getattr(comm, name)(*args)


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("isend", (torch.ones(1), 2), "dst=2"),
        ("irecv", (torch.ones(1), "0"), "src='0'"),
        ("isend", (1.0, 0), "isend was given a float"),
        ("irecv", (torch.ones(1).expand(3), 0), "irecv was given an expanded tensor"),
    ],
)
def test_bad_arguments_are_named(name, args, says):
    with pytest.raises(RankFailed) as caught:
        launch(call, name, args, world_size=2)
    assert says in caught.value.reason
