"""Pipelines on eight ranks, on one axis of a mesh, under torchrun, and their states on another number of ranks."""

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from lessons_lib import Mesh, launch
from lessons_lib.models import GPT
from lessons_lib.parallel import (
    DataParallel,
    PipelineParallel,
    ShardedOptimizer,
    average_gradients,
    clip_grad_norm_,
    split_layers,
)
from lessons_lib.schedules import gpipe, interleaved, one_f_one_b, zb_h1, zbv

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
VOCABULARY, CONTEXT = 13, 6


def gpt(seed, tied=True):
    torch.manual_seed(seed)
    return GPT(VOCABULARY, 8, num_layers=6, num_heads=2, context=CONTEXT, tied=tied).double()


def loss_of(logits, targets):
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batches(num_rows, num_steps):
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(VOCABULARY, (2, num_rows, CONTEXT), generator=generator) for _ in range(num_steps)]


def named(net):
    """This rank's parameters by the names that they have among all layers, whatever the number of stages."""
    return {
        name: parameter
        for stage in net.stages.values()
        for name, parameter in stage.named_parameters(remove_duplicate=False)
    }


def check(net, alone):
    theirs = dict(nn.Sequential(*alone.stages()).named_parameters(remove_duplicate=False))
    for name, mine in named(net).items():
        torch.testing.assert_close(mine, theirs[name], **TIGHT)


def update(net, alone, comm, optimizers):
    """Clip both by the one norm, step both, and compare."""
    norm = nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
    torch.testing.assert_close(clip_grad_norm_(net.parameters(), 0.1, comm), norm.detach(), **TIGHT)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    check(net, alone)


def on_an_axis(comm, make, optimiser):
    """Copies of a pipeline along dp, each with its share of the batch: gradients are averaged after a step."""
    num_copies = 2
    mesh = Mesh(comm, dp=num_copies, pp=comm.world_size // num_copies)
    alone, model = gpt(0), gpt(comm.rank)
    for parameter in model.parameters():  # the same start along dp too
        mesh["dp"].broadcast(parameter.detach())
    program = make(mesh.sizes["pp"], 2)
    net = PipelineParallel(split_layers(model.stages(), program.num_stages), mesh["pp"], program)
    optimizers = [optimiser(alone.parameters()), optimiser(net.parameters())]
    for x, y in batches(8, 4):
        loss = loss_of(alone(x), y)
        loss.backward()
        share = mesh["dp"].rank
        own_loss = net.step(x.chunk(num_copies)[share], y.chunk(num_copies)[share], loss_of)
        average_gradients(net.parameters(), mesh, "dp")
        mesh["dp"].all_reduce(own_loss, op="mean")
        torch.testing.assert_close(own_loss, loss.detach(), **TIGHT)
        update(net, alone, mesh, optimizers)
    torch.testing.assert_close(net(x), alone(x).detach(), **TIGHT)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    ("make", "world_size", "optimiser", "transport"),
    [
        (one_f_one_b, 4, adam, "shared_memory"),
        (zbv, 4, momentum, "torch"),
        (zb_h1, 8, momentum, "shared_memory"),
    ],
)
def test_copies_of_a_pipeline_along_another_axis_equal_one_process(make, world_size, optimiser, transport):
    launch(on_an_axis, make, optimiser, world_size=world_size, transport=transport)


def beside_others(comm, make):
    """The same with stages that average by themselves, and with an optimiser that steps a share on each copy."""
    mesh = Mesh(comm, dp=2, pp=2)
    alone = nn.Sequential(*gpt(0, tied=False).stages())
    wrapped, cut = (split_layers(gpt(0, tied=False).stages(), 2) for _ in range(2))
    nets = [[DataParallel(stage, mesh["dp"]) for stage in wrapped], cut]
    nets = [PipelineParallel(stages, mesh["pp"], make(2, 2)) for stages in nets]
    optimizers = [adam(alone.parameters()), adam(nets[0].parameters())]
    optimizers.append(ShardedOptimizer(nets[1].parameters(), torch.optim.Adam, mesh["dp"], lr=1e-2))
    for x, y in batches(8, 3):
        loss_of(alone(x), y).backward()
        for net in nets:
            net.step(x.chunk(2)[mesh["dp"].rank], y.chunk(2)[mesh["dp"].rank], loss_of)
        average_gradients(nets[1].parameters(), mesh, "dp")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        theirs = dict(alone.named_parameters(remove_duplicate=False))
        for net in nets:
            for name, mine in named(net).items():
                torch.testing.assert_close(mine, theirs[name.removeprefix("module.")], **TIGHT)


@pytest.mark.parametrize("make", [one_f_one_b, zb_h1])
def test_stages_may_average_by_themselves_and_optimisers_may_be_sharded_along_another_axis(make):
    launch(beside_others, make, world_size=4)


