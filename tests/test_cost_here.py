"""The cost model beside this machine: bytes are asserted, times only printed by the bench."""

from dataclasses import replace

import pytest

from lessons_lib import launch
from lessons_lib.bench.cost import MODEL, trainer
from lessons_lib.cost import Plan, measure_here, memory_of, predict
from lessons_lib.memory import Meter

SMALL = replace(MODEL, width=128, hidden=None, kv_heads=None, vocabulary=64)


def peak_bytes(comm, plan):
    """What stays on this rank between steps, counted, and by how much a step exceeds it, metered.

    What ranks share to send messages is not counted: a `Meter` sees it whole wherever a gradient lies in it.
    """
    with Meter() as meter:
        step, net, optimizer = trainer(comm, plan, SMALL)
        step()
        optimizer.zero_grad()
        before = meter.peak = meter.now
        step()
    optimizer.zero_grad()
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return meter.peak - before + sum(tensor.nbytes for tensor in [*net.parameters(), *states, *gradients])


@pytest.mark.parametrize(
    "plan",
    [
        Plan(4, 4),
        Plan(16, 16),
        Plan(8, 4, dp=2),
        Plan(32, 16, dp=2),
        Plan(8, 8, tp=2),
        Plan(8, 8, tp=2, sequence=True),
        Plan(8, 8, tp=4),
        Plan(16, 4, pp=2),
    ],
    ids=str,
)
def test_the_peak_of_a_step_of_our_own_strategies(plan):
    peak = launch(peak_bytes, plan, world_size=plan.num_devices)[0]
    assert sum(memory_of(SMALL, plan).values()) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("world_size", [1, 2])
def test_this_machine_is_measured_by_its_ranks_and_all_know_the_same(world_size):
    clusters = launch(measure_here, 3, world_size=world_size)
    cluster = clusters[0]
    assert all(each == cluster for each in clusters) and cluster.num_devices == world_size
    assert cluster.flops > 1e8 and cluster.memory_Bps > 1e7 and cluster.half_flops >= 0
    assert (cluster.links.bandwidth_Bps < float("inf")) == (world_size > 1)
    ran = predict(SMALL, cluster, Plan(4, dp=world_size))
    assert ran.time_s == pytest.approx(sum(ran.parts_s.values())) and (ran.sent_bytes["dp"] > 0) == (world_size > 1)
