"""Ranks of unequal speed: shares by speed, gradients that do not depend on them, and who is slow (lesson 20)."""

import sys
import time
from itertools import product

import cloudpickle
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401
from torch import nn

from lessons_lib import RankFailed, launch
from lessons_lib.parallel import Balancer, DataParallel
from lessons_lib.parallel.balance.shares import slowest_s, split_by_speed

cloudpickle.register_pickle_by_value(sys.modules[__name__])
BATCH = 24


def make_data(num_batches):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_batches, BATCH, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(num_batches, BATCH, 1, generator=generator, dtype=torch.float64)


def model(rank=0):
    torch.manual_seed(rank)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()


def emulated(samples, slowness):
    """What a device does that takes so many milliseconds per sample: nothing but take its time."""
    time.sleep(1e-3 * slowness * samples)


def train(comm, slowness, num_steps, overlap=True, **options):
    """Losses of steps, shares, and who was slow. slowness: step -> milliseconds per sample of each rank."""
    net = DataParallel(model(comm.rank), comm, overlap=overlap)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    balancer, seen = Balancer(comm, BATCH, **options), []
    for step, (x, y) in enumerate(zip(*make_data(num_steps), strict=True)):
        optimizer.zero_grad()
        with balancer.work():
            own_x, own_y = balancer.own(x), balancer.own(y)
            emulated(len(own_x), slowness(step)[comm.rank])
            ((net(own_x) - own_y) ** 2).mean().backward()
        optimizer.step()
        weights = torch.cat([p.detach().flatten() for p in net.parameters()])
        seen.append((weights, list(balancer.shares), balancer.slow()))
    return seen, balancer.changes, balancer.speeds


def one_process(num_steps):
    net, seen = model(), []
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for x, y in zip(*make_data(num_steps), strict=True):
        optimizer.zero_grad()
        ((net(x) - y) ** 2).mean().backward()
        optimizer.step()
        seen.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    return seen


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
@pytest.mark.parametrize("overlap", [True, False])
def test_every_step_equals_one_process_whatever_the_shares(transport, overlap):
    slowness = [1.0, 4.0, 2.0]
    ranks = launch(train, lambda step: slowness, 6, overlap, world_size=3, transport=transport)
    for seen, changes, _ in ranks:
        assert len(changes) >= 1, "the shares have changed, or this shows nothing"
        for (weights, _, _), reference in zip(seen, one_process(6), strict=True):
            torch.testing.assert_close(weights, reference, rtol=1e-10, atol=1e-12)
    assert len({str([step[1:] for step in seen]) for seen, _, _ in ranks}) == 1, "all ranks know the same"


def test_a_rank_that_becomes_slow_is_named_and_gets_less_and_more_again_when_it_is_well():
    def slowness(step):
        return [1.0, 1.0, 8.0 if 3 <= step < 9 else 1.0]

    (seen, _, speeds), *_ = launch(train, slowness, 18, world_size=3, smoothing=0.7)
    shares = [step[1] for step in seen]
    slow = [step[2] for step in seen]
    assert slow[3].get(2) == "once" and slow[5].get(2) == "chronic", "named in the first of its slow steps"
    assert shares[8][2] <= BATCH // 6 and sum(shares[8]) == BATCH
    assert shares[-1][2] > shares[8][2] and max(speeds) > 0


def test_small_differences_change_nothing():
    (_, changes, _), *_ = launch(train, lambda step: [2.0, 2.1], 6, world_size=2, gain=0.5)
    assert changes == []


def test_waiting_for_others_is_not_work():
    def timed(comm):
        balancer = Balancer(comm, 4)
        with balancer.work():
            emulated(4, 50.0 if comm.rank == 0 else 1.0)
            comm.barrier()
            comm.all_reduce(torch.ones(3), async_op=True).wait()
        return balancer.speeds

    for speeds in launch(timed, world_size=2):
        assert speeds[1] > 3 * speeds[0]


@pytest.mark.parametrize(("num_pieces", "speeds"), list(product([3, 4, 7, 12], [[1, 1, 1], [1, 2, 5], [10, 0.1, 3]])))
def test_no_other_shares_are_done_earlier(num_pieces, speeds):
    best = min(
        slowest_s(shares, speeds) for shares in product(range(1, num_pieces + 1), repeat=3) if sum(shares) == num_pieces
    )
    shares = split_by_speed(num_pieces, speeds)
    assert sum(shares) == num_pieces and min(shares) >= 1
    assert slowest_s(shares, speeds) == pytest.approx(best)


def test_a_state_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="num_pieces=2: at least one for each of 3 workers"):
        split_by_speed(2, [1, 1, 1])
    with pytest.raises(ValueError, match=r"speeds\[1\]=0: a number above 0"):
        split_by_speed(5, [1, 0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 1}, "batch_size=1: at least one sample for each of 2 ranks"),
        ({"batch_size": 2.5}, "batch_size=2.5: a whole number"),
        ({"batch_size": 8, "smoothing": 0}, "smoothing=0: more than 0"),
        ({"batch_size": 8, "gain": -1}, "gain=-1: a number of at least 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, said):
    with pytest.raises(RankFailed, match=said):
        launch(lambda comm: Balancer(comm, **arguments), world_size=2)


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(RankFailed, match="batch of 7 rows: 8 are needed"):
        launch(lambda comm: Balancer(comm, 8).own(torch.ones(7)), world_size=2)


def test_a_rank_that_ends_no_step_is_named():
    def forget(comm):
        balancer = Balancer(comm, 8)
        if comm.rank == 0:
            with balancer.work():
                pass

    with pytest.raises(RuntimeError, match="step 0 of a Balancer"):
        launch(forget, world_size=2)
