"""Training code as people write it, on shares of a model, beside one process."""

import copy

import pytest
import torch
from test_fully_sharded import TIGHT, Pair, batch, gpt, loss_of
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from lessons_lib import CollectiveMismatch, Mesh, launch
from lessons_lib.parallel import DataParallel, FullySharded, PipelineParallel, clip_grad_norm_, split_layers
from lessons_lib.schedules import one_f_one_b

SCENARIOS = []


def scenario(fn):
    SCENARIOS.append(fn)
    return fn


class Small(nn.Module):
    """Blocks that are used in the way that `use(self, x)` says."""

    def __init__(self, seed, use, make_blocks):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.blocks, self.last = nn.Linear(5, 6), nn.ModuleList(make_blocks()), nn.Linear(6, 3)
        self.use = use
        self.double()

    def forward(self, x):
        return self.last(self.use(self, self.first(x)))


def block(width=6):
    return nn.Sequential(nn.Linear(width, 7), nn.Tanh(), nn.Linear(7, width))


def data(step=0, rows=12):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, 5, generator=generator).double(), torch.randn(rows, 3, generator=generator).double()


class SmallPair(Pair):
    """A `Pair` of `Small`s."""

    def __init__(
        self, comm, use, make_blocks=lambda: [block() for _ in range(3)], before=lambda model: None, **options
    ):
        super().__init__(comm, lambda seed: Small(seed, use, make_blocks), before=before, **options)

    def backward(self, step=0, rows=12):
        x, y = data(step, rows)
        mse_loss(self.alone(x), y).backward()
        mse_loss(self.net(self.share(x)), self.share(y)).backward()

    def train(self, steps=3):
        for step in range(steps):
            self.backward(step)
            self.compare_gradients()
            self.step(clip=0.3)
            self.compare()


def in_order(self, x):
    for each in self.blocks:
        x = x + each(x)
    return x


@scenario
def a_block_that_is_used_twice(comm):
    SmallPair(comm, lambda self, x: self.blocks[0](self.blocks[1](self.blocks[0](x)))).train()


@scenario
def blocks_side_by_side(comm):
    SmallPair(comm, lambda self, x: self.blocks[0](x) * self.blocks[1](x) + self.blocks[0](x + 1)).train()


@scenario
def one_block_under_two_names(comm):
    def shared():
        one = block()
        return [one, block(), one]

    SmallPair(comm, in_order, shared).train()


@scenario
def a_weight_tied_across_blocks(comm):
    def tied():
        blocks = [block(), block(), block()]
        blocks[2][0].weight = blocks[0][0].weight
        return blocks

    SmallPair(comm, in_order, tied).train()


@scenario
def checkpointing_around_blocks(comm):
    for use_reentrant in (False, True):
        for reshard in (True, False):
            SmallPair(
                comm,
                lambda self, x, r=use_reentrant: checkpoint(
                    self.blocks[1], checkpoint(self.blocks[0], x, use_reentrant=r), use_reentrant=r
                ),
                reshard_after_forward=reshard,
            ).train()


@scenario
def checkpointing_within_a_block(comm):
    class Inner(nn.Module):
        def __init__(self, use_reentrant):
            super().__init__()
            self.inner, self.outer, self.use_reentrant = block(), nn.Linear(6, 6), use_reentrant

        def forward(self, x):
            return self.outer(checkpoint(self.inner, x, use_reentrant=self.use_reentrant)) + x

    for use_reentrant in (False, True):
        SmallPair(comm, in_order, lambda r=use_reentrant: [Inner(r), Inner(r)]).train()


@scenario
def checkpointing_the_whole_net(comm):
    pair = SmallPair(comm, in_order)
    for step in range(2):
        x, y = data(step)
        mse_loss(pair.alone(x), y).backward()
        mse_loss(checkpoint(pair.net, pair.share(x), use_reentrant=False), pair.share(y)).backward()
        pair.compare_gradients()
        pair.step()
        pair.compare()


@scenario
def recurrent_layers_and_norms(comm):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.norm = nn.LSTM(6, 6, batch_first=True), nn.LayerNorm(6)

        def forward(self, x):
            return self.norm(self.lstm(x[:, None])[0][:, 0])

    SmallPair(comm, in_order, lambda: [Recurrent(), Recurrent()]).train()


@scenario
def attention_of_torch(comm):
    layer = lambda: nn.TransformerEncoderLayer(6, 2, 9, dropout=0.0, batch_first=True)  # noqa: E731
    SmallPair(comm, lambda self, x: in_order(self, x[:, None])[:, 0], lambda: [layer(), layer()]).train()


