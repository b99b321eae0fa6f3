"""Copies in a neighbour's memory: a lost rank comes back to the same bits, and what they do not cover is refused."""

import os
import signal
import sys

import cloudpickle
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401

from lessons_lib import RankFailed, RankLost, launch
from lessons_lib.checkpoint import PeerCopies
from lessons_lib.parallel import DataParallel, FullySharded, ShardedOptimizer

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


def data_parallel(comm):
    net = DataParallel(layer(comm), comm)
    return net, torch.optim.Adam(net.parameters(), lr=0.1)


def sharded_optimizer(comm):
    net = DataParallel(layer(comm), comm)
    return net, ShardedOptimizer(net.parameters(), torch.optim.Adam, comm, lr=0.1)


def fully_sharded(comm):
    net = FullySharded(layer(comm), comm)
    return net, torch.optim.Adam(net.parameters(), lr=0.1)


def layer(comm):
    torch.manual_seed(comm.ranks[comm.rank])
    return torch.nn.Linear(3, 2).double()


def train(comm, victims, at, until=6, make=data_parallel):
    """Weights and a random number at the end; the first victim dies in the step `at`, the next when it hears."""
    copies, first = PeerCopies(comm), comm.restart_count == 0
    while True:
        try:
            net, optimizer = make(comm)
            state = {"net": net, "optimizer": optimizer, "own": comm.ranks[comm.rank]}
            step = copies.load(state, comm) or 0
            assert state["own"] == comm.ranks[comm.rank]
            while step < until:
                optimizer.zero_grad()
                net(torch.randn(comm.rank + 2, 3, dtype=torch.float64)).square().mean().backward()
                if first and step == at and comm.ranks[comm.rank] == victims[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                optimizer.step()
                step += 1
                copies.save(step, state)
            whole = [value.tolist() for value in net.state_dict().values() if isinstance(value, torch.Tensor)]
            return whole, torch.rand(1).item()
        except RankLost:
            comm = comm.regroup()
            if first and comm.ranks[comm.rank] in victims[1:]:  # before the copy that it holds is fetched
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_lost_rank_comes_back_to_the_same_bits(victim, at):
    expected = launch(train, [None], at, world_size=3)
    results = launch(train, [victim], at, world_size=3, elastic=True, spares=1)
    assert results == expected
    assert [failure.rank for failure in results.failures] == [victim]


@pytest.mark.parametrize("make", [sharded_optimizer, fully_sharded])
def test_a_lost_rank_of_a_sharded_run_comes_back_to_the_same_bits(make):
    expected = launch(train, [None], 3, 6, make, world_size=3)
    assert launch(train, [1], 3, 6, make, world_size=3, elastic=True, spares=1) == expected


def test_where_all_ranks_are_replacements_nothing_begins_anew_in_silence():
    with pytest.raises(RankFailed, match="no copy of any rank is left: all ranks here are replacements"):
        launch(train, [0, 1], 3, world_size=2, elastic=True, spares=2)


def test_more_losses_than_the_copies_cover_are_refused_by_name():
    def refusal(comm):
        try:
            return train(comm, [1, 2], 3)
        except RuntimeError as error:
            return str(error)

    results = launch(refusal, world_size=4, elastic=True, spares=2)
    assert results == ["no copy of rank 1 at step 3 is left: its neighbour is lost too"] * 4


def test_ranks_that_save_other_steps_are_refused():
    def save(comm):
        with pytest.raises(ValueError, match="the same step and the same names are needed"):
            PeerCopies(comm).save(comm.rank, {"a": 1})
        return True

    assert launch(save, world_size=2) == [True, True]
