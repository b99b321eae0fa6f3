"""Pipelines on real ranks: equal to one process at every step, whatever the program."""

import pytest
import torch
from torch import nn

from lessons_lib import RankFailed, launch
from lessons_lib.models import GPT
from lessons_lib.parallel import PipelineParallel, split_layers
from lessons_lib.schedules import count, gpipe, interleaved, one_f_one_b, pipeline, zb_h1, zbv

MAKERS = {"gpipe": gpipe, "one_f_one_b": one_f_one_b, "interleaved": interleaved, "zb_h1": zb_h1, "zbv": zbv}
OPTIMISERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def gpt(seed, **options):
    torch.manual_seed(seed)
    return GPT(31, 16, num_layers=6, num_heads=2, context=8, **options).double()


def loss_of(logits, targets):
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batches(num_rows, num_steps):
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(31, (2, num_rows, 8), generator=generator) for _ in range(num_steps)]


def trained(comm, name, optimiser, tied, passes=1):
    """The largest relative difference to one process over six steps, each of `passes` batches."""
    stages_per_rank, num_parts = 2 if name in ("interleaved", "zbv") else 1, 5
    num_stages = comm.world_size * stages_per_rank
    reference, model = gpt(0, tied=tied), gpt(comm.rank, tied=tied)
    net = PipelineParallel(split_layers(model.stages(), num_stages), comm, MAKERS[name](comm.world_size, num_parts))
    theirs = split_layers(reference.stages(), num_stages)
    ours, alone = OPTIMISERS[optimiser](net.parameters()), OPTIMISERS[optimiser](reference.parameters())
    for number, (x, y) in enumerate(batches(2 * num_parts, 6 * passes)):
        loss = loss_of(reference(x), y)
        loss.backward()
        torch.testing.assert_close(net.step(x, y, loss_of), loss.detach(), **TIGHT)
        if (number + 1) % passes == 0:
            for stage, module in net.stages.items():
                for mine, other in zip(module.parameters(), theirs[int(stage)].parameters(), strict=True):
                    torch.testing.assert_close(mine.grad, other.grad, **TIGHT)
            for optimizer in (ours, alone):
                optimizer.step()
                optimizer.zero_grad()
            torch.testing.assert_close(net(x), reference(x).detach(), **TIGHT)  # evaluation in between
    return len(list(net.parameters()))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_step_equals_one_process(name, world_size):
    optimiser = ["adam", "sgd"][world_size % 2]
    if 2 * world_size > 8:
        pytest.skip("more stages than layers")
    launch(trained, name, optimiser, tied=world_size != 3, world_size=world_size)


@pytest.mark.parametrize("name", ["one_f_one_b", "zbv"])
def test_every_step_equals_one_process_over_torch_and_with_accumulation(name):
    launch(trained, name, "adam", tied=True, passes=2, world_size=2, transport="torch")


def moved(comm, name, num_parts):
    """Bytes that the second step sends, when all shapes are known."""
    program = MAKERS[name](comm.world_size, num_parts)
    net = PipelineParallel(split_layers(gpt(0, tied=False).stages(), program.num_stages), comm, program)
    sent = []
    for x, y in batches(2 * num_parts, 2):
        before = comm.ledger.bytes_sent
        net.step(x, y, loss_of)
        sent.append(comm.ledger.bytes_sent - before)
    return sent[1]


@pytest.mark.parametrize("name", MAKERS)
def test_bytes_are_what_the_program_says(name):
    world_size, num_parts = 3, 4
    sent = launch(moved, name, num_parts, world_size=world_size)
    counts = count(MAKERS[name](world_size, num_parts), block_bytes=2 * 8 * 16 * 8)
    of_the_loss = 8 * (world_size - 1)
    assert sum(sent) == sum(counts.bytes_sent) + of_the_loss
    assert all(0 <= mine - counted <= of_the_loss for mine, counted in zip(sent, counts.bytes_sent, strict=True))


