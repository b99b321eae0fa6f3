"""Operations used wrongly or oddly: an error that says so, or the right result; never a wrong one, never a hang."""

import sys
import threading
from functools import partial

import cloudpickle
import pytest
import torch

from lessons_lib import CollectiveMismatch, RankFailed, launch
from lessons_lib.comm.factory import meet
from lessons_lib.schedules import Message, Schedule, ring

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ("shared_memory", "torch")
WAYS = [{"transport": "shared_memory"}, {"transport": "torch"}, {"transport": "torch", "algorithm": "torch"}]


def reduce_all(comm, make, **kwargs):
    x = make(comm)
    comm.all_reduce(x, **kwargs)
    return x


def call(comm, name, args, kwargs):
    getattr(comm, name)(*args, **kwargs)


# --- ranks that disagree ----------------------------------------------------------------------------------------------

DOWN = [[Message(2, 1, 0, "add")], [Message(1, 0, 0, "add")], [Message(0, 1, 0, "copy"), Message(0, 2, 0, "copy")]]
UP = [[Message(0, 1, 0, "add")], [Message(1, 2, 0, "add")], [Message(2, 1, 0, "copy"), Message(2, 0, 0, "copy")]]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_schedules_of_the_same_name_are_told_apart(transport):
    def fn(comm):
        comm.run(Schedule(3, 1, DOWN if comm.rank else UP), torch.ones(3))

    with pytest.raises(CollectiveMismatch, match=r"own schedule .*own schedule "):
        launch(fn, world_size=3, transport=transport)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda comm: torch.ones(3 + comm.rank), ["shape (3,)", "shape (4,)"]),
        (lambda comm: torch.ones((2, 3) if comm.rank else (3, 2)), ["shape (3, 2)", "shape (2, 3)"]),
        (lambda comm: torch.ones(3, dtype=torch.int32 if comm.rank else torch.float32), ["float32", "int32"]),
        (lambda comm: torch.ones([1] * 60 + [1 + comm.rank]), ["shape (1, 1, 1"]),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_reduced_has_to_be_of_one_kind(way, make, says):
    with pytest.raises(CollectiveMismatch) as caught:
        launch(reduce_all, make, world_size=2, timeout_s=20, **way)
    assert set(caught.value.calls) == {0, 1}
    assert all(text in str(caught.value) for text in says)


