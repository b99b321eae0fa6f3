"""Pipelines with two stages per rank beside torch's own schedules, in one launch: the same losses and gradients."""

import pytest
import torch
from torch.distributed import pipelining
from torch.nn.functional import cross_entropy

from lessons_lib import launch
from lessons_lib.models import mlp
from lessons_lib.parallel import PipelineParallel, split_layers
from lessons_lib.schedules import interleaved, zb_h1, zbv

NUM_STAGES, NUM_PARTS = 4, 4
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def make_stages(num_stages):
    torch.manual_seed(0)
    return split_layers(mlp([6, 8, 8, 8, 8, 8, 8, 8, 5]).double(), num_stages)


def gradients(modules):
    return [w.grad for module in modules for w in module.parameters()]


def step_of_torch(schedule, x, y, holds_first, holds_last):
    """The mean loss of torch's step, on the rank with the last stage; else None."""
    losses = []
    inputs = (x,) if holds_first else ()
    schedule.step(*inputs, target=y if holds_last else None, losses=losses)
    return torch.stack(losses).mean().detach() if holds_last else None


def compared(comm, kind, make):
    """Two steps of SGD by torch, by ours and by one process; raises where losses or gradients differ."""
    program = make(comm.world_size, NUM_PARTS)
    ours = PipelineParallel(make_stages(program.num_stages), comm, program)
    numbers = [comm.rank, 3 - comm.rank if kind == "ScheduleZBVZeroBubble" else comm.rank + 2]
    theirs = [make_stages(NUM_STAGES)[number] for number in numbers]
    stages = [
        pipelining.PipelineStage(module, number, NUM_STAGES, torch.device("cpu"))
        for number, module in zip(numbers, theirs, strict=True)
    ]
    schedule = getattr(pipelining, kind)(stages, NUM_PARTS, loss_fn=cross_entropy)
    alone = make_stages(1)[0]
    alone_for_ours = split_layers(alone, program.num_stages)
    alone_for_theirs = split_layers(alone, NUM_STAGES)
    everything = [*ours.parameters(), *alone.parameters(), *(w for module in theirs for w in module.parameters())]
    optimizer = torch.optim.SGD(everything, lr=0.1)
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        x = torch.randn(4 * NUM_PARTS, 6, dtype=torch.float64, generator=generator)
        y = torch.randint(5, (4 * NUM_PARTS,), generator=generator)
        optimizer.zero_grad()
        expected = cross_entropy(alone(x), y)
        expected.backward()
        torch.testing.assert_close(ours.step(x, y, cross_entropy), expected.detach(), **TIGHT)
        loss = step_of_torch(schedule, x, y, 0 in numbers, NUM_STAGES - 1 in numbers)
        if loss is not None:
            torch.testing.assert_close(loss, expected.detach(), **TIGHT)
        one_process = gradients(alone_for_ours[int(number)] for number in ours.stages)
        torch.testing.assert_close(gradients(ours.stages.values()), one_process, **TIGHT)
        one_process = gradients(alone_for_theirs[number] for number in numbers)
        torch.testing.assert_close(gradients(theirs), one_process, **TIGHT)
        optimizer.step()
    return numbers


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("ScheduleInterleaved1F1B", interleaved),
        ("ScheduleInterleavedZeroBubble", zb_h1),
        ("ScheduleZBVZeroBubble", zbv),
    ],
)
def test_two_steps_equal_one_process_and_torch(kind, make):
    held = launch(compared, kind, make, world_size=2, transport="torch")
    assert sorted(held[0] + held[1]) == list(range(NUM_STAGES))
