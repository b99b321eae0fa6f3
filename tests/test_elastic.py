"""Launches that survive a failure: all ranks start again, the others go on, or a replacement comes (lesson 21)."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import cloudpickle
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401

from lessons_lib import Links, Mesh, RankFailed, RankLost, launch

cloudpickle.register_pickle_by_value(sys.modules[__name__])
LONG_S = 600.0  # a wait that only a death can end: with a rank that nobody misses, the test would not end
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")

OPERATIONS = {
    "all_reduce": lambda comm: comm.all_reduce(torch.ones(5)),
    "all_reduce in a buffer": lambda comm: comm.all_reduce(comm.buffer(5)),
    "async all_reduce": lambda comm: comm.all_reduce(torch.ones(5), async_op=True).wait(),
    "broadcast": lambda comm: comm.broadcast(torch.ones(5)),
    "all_gather": lambda comm: comm.all_gather(torch.ones(comm.world_size), torch.ones(1)),
    "all_to_all": lambda comm: comm.all_to_all(torch.ones(comm.world_size), torch.ones(comm.world_size)),
    "barrier": lambda comm: comm.barrier(),
    "buffer": lambda comm: comm.buffer(3),
    "split": lambda comm: comm.split(0),
    "recv": lambda comm: comm.recv(torch.ones(1), 1),
    "recv of anybody": lambda comm: comm.recv(torch.ones(1)),
    "irecv": lambda comm: comm.irecv(torch.ones(1), 1).wait(),
    "send": lambda comm: comm.send(torch.ones(1), 1),
    "large isend": lambda comm: comm.isend(torch.ones(1 << 20), 1).wait(),
}


def total(comm, number=1.0):
    x = torch.full((3,), number)
    comm.all_reduce(x)
    return x[0].item()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def number(comm):
    """This rank's number in the launch."""
    return comm.ranks[comm.rank]


def go_on(comm, train):
    """What `train(comm)` gives with the ranks that live, and who was lost before."""
    lost = []
    while True:
        try:
            return train(comm), lost
        except RankLost as error:
            lost.append(error.rank)
            comm = comm.regroup()


# --- all start again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_all_ranks_start_again_until_none_fails(transport, capfd):
    def train(comm):
        if comm.restart_count < 2 and comm.rank == 1:
            raise ValueError(f"time {comm.restart_count}")
        return comm.restart_count, comm.split(0).restart_count, total(comm)

    results = launch(train, world_size=3, restarts=3, transport=transport)
    assert results == [(2, 2, 3.0)] * 3
    assert [(failure.rank, failure.reason) for failure in results.failures] == [
        (1, "rank 1 raised ValueError: time 0"),
        (1, "rank 1 raised ValueError: time 1"),
    ]
    assert "all ranks start again, time 2 of 3" in capfd.readouterr().err


@posix
def test_what_was_kept_on_disk_is_there_the_next_time():
    def train(comm, folder):
        path = Path(folder) / str(comm.rank)
        done = int(path.read_text()) if path.exists() else 0
        for step in range(done, 6):
            total(comm)
            path.write_text(str(step + 1))
            if step == 3 and comm.rank == 2 and comm.restart_count == 0:
                die()
        return done

    with tempfile.TemporaryDirectory() as folder:
        results = launch(train, folder, world_size=3, restarts=1)
    assert results[2] == 4 and results.failures[0].rank == 2


def test_more_failures_than_restarts_are_raised():
    def fail(comm):
        raise ValueError(f"time {comm.restart_count}")

    with pytest.raises(RankFailed, match="rank 0 raised ValueError: time 2"):
        launch(fail, world_size=2, restarts=2)


def test_a_run_without_a_failure_has_none():
    results = launch(lambda comm: comm.restart_count, world_size=2, restarts=1)
    assert results == [0, 0] and results.failures == []


def test_ranks_that_disagree_are_not_started_again(capfd):
    def disagree(comm):
        comm.barrier() if comm.rank else total(comm)

    with pytest.raises(RuntimeError, match="the ranks disagree"):
        launch(disagree, world_size=2, restarts=2)
    assert "start again" not in capfd.readouterr().err