@scenario
def outputs_in_containers_and_a_loss_on_the_side(comm):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            self.aside = self.two(x).square().mean()
            return {"x": self.one(x).tanh(), "more": [x]}

    def use(self, x):
        for each in self.blocks:
            x = each(x)["x"]
        return x

    pair = SmallPair(comm, use, lambda: [Two(), Two()])
    for step in range(3):
        x, y = data(step)
        (mse_loss(pair.alone(x), y) + sum(b.aside for b in pair.alone.blocks)).backward()
        (mse_loss(pair.net(pair.share(x)), pair.share(y)) + sum(b.aside for b in pair.net.module.blocks)).backward()
        pair.compare_gradients()
        pair.step()
        pair.compare()


@scenario
def two_backward_passes_through_one_graph_and_a_sum_of_losses(comm):
    pair = SmallPair(comm, in_order)
    x, y = data()
    for model, inputs, targets in ((pair.alone, x, y), (pair.net, pair.share(x), pair.share(y))):
        out = model(inputs)
        mse_loss(out, targets).backward(retain_graph=True)
        out.square().mean().backward()
        (mse_loss(model(inputs), targets) + model(inputs + 1).mean()).backward()
    pair.compare_gradients()
    pair.step()
    pair.compare()


@scenario
def evaluation_in_between(comm):
    for reshard in (True, False):
        pair = SmallPair(comm, in_order, reshard_after_forward=reshard)
        for step in range(3):
            x, y = data(step)
            ours = mse_loss(pair.net(pair.share(x)), pair.share(y))
            with torch.inference_mode():
                torch.testing.assert_close(pair.net(x), pair.alone(x), **TIGHT)
            mse_loss(pair.alone(x), y).backward()
            ours.backward()
            pair.net.eval()
            with torch.no_grad():
                torch.testing.assert_close(pair.net(x), pair.alone(x), **TIGHT)
            pair.net.train()
            pair.step()
            torch.testing.assert_close(pair.net(x), pair.alone(x), **TIGHT)  # with a graph that nobody uses
            pair.compare()


@scenario
def an_exception_in_the_middle(comm):
    pair, fails = SmallPair(comm, in_order), [False]
    for model in (pair.alone, pair.net.module):

        def hook(module, args, output):
            if fails[0] == "forward":
                raise ZeroDivisionError
            if fails[0] == "backward":
                output.register_hook(lambda gradient: 1 / 0)

        model.blocks[1].register_forward_hook(hook)
    for fails[0] in ("forward", False, "backward", False):
        pair.net.zero_grad()
        pair.alone.zero_grad()
        if fails[0]:
            for model, part in ((pair.alone, lambda t: t), (pair.net, pair.share)):
                with pytest.raises(ZeroDivisionError):
                    mse_loss(model(part(data()[0])), part(data()[1])).backward()
            pair.net.zero_grad()
            pair.alone.zero_grad()
        else:
            pair.train(1)


@scenario
def frozen_midway_and_set_free(comm):
    def freeze(model):
        model.blocks[0].requires_grad_(False)

    pair = SmallPair(comm, in_order, before=freeze)
    pair.train(1)
    for model in (pair.alone, pair.net.module):
        model.blocks[0].requires_grad_(True)
        model.blocks[1][0].weight.requires_grad_(False)
        model.last.requires_grad_(False)
    pair.train(2)
    for model in (pair.alone, pair.net.module):
        model.requires_grad_(False)
        model.blocks[2].requires_grad_(True)
    pair.train(2)


@scenario
def a_parameter_that_only_some_ranks_use(comm):
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.never = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            y = self.one(x)
            rows = 4 if len(x) == 12 else 4 * (comm.rank == 0)  # the first 4 rows of the batch, which rank 0 has
            return torch.cat([y[:rows] + self.two(x[:rows]), y[rows:]]) if rows else y

    pair = SmallPair(comm, lambda self, x: self.blocks[0](x), lambda: [Sometimes(), Sometimes()])
    pair.train(2)
    assert all(p.grad is None for p in pair.net.module.blocks[0].never.parameters())
    assert all(p.grad is None for p in pair.net.module.blocks[1].parameters())


@scenario
def uneven_and_empty_shares(comm):
    pair = SmallPair(comm, in_order)
    for rows in (7, 2, 5):
        pair.backward(rows, rows)
        pair.compare_gradients()
        pair.step()
        pair.compare()


@scenario
def a_weight_for_each_forward_pass(comm):
    pair = SmallPair(comm, in_order)
    x, y = data()
    cut = x.split([1, 4, 7])[comm.rank], y.split([1, 4, 7])[comm.rank]
    mse_loss(pair.alone(x), y).backward()
    mse_loss(pair.net(cut[0].repeat(3, 1), weight=len(cut[0])), cut[1].repeat(3, 1)).backward()
    pair.compare_gradients()


