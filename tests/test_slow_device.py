"""Emulated devices: steps take what they are told to, compute the same, and say so."""

import pytest
import torch
from torch import nn

from lessons_lib import Links, RankFailed, launch
from lessons_lib.parallel import PipelineParallel, emulate_device
from lessons_lib.schedules import zb_h1

COSTS_S = {"forward": 2e-3, "input": 1e-3, "weight": 3e-3}


def trained(comm, costs_s):
    if costs_s is not None:
        emulate_device(comm, costs_s)
    net = PipelineParallel([nn.Linear(4, 4).double() for _ in range(2)], comm, zb_h1(2, 3))
    x = torch.arange(24, dtype=torch.float64).view(6, 4)
    loss = net.step(x, x, nn.functional.mse_loss)
    return loss, [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize(
    ("links", "source"), [(None, "emulated devices"), (Links(latency_s=1e-3), "emulated links and devices")]
)
def test_each_step_lasts_at_least_as_long_as_asked_and_computes_the_same(links, source):
    torch.manual_seed(0)
    plain = launch(trained, None, world_size=2)
    torch.manual_seed(0)
    paced = launch(trained, COSTS_S, world_size=2, links=links, trace=True)
    torch.testing.assert_close(list(paced), list(plain), rtol=0, atol=0)
    spans = [span for span in paced.trace.spans if span.kind == "compute"]
    assert len(spans) == 2 * 3 * 3 and paced.trace.source == source
    assert all(span.end_s - span.start_s >= COSTS_S[span.label.split()[0]] for span in spans)


def test_untraced_and_unnamed_steps_are_left_alone_and_a_negative_cost_is_refused():
    launch(trained, {"load": 1.0}, world_size=2)
    with pytest.raises(RankFailed, match=r"cost_s\['forward'\]=-1: 0 or more seconds are needed"):
        launch(trained, {"forward": -1}, world_size=2)


def on_a_group(comm):
    group = comm.split(comm.rank % 2, name="pp")
    for _ in range(2):
        emulate_device(group, {"forward": 4e-3})
    with group.compute("forward 0.0"):
        pass


def test_a_device_emulated_for_a_group_and_twice_is_one_and_figures_say_so():
    trace = launch(on_a_group, world_size=4, links=Links(latency_s=1e-3), trace=True).trace
    spans = [span for span in trace.spans if span.label == "forward 0.0"]
    assert sorted(span.rank for span in spans) == [0, 1, 2, 3]
    assert all(span.end_s - span.start_s >= 4e-3 for span in spans)
    assert trace.source == "emulated links and devices"
