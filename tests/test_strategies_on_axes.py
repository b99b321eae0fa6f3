"""Sharded optimisers and sharded models along one axis of a mesh while another axis splits the model (lesson 18)."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

from lessons_lib import CollectiveMismatch, Mesh, launch
from lessons_lib.models import GPT
from lessons_lib.parallel import (
    DataParallel,
    ExpertParallel,
    FullySharded,
    PipelineParallel,
    ShardedOptimizer,
    average_gradients,
    clip_grad_norm_,
    full_optimizer_state_dict,
    full_state_dict,
    gpt_plan,
    parallel_cross_entropy,
    parallelize,
    split_layers,
)
from lessons_lib.schedules import one_f_one_b

VOCABULARY, WIDTH, CONTEXT, NUM_STEPS = 31, 16, 8, 4
WAYS = ("sharded optimizer", "fully sharded")


def gpt(seed, **options):
    torch.manual_seed(seed)
    return GPT(VOCABULARY, WIDTH, **({"num_layers": 2, "num_heads": 4, "context": CONTEXT} | options)).double()


def loss_of(logits, y, comm=None):
    if comm is not None:
        return parallel_cross_entropy(logits, y, comm, VOCABULARY)
    return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())


def batch(step, rows):
    return torch.randint(VOCABULARY, (2, rows, CONTEXT), generator=torch.Generator().manual_seed(step))


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def alone(rows, **options):
    """One process: for each step the norm and the weights after it; the optimiser's state at the end."""
    model, steps = gpt(0, **options), []
    optimizer = adam(model.parameters())
    for step in range(NUM_STEPS):
        x, y = batch(step, rows)
        loss_of(model(x), y).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        layers = nn.Sequential(*model.stages())
        steps.append((norm, *[deepcopy(each.state_dict()) for each in (model, layers)]))
    return steps, optimizer.state_dict()


def assert_same(ours, theirs):
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= 1e-10 * theirs[name].abs().max(), name


def wrapped(way, model, comm):
    """The module to call, and its optimiser."""
    if way == "fully sharded":
        net = FullySharded(model, comm)
        return net, adam(net.parameters())
    return DataParallel(model, comm), ShardedOptimizer(model.parameters(), torch.optim.Adam, comm, lr=1e-2)


def sent(comm, axis):
    return comm.ledger.groups[axis].bytes_sent if axis in comm.ledger.groups else 0


def update(net, optimizer, mesh, norm):
    """Clip by the norm over both axes, compare it, and step."""
    torch.testing.assert_close(clip_grad_norm_(net.parameters(), 0.1, mesh), norm.double(), rtol=1e-10, atol=0)
    optimizer.step()
    optimizer.zero_grad()


def beside_tensor_parallelism(comm, way, sizes, **split):
    """Parts along tp, shares along dp; the bytes of a step along each."""
    mesh, model = Mesh(comm, dp=2, tp=2), gpt(comm.rank)
    parallelize(model, mesh["tp"], gpt_plan(model), **split)
    net, optimizer = wrapped(way, model, mesh["dp"])
    steps, state = alone(sum(sizes))
    for step, (norm, weights, _) in enumerate(steps):
        x, y = (whole.split(sizes)[mesh["dp"].rank] for whole in batch(step, sum(sizes)))
        before = {axis: sent(comm, axis) for axis in mesh.sizes}
        loss_of(net(x), y, mesh["tp"]).backward()
        update(net, optimizer, mesh, norm)
        moved = {axis: sent(comm, axis) - before[axis] for axis in mesh.sizes}
        assert_same(full_state_dict(net.module if way == "sharded optimizer" else net), weights)
    if way == "sharded optimizer":
        found = full_optimizer_state_dict(optimizer)["state"]
        for number, each in state["state"].items():
            for name, value in each.items():
                torch.testing.assert_close(found[number][name], value, rtol=1e-9, atol=1e-14)
    return moved, along_dp(net, way), len(x)