@scenario
def accumulation_of_all_kinds(comm):
    pair = SmallPair(comm, in_order)
    for step in range(3):
        for part in range(3):
            with pair.net.no_sync() if part < 2 else torch.enable_grad():
                pair.backward(10 * step + part, rows=12 if part else 6)
        pair.compare_gradients()
        pair.step(clip=0.3)
        pair.compare()
    with pair.net.no_sync():
        pair.backward(1)
    for optimizer in pair.optimizers:
        optimizer.zero_grad()  # thrown away
    pair.train(1)
    with pair.net.no_sync():
        pair.backward(1)
    pair.optimizers[1].step()
    with pytest.raises(RuntimeError, match="weights have changed while gradients of no_sync"):
        pair.net(data()[0])


@scenario
def gradients_cleared_too_gently(comm):
    pair = SmallPair(comm, in_order)
    with pair.net.no_sync():
        pair.backward(1)
    pair.net.zero_grad(set_to_none=False)
    with pytest.raises(RuntimeError, match="gradients have changed while those of no_sync"):
        pair.net(data()[0])


@scenario
def a_step_before_backward(comm):
    for reshard in (True, False):
        pair = SmallPair(comm, in_order, reshard_after_forward=reshard)
        x, y = data()
        loss = mse_loss(pair.net(x), y)
        pair.backward()
        pair.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        pair.train(1)


@scenario
def activations_changed_in_place(comm):
    def use(self, x):
        y = self.blocks[0](x)
        z = y.sigmoid()
        y2 = z * 2
        z.add_(1)
        return y2

    pair = SmallPair(comm, use)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        mse_loss(pair.net(data()[0]), data()[1]).backward()


@scenario
def gradients_asked_for_by_hand(comm):
    pair = SmallPair(comm, in_order)
    x, y = data()
    theirs = torch.autograd.grad(mse_loss(pair.alone(x), y), list(pair.alone.parameters()))
    inputs = x.clone().requires_grad_()
    loss = mse_loss(pair.net(inputs), y)
    ours = torch.autograd.grad(loss, [*pair.net.parameters(), inputs])
    assert all(p.grad is None for p in pair.net.parameters())
    for piece, mine, other in zip(pair.net.parameters(), ours, theirs, strict=False):
        piece.grad = mine
        del other
    for parameter, other in zip(pair.alone.parameters(), theirs, strict=True):
        parameter.grad = other
    pair.step(clip=0.3)
    pair.compare()
    loss = mse_loss(pair.net(x), y)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(torch.autograd.grad(loss, list(pair.net.parameters()), create_graph=True)[0].sum(), inputs)


@scenario
def a_penalty_on_weights(comm):
    pair = SmallPair(comm, in_order)
    for _ in range(2):
        pair.backward()
        for model in (pair.alone, pair.net):
            (0.1 * sum(p.square().sum() for p in model.parameters())).backward()
        pair.compare_gradients()
        pair.step()
        pair.compare()


@scenario
def weights_changed_by_hand(comm):
    pair = SmallPair(comm, in_order)
    pair.train(1)
    with torch.no_grad():
        for model in (pair.alone, pair.net):
            for p in model.parameters():
                p.mul_(0.9)
            for p in model.parameters():
                p.data = p.data * 1.1
    pair.train(1)
    averaged = torch.optim.swa_utils.AveragedModel  # moving averages of pieces are pieces of moving averages
    means = [copy.deepcopy(list(model.parameters())) for model in (pair.alone, pair.net)]
    assert averaged is not None and len(means[0]) == len(means[1])
    pair.net.double()
    pair.train(1)
    pair.net.float()
    with pytest.raises(RuntimeError, match=r"has become torch\.float32"):
        pair.net(data()[0])


@scenario
def an_optimiser_made_before(comm):
    alone, model = Small(0, in_order, lambda: [block()]), Small(comm.rank, in_order, lambda: [block()])
    optimizers = [torch.optim.Adam(each.parameters(), lr=0.01) for each in (alone, model)]
    pair = SmallPair.__new__(SmallPair)
    pair.comm, pair.alone, pair.net, pair.optimizers = comm, alone, FullySharded(model, comm), optimizers
    pair.train()


@scenario
def groups_by_name_schedulers_and_hooks(comm):
    pair, seen = SmallPair(comm, in_order), []
    pair.optimizers = []
    for model in (pair.alone, pair.net):
        groups = [
            {"params": [p for name, p in model.named_parameters() if name.endswith("bias")], "weight_decay": 0.0},
            {"params": [p for name, p in model.named_parameters() if name.endswith("weight")]},
        ]
        pair.optimizers.append(torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1))
    pair.net.register_forward_hook(lambda *args: seen.append("forward"))
    pair.net.module.blocks[0].register_full_backward_hook(lambda *args: seen.append("backward"))
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 5) for o in pair.optimizers]
    for _ in range(3):
        pair.train(1)
        for scheduler in schedulers:
            scheduler.step()
    assert seen.count("backward") == 3