def test_each_start_draws_the_same_random_numbers():
    def draw(comm, folder):
        path, drawn = Path(folder) / str(comm.rank), torch.rand(1).item()
        if comm.restart_count == 0:
            path.write_text(repr(drawn))
            comm.barrier()
            raise ValueError
        return drawn == float(path.read_text())

    with tempfile.TemporaryDirectory() as folder:
        assert launch(draw, folder, world_size=2, restarts=1) == [True, True]


# --- the others go on ------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("name", OPERATIONS)
def test_whoever_waits_for_a_dead_rank_hears_of_it(name):
    def train(comm):
        comm.barrier()
        if comm.rank == 1:
            die()
        with pytest.raises(RankLost, match="rank 1 was killed by SIGKILL") as lost:
            OPERATIONS[name](comm)
            total(comm)  # what does not wait for rank 1 may end
        comm = comm.regroup()
        return lost.value.rank, comm.rank, comm.world_size, comm.ranks, total(comm, comm.rank + 1.0)

    results = launch(train, world_size=3, elastic=True, timeout_s=LONG_S)
    assert results == [(1, 0, 2, [0, 2], 3.0), None, (1, 1, 2, [0, 2], 3.0)]
    assert [failure.rank for failure in results.failures] == [1] and results.ledgers[1] is None


@posix
def test_a_group_without_the_dead_rank_hears_of_it_too():
    def train(comm):
        mesh = Mesh(comm, dp=2, tp=2)
        comm.barrier()
        if comm.rank == 3:
            die()
        with pytest.raises(RankLost):
            while True:
                total(mesh["tp"])
        comm = comm.regroup()
        return total(comm)

    assert launch(train, world_size=4, elastic=True, timeout_s=LONG_S) == [3.0, 3.0, 3.0, None]


@posix
def test_one_death_after_the_other_down_to_one_rank():
    def train(comm):
        for step in range(12):
            total(comm)
            if number(comm) < 3 and step == 3 * number(comm):
                die()
        return total(comm)

    results = launch(lambda comm: go_on(comm, train), world_size=4, elastic=True, timeout_s=LONG_S)
    assert results == [None, None, None, (1.0, [0, 1, 2])]
    assert [failure.rank for failure in results.failures] == [0, 1, 2]


@posix
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_while_the_others_regroup(when):
    def train(comm):
        comm.barrier()
        if number(comm) == 0:
            die()
        try:
            total(comm)
        except RankLost:
            if number(comm) == 2 and when == "before":
                die()
            comm = comm.regroup()
            if number(comm) == 2:
                die()
            return go_on(comm, total)
        raise AssertionError("rank 0 was not missed")

    results = launch(train, world_size=5, elastic=True, timeout_s=LONG_S)
    assert [result and result[0] for result in results] == [None, 3.0, None, 3.0, 3.0]
    assert sorted(failure.rank for failure in results.failures) == [0, 2]


def test_a_rank_that_raises_is_lost_and_its_traceback_kept():
    def train(comm):
        if number(comm) == 1 and comm.world_size == 3:
            raise ValueError("its own fault")
        return total(comm)

    results = launch(lambda comm: go_on(comm, train), world_size=3, elastic=True, timeout_s=LONG_S)
    assert results == [(2.0, [1]), None, (2.0, [1])]
    (failure,) = results.failures
    assert "rank 1 raised ValueError: its own fault" in failure.reason and "in train" in failure.details


@posix
def test_a_rank_that_is_stopped_for_too_long_is_lost():
    def train(comm):
        total(comm)
        if comm.rank == 1 and comm.world_size == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return total(comm)

    def patient(comm):
        try:
            return train(comm)
        except RankLost as error:
            return error.reason, total(comm.regroup())

    results = launch(patient, world_size=3, elastic=True, timeout_s=10.0)
    assert [failure.rank for failure in results.failures] == [1] and results[1] is None
    for reason, value in (results[0], results[2]):
        assert "rank 1 did not answer within timeout_s=5 s: it is stopped" in reason and value == 2.0


def test_a_rank_that_returns_while_the_others_regroup_is_not_waited_for():
    def train(comm):
        comm.barrier()
        if comm.rank == 0:
            return "done"
        if comm.rank == 1:
            raise ValueError
        with pytest.raises(RankLost):
            comm.recv(torch.ones(1), 1)
        return go_on(comm.regroup(), total)[0]

    results = launch(train, world_size=4, elastic=True, timeout_s=LONG_S)
    assert results[0] == "done" and results[1] is None and results[2:] == [2.0, 2.0]


