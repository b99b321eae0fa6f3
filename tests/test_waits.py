"""The straggler report of a trace: who waited for whom, in what, and whose doing it was (lesson 20)."""

import sys
import time

import cloudpickle
import pytest
import torch

from lessons_lib import Mesh, launch
from lessons_lib.trace import Span, Trace
from lessons_lib.waits import Wait, Waits

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ("shared_memory", "torch")
LATE_S = 0.25  # a busy machine lets another rank wait for a tenth of a second


def test_times_are_added_up_by_peer_and_by_cause():
    waits = Waits([Wait(2, 1, 0.0, 3.0), Wait(1, 0, 1.0, 3.0), Wait(3, 1, 2.0, 3.5)])
    assert [wait.time_s for wait in waits] == [3.0, 2.0, 1.5]
    assert waits.by_peer() == {1: 4.5, 0: 2.0}
    assert waits.by_cause() == {
        0: 2.0,
        1: pytest.approx(1.0 + 0.5),
    }  # while rank 1 itself waited, it was rank 0's doing
    assert str(Waits([])) == "nobody waited"
    assert "rank 2, 3000.0 ms, a message" in str(waits)


def test_a_trace_counts_messages_and_meetings_from_its_start():
    trace = Trace([Span(0, "wait", 5.0, 6.0, 1), Span(0, "copy", 6.0, 7.0, 1)], late=[Wait(1, 2, 4.0, 6.5, "barrier")])
    waits = Trace.merged([trace]).waits()
    assert waits == [Wait(1, 2, 0.0, 2.5, "barrier"), Wait(0, 1, 1.0, 2.0)]


def late(comm, operation):
    comm.barrier()
    if comm.rank == 2:
        time.sleep(LATE_S)
    operation(comm)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("barrier", lambda comm: comm.barrier()),
        ("all_reduce", lambda comm: comm.all_reduce(torch.ones(8))),
        ("all_to_all", lambda comm: comm.all_to_all(torch.ones(4), torch.ones(4))),
        ("numbers", lambda comm: comm.tell("numbers", [1])),
    ],
)
def test_who_is_late_is_waited_for_by_all_others_in_that_call(transport, name, operation):
    waits = launch(late, operation, world_size=4, transport=transport, trace=True).trace.waits()
    assert next(iter(waits.by_cause())) == 2
    long = [wait for wait in waits if wait.time_s > LATE_S / 2]
    assert {wait.peer for wait in long} == {2} and {wait.rank for wait in long} <= {0, 1, 3}
    assert any(wait.call.startswith(name) for wait in long)


def test_a_group_is_named_and_its_ranks_as_in_the_launch():
    def fn(comm):
        mesh = Mesh(comm, dp=2, tp=2)
        comm.barrier()
        if comm.rank == 3:
            time.sleep(LATE_S)
        mesh["tp"].barrier()

    waits = launch(fn, world_size=4, trace=True).trace.waits()
    longest = next(wait for wait in waits if wait.group == "tp")
    assert (longest.rank, longest.peer, longest.call) == (2, 3, "barrier()")


def test_messages_count_too():
    def fn(comm):
        comm.barrier()
        if comm.rank == 0:
            time.sleep(LATE_S)
            comm.send(torch.ones(1), 1)
        else:
            comm.recv(torch.ones(1), 0)

    longest = launch(fn, world_size=2, trace=True).trace.waits()[0]
    assert (longest.rank, longest.peer) == (1, 0)