@scenario
def what_cannot_be(comm):
    model = Small(0, in_order, lambda: [block()])
    with pytest.raises(TypeError, match="module is a list"):
        FullySharded([model], comm)
    with pytest.raises(TypeError, match="comm is a Mesh"):
        FullySharded(model, Mesh(comm, dp=comm.world_size))
    with pytest.raises(ValueError, match=r"units\[0\] is a Linear: modules that lie within"):
        FullySharded(model, comm, units=[nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"units\[0\] is a ModuleList, which is never called"):
        FullySharded(model, comm, units=[model.blocks])
    with pytest.raises(ValueError, match="module has no parameter"):
        FullySharded(nn.Tanh(), comm)
    with pytest.raises(ValueError, match="sparse=True"):
        FullySharded(nn.Embedding(3, 3, sparse=True), comm)
    with pytest.raises(ValueError, match="has no shape yet"):
        FullySharded(nn.LazyLinear(3), comm)
    with pytest.raises(CollectiveMismatch, match="FullySharded"):
        FullySharded(nn.Linear(2, 2 + comm.rank), comm)
    net = FullySharded(model, comm)
    with pytest.raises(TypeError, match="is a FullySharded"):
        FullySharded(nn.Sequential(net), comm)
    with pytest.raises(ValueError, match=r"first\.weight is split over ranks of comm already"):
        FullySharded(net.module, comm)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(net)
    with pytest.raises(ValueError, match="weight=-1"):
        net(data()[0], weight=-1)
    with pytest.raises(RuntimeError, match="size"):
        net.load_state_dict({name: torch.zeros(2) for name in model.state_dict()})
    assert net(data()[0]).shape == (12, 3)


@scenario
def autocast(comm):
    pair = SmallPair(comm, in_order, before=lambda model: model.float())
    x, y = (tensor.float() for tensor in data())
    with torch.autocast("cpu", torch.bfloat16):
        alone, ours = mse_loss(pair.alone(x), y), mse_loss(pair.net(pair.share(x)), pair.share(y))
    alone.backward()
    ours.backward()
    norms = [clip_grad_norm_(pair.net.parameters(), 1.0, comm), nn.utils.clip_grad_norm_(pair.alone.parameters(), 1.0)]
    assert abs(norms[0] / norms[1] - 1) < 0.02


def run_all(comm):
    for fn in SCENARIOS:
        fn(comm)


def test_training_as_people_write_it_equals_one_process_or_is_refused():
    launch(run_all, world_size=3)


def sharded_and_replicated(comm):
    """Shares along one axis, copies along the other: gradients are averaged over both."""
    mesh = Mesh(comm, dp=2, shard=2)
    alone, model = gpt(0), gpt(comm.rank)
    net = DataParallel(FullySharded(model, mesh["shard"]), mesh["dp"])
    optimizers = [torch.optim.Adam(each.parameters(), lr=1e-2) for each in (alone, net)]
    for step in range(3):
        x, y = batch(step)
        loss_of(alone(x), y).backward()
        loss_of(net(x.chunk(4)[comm.rank]), y.chunk(4)[comm.rank]).backward()
        norms = [nn.utils.clip_grad_norm_(alone.parameters(), 0.5), clip_grad_norm_(net.parameters(), 0.5, mesh)]
        torch.testing.assert_close(norms[1], norms[0], **TIGHT)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for mine, other in zip(net.module.state_dict().values(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, **TIGHT)


def stages_in_shares(comm):
    """Each stage of a pipeline in shares along the other axis."""
    mesh = Mesh(comm, pp=2, shard=2)
    alone, model = gpt(0, tied=False), gpt(comm.rank, tied=False)
    stages = [FullySharded(stage, mesh["shard"]) for stage in split_layers(model.stages(), 2)]
    net = PipelineParallel(stages, mesh["pp"], one_f_one_b(2, 3))
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (alone, net)]
    for step in range(3):
        x, y = batch(step)
        loss_of(alone(x), y).backward()
        net.step(x.chunk(2)[mesh["shard"].rank], y.chunk(2)[mesh["shard"].rank], loss_of)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    theirs = split_layers(alone.stages(), 2)[mesh["pp"].rank]
    (own,) = net.stages.values()
    for mine, other in zip(own.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, **TIGHT)


def on_two_axes(comm):
    sharded_and_replicated(comm)
    stages_in_shares(comm)


def test_with_another_strategy_on_another_axis():
    launch(on_two_axes, world_size=4)