def along_dp(net, way):
    """What a step sends to one other rank along dp, by the docstrings' formulas."""
    if way == "fully sharded":  # gathered twice, reduced once, by units
        flats = [flat for unit in net._passes.units for flat in unit.flats]
        return sum(8 * (3 * flat.layout.chunk + len(flat.parameters) + 4) for flat in flats)
    numels = [parameter.numel() for parameter in net.parameters()]
    return 8 * (sum(numels) + len(numels) + 4 + -(-sum(numels) // 2))  # gradients with flags, and the other's chunk


def tensor_cases(comm, way):
    for sizes, split in (((2, 2), {}), ((3, 1), {"sequence_parallel": True}), ((1, 3), {"gather_again": True})):
        found = beside_tensor_parallelism(comm, way, sizes, **split)
        if not split:
            counted = found
    return counted


@pytest.mark.parametrize("way", WAYS)
def test_beside_tensor_parallelism_they_equal_one_process_and_each_axis_sends_what_its_strategy_says(way):
    stream, targets = 2 * CONTEXT * WIDTH * 8, 2 * CONTEXT * 8
    moved, promised, rows = zip(*launch(tensor_cases, way, world_size=4), strict=True)
    assert rows == (2,) * 4
    # Along tp: two pairs a block and pass, the table, the input of the logits, and three numbers a target.
    assert [each["tp"] for each in moved] == [2 * (5 + 5) * stream / 2 + 2 * 3 * targets / 2] * 4
    for ranks in ((0, 2), (1, 3)):  # along dp, which hold the same parts
        assert sum(moved[rank]["dp"] for rank in ranks) == sum(promised[rank] for rank in ranks)


def stages_in_shares(comm, way, sizes):
    """Stages along pp, shares along dp, the tied table on both stages where that can be."""
    mesh, model = Mesh(comm, dp=2, pp=2), gpt(comm.rank, tied=False)
    stages = split_layers(model.stages(), 2)
    if way == "fully sharded":
        stages = [FullySharded(stage, mesh["dp"]) for stage in stages]
    else:
        stages = [DataParallel(stage, mesh["dp"]) for stage in stages]
    net = PipelineParallel(stages, mesh["pp"], one_f_one_b(2, 1))
    if way == "fully sharded":
        optimizer = adam(net.parameters())
    else:
        optimizer = ShardedOptimizer(net.parameters(), torch.optim.Adam, mesh["dp"], lr=1e-2)
    for step, (norm, _, layers) in enumerate(alone(sum(sizes), tied=False)[0]):
        x, y = (whole.split(sizes)[mesh["dp"].rank] for whole in batch(step, sum(sizes)))
        net.step(x, y, loss_of)
        update(net, optimizer, mesh, norm)
        (own,) = net.stages.values()
        assert_same({name.removeprefix("module."): value for name, value in own.state_dict().items()}, layers)


def tied_stages(comm):
    """Copies of a pipeline with a tied table, averaged by hand, and an optimiser in shares."""
    mesh, model = Mesh(comm, dp=2, pp=2), gpt(0)
    net = PipelineParallel(split_layers(model.stages(), 2), mesh["pp"], one_f_one_b(2, 2))
    optimizer = ShardedOptimizer(net.parameters(), torch.optim.Adam, mesh["dp"], lr=1e-2)
    with pytest.raises((ValueError, CollectiveMismatch)):
        ShardedOptimizer(net.parameters(), torch.optim.Adam, mesh["pp"], lr=1e-2)
    for step, (norm, _, layers) in enumerate(alone(4)[0]):
        x, y = (whole.chunk(2)[mesh["dp"].rank] for whole in batch(step, 4))
        net.step(x, y, loss_of)
        average_gradients(net.parameters(), mesh, "dp")
        update(net, optimizer, mesh, norm)
        (own,) = net.stages.values()
        assert_same(own.state_dict(), layers)


def pipelines(comm):
    for way in WAYS:
        for sizes in ((2, 2), (3, 1)):
            stages_in_shares(comm, way, sizes)
    tied_stages(comm)


def test_beside_a_pipeline_they_equal_one_process():
    launch(pipelines, world_size=4)


def with_experts(comm, way):
    """Experts along ep, shares along dp."""
    mesh, model = Mesh(comm, dp=2, ep=2), gpt(0, num_experts=4)
    for block in model.blocks:
        block.mlp = ExpertParallel(block.mlp, mesh["ep"])
    net, optimizer = wrapped(way, model, mesh["dp"])
    for step, (norm, weights, _) in enumerate(alone(4, num_experts=4)[0]):
        x, y = (whole.chunk(4)[comm.rank] for whole in batch(step, 4))
        loss_of(net(x), y).backward()
        average_gradients(net.parameters(), mesh, "ep")
        update(net, optimizer, mesh, norm)
        assert_same({name.removeprefix("module."): value for name, value in net.state_dict().items()}, weights)
    if way == "fully sharded":
        with pytest.raises(ValueError, match="ranks have from 1 to 2 samples, and tokens of other ranks pass"):
            net(batch(0, 1 + mesh["dp"].rank)[0])


def experts(comm):
    for way in WAYS:
        with_experts(comm, way)


def test_beside_experts_they_equal_one_process_or_refuse_unequal_shares():
    launch(experts, world_size=4)


def shares_in_replicas(comm, sizes, passes=1, inner=False, by_weight=False):
    """DataParallel over FullySharded, with `sizes` rows on the ranks."""
    mesh, model = Mesh(comm, dp=2, shard=2), gpt(comm.rank)
    net = DataParallel(FullySharded(model, mesh["shard"]), mesh["dp"])
    optimizer, reference = adam(net.parameters()), gpt(0)
    other = adam(reference.parameters())
    for step in range(NUM_STEPS):
        for number in range(passes):
            x, y = batch(10 * step + number, sum(sizes))
            own_x, own_y = (whole.split(sizes)[comm.rank] for whole in (x, y))
            options = {}
            if by_weight:  # the second half of the sequences is padding on the last rank
                y, own_y = y.clone(), own_y.clone()
                y[-sizes[-1] :, 4:] = -100
                if comm.rank == 3:
                    own_y[:, 4:] = -100
                options = {"weight": (own_y >= 0).sum().item()}
            loss_of(reference(x), y).backward()
            is_last = number + 1 == passes
            with torch.enable_grad() if is_last else net.no_sync():
                loss_of(net(own_x, **options), own_y).backward()
        update(net, optimizer, mesh, nn.utils.clip_grad_norm_(reference.parameters(), 0.1))
        other.step()
        other.zero_grad()
        with torch.no_grad():
            net(x)
        assert_same(net.module.state_dict(), reference.state_dict())
    whole = {name.removeprefix("module."): value for name, value in net.state_dict().items()}
    reference.load_state_dict(whole)


def replicas(comm):
    for sizes in ((1, 1, 1, 1), (1, 3, 2, 1), (2, 0, 1, 1)):
        shares_in_replicas(comm, sizes)
    shares_in_replicas(comm, (1, 3, 2, 1), passes=2)
    shares_in_replicas(comm, (1, 3, 2, 1), by_weight=True)
    mesh = Mesh(comm, dp=2, shard=2)
    net = DataParallel(FullySharded(gpt(0), mesh["shard"]), mesh["dp"])
    with pytest.raises(ValueError, match="no rank of one replica of a FullySharded has a sample"):
        net(batch(0, 4)[0].split([0, 0, 3, 1])[comm.rank])
    with net.module.no_sync(), pytest.raises(RuntimeError, match="enter no_sync\\(\\) of both"):
        net(batch(0, 1)[0])
    with pytest.raises(ValueError, match=r"weight_by_batch, batch_dim=\(False, 0\): those of the FullySharded"):
        DataParallel(FullySharded(gpt(0), mesh["shard"]), mesh["dp"], weight_by_batch=False)
    with pytest.raises(TypeError, match=r"module\.0 is a FullySharded: the whole module"):
        DataParallel(nn.Sequential(FullySharded(gpt(0), mesh["shard"]), nn.Tanh()), mesh["dp"])
    with pytest.raises(TypeError, match="is a DataParallel"):
        FullySharded(DataParallel(gpt(0), mesh["dp"]), mesh["shard"])


def test_copies_of_a_sharded_model_with_unequal_shares_equal_one_process_or_are_refused():
    launch(replicas, world_size=4)


def refused(comm):
    mesh, model = Mesh(comm, dp=2, tp=2), gpt(0)
    parallelize(model, mesh["tp"], gpt_plan(model))
    for group in (mesh["tp"], comm):
        with pytest.raises(ValueError, match="is split over ranks of comm: a comm of ranks that hold the same"):
            ShardedOptimizer(model.parameters(), torch.optim.Adam, group)
        with pytest.raises(ValueError, match=r"embed\.tokens\.weight is split over ranks of comm already"):
            FullySharded(model, group)
    net = FullySharded(model, mesh["dp"])
    optimizer = adam(net.parameters())
    with pytest.raises(ValueError, match=r"optimizer steps pieces of a FullySharded: net\.optimizer_state_dict"):
        full_optimizer_state_dict(optimizer)
    with pytest.raises(ValueError, match="module holds pieces of a FullySharded: parallelize it first"):
        parallelize(net, mesh["tp"], gpt_plan(gpt(0)))
    with pytest.raises(ValueError, match="is split over ranks of comm"):
        ShardedOptimizer(net.parameters(), torch.optim.Adam, mesh["dp"])
    whole = full_state_dict(net)
    other = parallelize(gpt(1), mesh["tp"], gpt_plan(gpt(1)))
    other = FullySharded(other, mesh["dp"])
    other.load_state_dict(whole)  # each rank takes its piece of its part
    assert_same(full_state_dict(other), whole)
    unsplit = gpt(2)
    unsplit.load_state_dict(whole)


def test_what_cannot_be_right_is_refused_on_every_rank():
    launch(refused, world_size=4)


# --- torchrun ---------------------------------------------------------------------------------------------------------

SCRIPT = """
import torch
from torch import nn
from lessons_lib import connect
from lessons_lib.parallel import DataParallel, FullySharded, ShardedOptimizer, full_state_dict, parallelize

def make(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()

def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

def worst_of(comm, way):
    alone, model = make(0), make(comm.rank)
    if way == "sharded optimizer":
        net = DataParallel(model, comm)
        optimizer = ShardedOptimizer(net.parameters(), torch.optim.SGD, comm, lr=0.1, momentum=0.9)
    elif way == "fully sharded":
        net = FullySharded(model, comm)
        optimizer = momentum(net.parameters())
    else:
        net = parallelize(model, comm, {"0": "column", "2": "row"})
        optimizer = momentum(net.parameters())
    other, draw, worst = momentum(alone.parameters()), torch.Generator().manual_seed(1), 0.0
    for _ in range(3):
        data = torch.randn(4, 8, dtype=torch.float64, generator=draw)
        shares = [data] if way == "tensor" else data.split([3, 1])
        own = shares[comm.rank % len(shares)]
        for each, part in ((alone, data), (net, own)):
            nn.functional.mse_loss(each(part[:, :5]), part[:, 5:]).backward()
        for each in (other, optimizer):
            each.step()
            each.zero_grad()
        state = full_state_dict(model if way == "sharded optimizer" else net)
        worst = max(worst, *[(state[name] - value).abs().max().item() for name, value in alone.state_dict().items()])
    worst = torch.tensor(worst)
    comm.all_reduce(worst, op="max")
    return bool(worst < 1e-12)

with connect() as comm:
    found = [worst_of(comm, way) for way in ("sharded optimizer", "fully sharded", "tensor")]
    if comm.rank == 0:
        print(found)
"""


def test_each_equals_one_process_under_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.stdout.splitlines() == ["[True, True, True]"], done.stderr