def test_a_whole_collective_of_torch_has_a_time_limit_and_is_compared():
    def fn(comm):
        if comm.rank:
            comm.broadcast(torch.ones(3))
        else:
            comm.all_reduce(torch.ones(3))

    with pytest.raises(CollectiveMismatch, match=r"rank 0: all_reduce.*rank 1: broadcast"):
        launch(fn, world_size=2, transport="torch", algorithm="torch", timeout_s=20)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_mismatch_of_asynchronous_operations_is_raised_by_wait(transport):
    def fn(comm):
        work = comm.all_reduce(torch.ones(3 + comm.rank), async_op=True)
        with pytest.raises(CollectiveMismatch):
            work.wait()
        raise ValueError("seen in wait()")

    with pytest.raises(RankFailed, match=r"seen in wait\(\)"):
        launch(fn, world_size=2, transport=transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_mismatch_that_nobody_waits_for_is_raised_all_the_same(transport):
    with pytest.raises(CollectiveMismatch):
        launch(reduce_all, lambda comm: torch.ones(3 + comm.rank), async_op=True, world_size=2, transport=transport)


def disagree_and_go_on(comm, collective):
    """Rank 0 comes with another shape; every rank catches what that raises, and tries something else."""
    with pytest.raises(CollectiveMismatch):
        collective(comm, torch.ones(4 if comm.rank == 0 else 5))
    comm.barrier()
    x = torch.ones(3)
    comm.all_reduce(x)
    return x.tolist()


COLLECTIVES = {
    "all_reduce": lambda comm, tensor: comm.all_reduce(tensor),
    "broadcast": lambda comm, tensor: comm.broadcast(tensor),
    "recv": lambda comm, tensor: comm.recv(tensor, 0) if comm.rank else comm.send(tensor, 1),
}


@pytest.mark.parametrize("collective", ["all_reduce", "broadcast"])
def test_who_catches_a_mismatch_over_shared_memory_can_go_on(collective):
    results = launch(disagree_and_go_on, COLLECTIVES[collective], world_size=2)
    assert results == [[2.0] * 3] * 2


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("algorithm", ["auto", "ring", "torch"])
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_nothing_follows_a_mismatch_over_torch_and_all_hear_of_it(collective, algorithm, world_size):
    """What has left cannot be called back, and would be taken for a part of the next call."""
    options = {"transport": "torch", "algorithm": algorithm, "timeout_s": 60}
    with pytest.raises(CollectiveMismatch, match="the ranks disagree: rank 0"):
        launch(disagree_and_go_on, COLLECTIVES[collective], world_size=world_size, **options)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_last_of_a_chain_of_waits_is_to_blame(transport):
    def fn(comm):
        if comm.rank < 2:
            comm.recv(torch.ones(1), comm.rank + 1)
        else:
            threading.Event().wait()

    with pytest.raises(RankFailed, match=r"rank 2 did not answer.*rank 1 did not answer") as caught:
        launch(fn, world_size=3, transport=transport, timeout_s=1)
    assert caught.value.rank == 2


# --- odd, and right ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n" * 600, "two\nlines", "ä" * 200, "\ud800"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_schedule_may_have_any_name(transport, name):
    def fn(comm):
        x = comm.buffer(5)
        x.fill_(comm.rank + 1)
        comm.all_reduce(x)
        return x.tolist()

    schedule = Schedule(2, 2, ring(2).rounds, name=name)
    assert launch(fn, world_size=2, transport=transport, algorithm=schedule) == [[3.0] * 5] * 2


@pytest.mark.parametrize("way", WAYS)
def test_views_that_only_say_conjugate_or_negative_are_what_they_say(way):
    def fn(comm):
        x = torch.full((3,), 1j, dtype=torch.complex64)
        message = x.clone().conj() if comm.rank == 0 else torch.zeros(3, dtype=torch.complex64).conj()
        if comm.rank == 0:
            comm.send(message, 1)
        else:
            comm.recv(message, 0)
        negative = torch.full((1,), 1j, dtype=torch.complex64).conj().imag
        if comm.algorithm != "torch":  # gloo adds up no complex numbers
            x = x.conj() if comm.rank else x
            comm.all_reduce(x)
        comm.all_reduce(negative)
        return x[0].item(), message[0].item(), negative.item()

    total = 1j if "algorithm" in way else 0
    assert launch(fn, world_size=2, **way) == [(total, -1j, -2.0)] * 2


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_mean_is_a_mean_for_own_schedules_too(transport):
    def fn(comm):
        x, part = torch.full((4,), comm.rank + 1.0), torch.zeros(2)
        comm.reduce_scatter(part, x, op="mean")
        comm.run(ring(2), x, op="mean")
        return x.tolist(), part.tolist()

    assert launch(fn, world_size=2, transport=transport) == [([1.5] * 4, [1.5] * 2)] * 2


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_numbers_of_numpy_are_numbers(transport):
    import numpy as np

    def fn(comm):
        x = torch.ones(3) * comm.rank
        comm.broadcast(x, src=np.int64(1))
        return comm.buffer(np.int64(4)).numel(), x.tolist()

    assert launch(fn, world_size=np.int64(2), transport=transport) == [(4, [1.0] * 3)] * 2


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "says"),
    [
        ("all_reduce", (torch.eye(3).to_sparse(),), {}, "all_reduce was given a torch.sparse_coo tensor"),
        ("all_reduce", (torch.ones(2),), {"op": ["sum"]}, "op=['sum']"),
        ("all_reduce", ([1.0],), {"async_op": True}, "all_reduce was given a list"),
        ("reduce_scatter", (torch.ones(2), torch.ones(4)), {"op": "median"}, "op='median'"),
        ("reduce_scatter", ([1.0], torch.ones(4)), {}, "reduce_scatter: output was given a list"),
        ("reduce_scatter", (torch.ones(2).int(), torch.ones(4)), {}, "output is torch.int32"),
        (
            "reduce_scatter",
            (torch.ones(2).int(), torch.ones(4).int()),
            {"op": "mean"},
            "op='mean' of dtype torch.int32",
        ),
        ("all_gather", (torch.ones(4), [1.0]), {}, "all_gather: input was given a list"),
        ("all_gather", (torch.ones(4), torch.ones(2).double()), {}, "input is torch.float64"),
        ("run", (ring(2), torch.ones(4)), {"op": "median"}, "op='median'"),
        ("broadcast", (torch.ones(3),), {"src": 1.0}, "src=1.0"),
        ("buffer", (True,), {}, "numel=True"),
        ("buffer", (3, "float32"), {}, "dtype='float32'"),
        ("buffer", (3, int), {}, "a torch.dtype is needed"),
    ],
)
def test_bad_arguments_are_named(name, args, kwargs, says):
    for transport in TRANSPORTS:
        with pytest.raises(RankFailed) as caught:
            launch(call, name, args, kwargs, world_size=2, transport=transport)
        assert says in caught.value.reason


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nothing_follows_the_end(transport):
    def fn(comm):
        comm.close()
        comm.close()
        with pytest.raises(RuntimeError, match="the communicator is closed"):
            comm.barrier()

    assert launch(fn, world_size=2, transport=transport) == [None, None]


def test_ranks_that_do_not_come_to_the_meeting_are_no_error_of_this_rank(tmp_path):
    """It may lose its connection because another rank fails, whose own error says more."""
    with pytest.raises(RankFailed, match="a rank did not come, or ended, while rank 0 was connecting") as caught:
        meet("torch", 0, 2, str(tmp_path / "store"), start_timeout_s=0.3, timeout_s=0.3)
    assert caught.value.rank is None


def test_two_threads_at_once_are_refused():
    def fn(comm):
        if comm.rank == 0:
            comm.recv(torch.zeros(1), 1)
            return
        inside = threading.Event()
        comm.transport.send = partial(wait_inside, inside, comm.transport.send)
        thread = threading.Thread(target=comm.send, args=(torch.zeros(1), 0))
        thread.start()
        inside.wait()
        with pytest.raises(RuntimeError, match="busy in another thread"):
            comm.barrier()
        inside.clear()
        thread.join()

    def wait_inside(inside, send, *args):
        inside.set()
        while inside.is_set():
            pass
        send(*args)

    assert launch(fn, world_size=2) == [None, None]