def kept_at_most(comm, name):
    """The most outputs with a graph that live at once on this rank."""
    program, alive, most = MAKERS[name](comm.world_size, 6), [0], [0]
    stages = split_layers(gpt(0).stages(), program.num_stages)

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            alive[0] -= 1
            return gradient

    for stage in stages:
        stage.register_forward_hook(lambda module, args, output: Counted.apply(output))
    net = PipelineParallel(stages, comm, program)
    net.step(*batches(6, 1)[0], loss_of)
    return most[0]


@pytest.mark.parametrize("name", ["gpipe", "one_f_one_b"])
def test_no_more_is_kept_than_the_program_says(name):
    assert launch(kept_at_most, name, world_size=3) == count(MAKERS[name](3, 6)).most_kept


def refused(comm):
    layers = gpt(0).stages()
    stages = split_layers(layers, comm.world_size)
    x, y = batches(8, 1)[0]
    with pytest.raises(ValueError, match=r"num_stages=9: at most 8 are possible"):
        split_layers(layers, 9)
    with pytest.raises(TypeError, match="schedule is a str: a Pipeline is needed"):
        PipelineParallel(stages, comm, "1F1B")
    with pytest.raises(ValueError, match="schedule is for 3 ranks: one for 2 is needed"):
        PipelineParallel(stages, comm, gpipe(3, 4))
    with pytest.raises(ValueError, match="schedule has 4 stages: 2 are needed"):
        PipelineParallel(stages, comm, zbv(2, 4))
    wrong = pipeline([[("forward", 0, 0), ("backward", 0, 0)], [("backward", 1, 0), ("forward", 1, 0)]])
    with pytest.raises(ValueError, match="rank 1, step 0, block 1 0: backward comes before forward"):
        PipelineParallel(stages, comm, wrong)
    net = PipelineParallel(stages, comm, one_f_one_b(2, 3))
    with pytest.raises(ValueError, match="x has 8 rows: a multiple of the 3 micro-batches is needed"):
        net.step(x, y, loss_of)
    torch.testing.assert_close(net.step(x[:6], y[:6], loss_of), loss_of(gpt(0)(x[:6]), y[:6]).detach(), **TIGHT)


def test_bad_input_is_refused_on_every_rank_and_training_can_go_on():
    launch(refused, world_size=2)


def fails(comm):
    net = PipelineParallel(split_layers(gpt(0).stages(), 2), comm, gpipe(2, 4))

    def broken(output, target):
        raise RuntimeError("no loss today")

    net.step(*batches(8, 1)[0], broken)


def test_a_loss_that_raises_names_its_rank():
    with pytest.raises(RankFailed, match="no loss today") as failure:
        launch(fails, world_size=2)
    assert failure.value.rank == 1


def own_order(comm):
    """A program that no book has: backward as soon as it can be, three micro-batches, unequal stages, one frozen."""
    first = ["forward 0", "forward 1", "input 0", "forward 2", "input 1", "weight 0", "input 2", "weight 2", "weight 1"]
    orders = [
        [(op, 0, int(part)) for op, part in map(str.split, first)],
        [(op, 1, part) for part in range(3) for op in ("forward", "backward")],
    ]
    reference, model = gpt(0), gpt(comm.rank)
    for each in (reference, model):
        each.blocks[1].requires_grad_(False)
    cut = [nn.Sequential(*model.stages()[:3]), nn.Sequential(*model.stages()[3:])]
    net = PipelineParallel(cut, comm, pipeline(orders))
    x, y = batches(3, 1)[0]
    loss_of(reference(x), y).backward()
    net.step(x, y, loss_of)
    theirs = reference.stages()[:3] if comm.rank == 0 else reference.stages()[3:]
    for mine, other in zip(net.parameters(), nn.Sequential(*theirs).parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, **TIGHT)


def test_an_own_program_with_a_frozen_block_equals_one_process():
    launch(own_order, world_size=2)