def on_eight(comm, make):
    alone, model = gpt(0), gpt(comm.rank)
    net = PipelineParallel(split_layers(model.stages(), 8), comm, make(8, 3))
    optimizers = [adam(alone.parameters()), adam(net.parameters())]
    for x, y in batches(6, 6):
        loss = loss_of(alone(x), y)
        loss.backward()
        torch.testing.assert_close(net.step(x, y, loss_of), loss.detach(), **TIGHT)
        update(net, alone, comm, optimizers)


@pytest.mark.parametrize("make", [one_f_one_b, zb_h1])
def test_eight_ranks_with_a_layer_each_equal_one_process(make):
    launch(on_eight, make, world_size=8)


# --- states -----------------------------------------------------------------------------------------------------------


def saved(comm, make, num_parts):
    """A rank's weights and the state of its optimiser after two steps."""
    program = make(comm.world_size, num_parts)
    net = PipelineParallel(split_layers(gpt(0).stages(), program.num_stages), comm, program)
    optimizer = momentum([{"params": [parameter]} for parameter in net.parameters()])
    for x, y in batches(2 * num_parts, 2):
        net.step(x, y, loss_of)
        optimizer.step()
        optimizer.zero_grad()
    state = {name: value for stage in net.stages.values() for name, value in stage.state_dict().items()}
    return copy.deepcopy(state)


def loaded(comm, make, num_parts, state):
    """The loss of a batch, and the weights of this rank after a step, from a state that other ranks have saved."""
    program = make(comm.world_size, num_parts)
    net = PipelineParallel(split_layers(gpt(9).stages(), program.num_stages), comm, program)
    for stage in net.stages.values():
        stage.load_state_dict({name: state[name] for name in stage.state_dict()})
    optimizer = momentum(net.parameters())
    x, y = batches(2 * num_parts, 1)[0]
    loss = net.step(x, y, loss_of)
    optimizer.step()
    return loss, {name: parameter.detach() for name, parameter in named(net).items()}


@pytest.mark.parametrize(("make", "world_size"), [(one_f_one_b, 3), (interleaved, 2), (gpipe, 1)])
def test_a_state_is_named_as_in_one_process_and_loads_on_another_number_of_ranks(make, world_size):
    states = launch(saved, zb_h1, 2, world_size=2)
    whole = {name: value for state in states for name, value in state.items()}
    alone = gpt(0)
    layers = nn.Sequential(*alone.stages())
    assert whole.keys() == layers.state_dict().keys()
    layers.load_state_dict(whole)
    optimizer, (x, y) = momentum(alone.parameters()), batches(4, 1)[0]
    loss = loss_of(alone(x), y)
    loss.backward()
    optimizer.step()
    expected = layers.state_dict()
    seen = set()
    for other_loss, weights in launch(loaded, make, 2, whole, world_size=world_size):
        torch.testing.assert_close(other_loss, loss.detach(), **TIGHT)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], **TIGHT)
        seen |= weights.keys()
    assert seen == expected.keys()


# --- torchrun ---------------------------------------------------------------------------------------------------------

SCRIPT = """
import torch
from torch import nn
from lessons_lib import Mesh, connect
from lessons_lib.parallel import PipelineParallel, average_gradients, split_layers
from lessons_lib.schedules import zb_h1

def layers(seed):
    torch.manual_seed(seed)
    return [nn.Sequential(nn.Linear(5, 5), nn.Tanh()).double() for _ in range(4)]

with connect() as comm:
    mesh, own, alone = Mesh(comm, dp=2, pp=2), layers(comm.rank), nn.Sequential(*layers(0))
    for layer in own:
        for parameter in layer.parameters():
            comm.broadcast(parameter.detach())
    net = PipelineParallel(split_layers(own, 2), mesh["pp"], zb_h1(2, 3))
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (alone, net)]
    draw, worst = torch.Generator().manual_seed(1), 0.0
    for _ in range(3):
        x, y = torch.randn(2, 12, 5, dtype=torch.float64, generator=draw)
        nn.functional.mse_loss(alone(x), y).backward()
        share = mesh["dp"].rank
        net.step(x.chunk(2)[share], y.chunk(2)[share], nn.functional.mse_loss)
        average_gradients(net.parameters(), mesh, "dp")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        theirs = dict(alone.named_parameters())
        for stage in net.stages.values():
            for name, mine in stage.named_parameters():
                worst = max(worst, (mine - theirs[name]).abs().max().item())
    worst = torch.tensor(worst)
    comm.all_reduce(worst, op="max")
    if comm.rank == 0:
        print(bool(worst < 1e-12))
"""


def test_copies_of_a_pipeline_under_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", str(script)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.stdout.splitlines() == ["True"], done.stderr
