"""Who waits for whom: deadlocks are found, a rank that is only slow is not taken for one, and timelines show both."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lessons_lib import CollectiveMismatch, RankFailed, launch
from lessons_lib.comm import bell
from lessons_lib.comm.block import Block
from lessons_lib.comm.board import Board


def swap_both_sending_first(comm):
    comm.send(torch.zeros(3), dst=1 - comm.rank)
    comm.recv(torch.zeros(3), src=1 - comm.rank)


def test_a_deadlock_is_found_within_a_second_and_is_on_the_timeline():
    with pytest.raises(CollectiveMismatch, match=r"rank 0: send.*dst=1\); rank 1: send.*dst=0\)") as caught:
        launch(swap_both_sending_first, world_size=2, trace=True)
    waits = [(span.rank, span.peer, span.label) for span in caught.value.trace.spans if span.kind == "wait"]
    assert sorted(waits) == [(0, 1, "send to rank 1, in vain"), (1, 0, "send to rank 0, in vain")]
    assert all(span.end_s - span.start_s < 5 for span in caught.value.trace.spans)


def one_of_three_is_missing(comm):
    if comm.rank == 2:
        comm.recv(torch.zeros(1), src=1)
    else:
        comm.barrier()


def test_a_circle_through_a_collective_is_a_deadlock():
    with pytest.raises(CollectiveMismatch, match=r"barrier\(\).*rank 2: recv"):
        launch(one_of_three_is_missing, world_size=3)


def stopped_sender(comm):
    """Rank 1 takes a message of a stopped rank and ends: its sender has not seen yet that it is free to go on."""
    process, tensor = torch.tensor([os.getpid()]), torch.ones(3)
    if comm.rank == 0:
        comm.send(process, dst=1)
        comm.send(tensor, dst=1)
        return None
    comm.recv(process, src=0)
    time.sleep(0.1)  # until rank 0 waits for its second message to be taken
    os.kill(process.item(), signal.SIGSTOP)
    threading.Timer(0.6, os.kill, (process.item(), signal.SIGCONT)).start()
    comm.recv(tensor.zero_(), src=0)
    return tensor.tolist()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_a_rank_that_the_system_holds_up_is_no_deadlock():
    assert launch(stopped_sender, world_size=2)[1] == [1, 1, 1]


def one_message(comm):
    comm.send(torch.zeros(10), dst=1) if comm.rank == 0 else comm.recv(torch.zeros(10), src=0)


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_a_message_is_on_both_lanes_and_the_wait_on_the_one_that_came_first(transport):
    spans = launch(one_message, world_size=2, transport=transport, trace=True).trace.spans
    send, recv = (next(span for span in spans if span.kind == kind) for kind in ("send", "recv"))
    assert (send.rank, send.peer, recv.rank, recv.peer) == (0, 1, 1, 0)
    assert (send.start_s, send.end_s, send.size_bytes) == (recv.start_s, recv.end_s, recv.size_bytes)
    assert send.size_bytes == 40
    if transport == "shared_memory":
        waits = [span for span in spans if span.kind == "wait"]  # of whichever rank the system let come first
        assert [(span.end_s, span.peer) for span in waits] == [(send.start_s, 1 - waits[0].rank)]


def test_a_rank_that_comes_while_others_sleep_can_ring_too():
    if bell.FUTEX is None:
        pytest.skip("this system has no futex")
    block = Block(64)
    ints, early = memoryview(block.view).cast("q"), bell.Bell(block.view)

    def sleeper():
        while not ints[0]:
            early.sleep(0, seen=0, limit_s=1)

    with ThreadPoolExecutor(1) as other_rank:
        asleep = other_rank.submit(sleeper)
        late = [bell.Bell(block.view) for _ in range(200)]
        ints[0] = 1
        late[-1].ring(0)
        asleep.result()
    assert all(each.works for each in late)


@pytest.mark.parametrize("has_bell", [True, False])
def test_a_rank_that_sleeps_is_woken_by_what_it_waits_for(monkeypatch, has_bell):
    """With the system's own way to sleep on shared memory and, as on macOS and Windows, without."""
    if not has_bell:
        monkeypatch.setattr(bell, "FUTEX", None)
    elif bell.FUTEX is None:
        pytest.skip("this system has no futex")
    block = Block(Board.size_bytes(2, 0))
    first, second = (Board(rank, 2, block.name, 0, timeout_s=30) for rank in range(2))
    with ThreadPoolExecutor(1) as other_rank:
        for steps in range(1, 200):
            told = other_rank.submit(lambda steps=steps: (second.wait_steps(0, steps), second.publish(steps)))
            first.publish(steps)
            first.wait_steps(1, steps)
            told.result()
    with pytest.raises(RankFailed, match="rank 1 did not answer"):
        first.timeout_s = 0.2
        first.wait_steps(1, 200)
    block.end()