def test_all_that_fail_are_raised():
    def fail(comm):
        raise ValueError(f"rank {comm.rank} of all")

    with pytest.raises(RankFailed, match="raised ValueError"):
        launch(fail, world_size=3, elastic=True)


def test_those_that_do_not_catch_it_fail_with_it():
    def train(comm):
        if comm.rank == 2:
            raise ValueError("the first")
        return total(comm)

    with pytest.raises(RankFailed, match="the first"):
        launch(train, world_size=3, elastic=True, timeout_s=LONG_S)


def test_an_elastic_run_that_ends_may_start_again():
    def train(comm):
        if comm.restart_count == 0:
            raise ValueError
        return total(comm)

    results = launch(train, world_size=2, elastic=True, restarts=1)
    assert results == [2.0, 2.0] and len(results.failures) == 3  # both ranks, and the launch of them


@posix
def test_bytes_trace_and_links_go_on_under_the_numbers_of_the_launch():
    def train(comm):
        total(comm)
        if number(comm) == 0 and comm.world_size == 3:
            die()
        return total(comm)

    links = Links(latency_s=1e-3)
    results = launch(lambda comm: go_on(comm, train)[0], world_size=3, elastic=True, trace=True, links=links)
    assert results == [None, 2.0, 2.0]
    after = [span for span in results.trace.spans if span.start_s > results.trace.spans[-1].start_s - 1e-3]
    assert {span.rank for span in after} <= {1, 2} and results.trace.source == "emulated links"
    assert results.ledgers[1].calls["all_reduce"] >= 4


# --- replacements ----------------------------------------------------------------------------------------------------


@posix
def test_a_replacement_takes_the_place_of_the_dead_rank():
    def train(comm):
        if comm.restart_count == 0 and comm.rank == 1:
            die()
        return comm.rank, comm.ranks, total(comm)

    results = launch(lambda comm: go_on(comm, train), world_size=3, elastic=True, spares=1, timeout_s=LONG_S)
    assert [result[0] for result in results] == [(rank, [0, 1, 2], 3.0) for rank in range(3)]
    assert [result[1] for result in results] == [[1], [], [1]]


def dies_twice(comm):
    """Rank 1, and its first replacement, die."""
    total(comm)
    if number(comm) == 1 and comm.restart_count < 2:
        die()
    return comm.restart_count, total(comm)


@posix
def test_when_no_spare_is_left_the_others_go_on():
    results = launch(go_on, dies_twice, world_size=3, elastic=True, spares=1, timeout_s=LONG_S)
    assert results[1] is None and [failure.rank for failure in results.failures] == [1, 1]
    assert results[0][0] == results[2][0] == (0, 2.0)


@posix
def test_a_replacement_that_dies_is_replaced():
    results = launch(go_on, dies_twice, world_size=3, elastic=True, spares=2, timeout_s=LONG_S)
    assert [result[0] for result in results] == [(0, 3.0), (2, 3.0), (0, 3.0)]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"restarts": -1}, "restarts=-1: a whole number of at least 0"),
        ({"restarts": 1.0}, "restarts=1.0: a whole number"),
        ({"spares": True, "elastic": True}, "spares=True: a whole number"),
        ({"spares": 1}, "spares=1 without elastic=True"),
        ({"elastic": True, "transport": "torch"}, "elastic=True with transport='torch'"),
        ({"elastic": 1}, "elastic=1: True or False"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        launch(total, world_size=2, **options)


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_regroup_of_a_launch_whose_ranks_may_not_die_is_refused(transport):
    with pytest.raises(RankFailed, match="needs launch"):
        launch(lambda comm: comm.regroup(), world_size=2, transport=transport)


def test_regroup_before_a_death_and_of_a_group_is_refused():
    def early(comm):
        said = []
        for each in (comm, comm.split(0)):
            with pytest.raises(RuntimeError) as error:
                each.regroup()
            said.append(str(error.value))
        return said

    for said in launch(early, world_size=2, elastic=True):
        assert "no rank has died" in said[0] and "the launch's own communicator is needed" in said[1]
