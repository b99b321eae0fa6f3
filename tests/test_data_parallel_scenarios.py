"""Training code as people write it, on many ranks: each gives what one process gives over all rows, or is refused.

A scenario is one function of `me`, which says which rows are this rank's and how a module is wrapped. Alone it sees all
rows and wraps nothing: that is the right value. The same function then runs in `DataParallel`, and over torch's process
group in torch's DDP as well, for those that DDP gets right.
"""

import copy
import gc
import pickle
import re
import sys
import weakref
from collections import OrderedDict
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from lessons_lib import launch
from lessons_lib.parallel import DataParallel

cloudpickle.register_pickle_by_value(sys.modules[__name__])
NUM_ROWS = 24  # shares of 1 to 4 ranks are even, and halves of them, too
SCENARIOS, REFUSALS = {}, {}


class Alone(nn.Module):
    """A module in one process, behind the same names as a wrapper has."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, weight=None, **kwargs):
        return self.module(*args, **kwargs)

    def no_sync(self):
        return nullcontext()


class Me:
    """What a scenario knows of where it runs: `kind` is "alone", "ours" or "ddp"."""

    def __init__(self, kind, comm, **options):
        self.kind, self.comm, self.options = kind, comm, options
        self.rank, self.world_size = (0, 1) if kind == "alone" else (comm.rank, comm.world_size)

    def wrap(self, module, **options):
        if self.kind == "alone":
            return Alone(module)
        if self.kind == "ddp":
            return DistributedDataParallel(module)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += self.rank
        return DataParallel(module, self.comm, **self.options, **options)

    def rows(self, *tensors):
        """This rank's even share."""
        return self._split([NUM_ROWS // self.world_size] * self.world_size, tensors)

    def uneven(self, *tensors):
        """The first rank has most."""
        return self._split([NUM_ROWS - 2 * (self.world_size - 1)] + [2] * (self.world_size - 1), tensors)

    def empty(self, *tensors):
        """The last of several ranks has none."""
        others = max(self.world_size - 1, 1)
        return self._split([NUM_ROWS // others] * others + [0] * (self.world_size - others), tensors)

    def _split(self, sizes, tensors):
        start = sum(sizes[: self.rank])
        shares = tuple(tensor[start : start + sizes[self.rank]] for tensor in tensors)
        return shares[0] if len(shares) == 1 else shares


def scenario(ddp=True):
    """Register a scenario. `ddp`: whether torch's DDP gets it right, too."""

    def register(function):
        SCENARIOS[function.__name__] = function, ddp
        return function

    return register


def refused(says):
    """Register code that every rank must refuse, in words that match `says`."""

    def register(function):
        REFUSALS[function.__name__] = function, says
        return function

    return register


def data(columns=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_ROWS, columns, generator=generator), torch.randn(NUM_ROWS, 2, generator=generator)


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def grads(*modules):
    return [None if p.grad is None else p.grad.detach().clone() for m in modules for p in m.parameters()]


def params(*modules):
    return [p.detach().clone() for m in modules for p in m.parameters()]


def steps(me, net, optimizer, num=3, shares=None):
    x, y = (shares or me.rows)(*data())
    for _ in range(num):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()


# --- several backward passes, several forward passes ------------------------------------------------------------------


@scenario()
def one_step(me):
    net = me.wrap(small())
    x, y = me.rows(*data())
    nn.functional.mse_loss(net(x), y).backward()
    return grads(net)


@scenario(ddp=False)
def second_backward_through_one_forward(me):
    net = me.wrap(small())
    out = net(me.rows(data()[0]))
    out.mean().backward(retain_graph=True)
    out.square().mean().backward()
    return grads(net)


@scenario(ddp=False)
def two_outputs_two_backwards(me):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = small(), nn.Linear(2, 1), nn.Linear(2, 3)

        def forward(self, x):
            h = self.body(x)
            return self.a(h), self.b(h)

    torch.manual_seed(0)
    net = me.wrap(Heads())
    a, b = net(me.uneven(data()[0]))
    a.mean().backward(retain_graph=True)
    b.square().mean().backward()
    return grads(net)


@scenario()
def two_forwards_two_backwards(me):
    net = me.wrap(small())
    x, y = me.rows(*data())
    for scale in (1, 2):
        nn.functional.mse_loss(net(scale * x), y).backward()
    return grads(net)


@scenario()
def siamese(me):
    net = me.wrap(small())
    x, _ = me.rows(*data())
    other, _ = me.rows(*data(seed=2))
    (net(x) - net(other)).square().sum(1).mean().backward()
    return grads(net)


@scenario(ddp=False)
def two_forwards_with_batch_norm(me):
    torch.manual_seed(0)
    net = me.wrap(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval())
    net.module[1].train()
    x = data()[0]  # all rows on all ranks: statistics are those of a rank
    (net(x).square().mean() + net(2 * x).square().mean()).backward()
    return grads(net)


@scenario()
def batch_norm_in_training_mode_twice(me):
    torch.manual_seed(0)
    net = me.wrap(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    x = data()[0]
    for _ in range(2):
        (net(x)[:, 0].square().mean() + net(2 * x).pow(3).mean()).backward()
    return [*grads(net), *(buffer.clone() for buffer in net.buffers())]


@scenario(ddp=False)
def different_sizes_with_common_ratio_in_one_pass(me):
    net = me.wrap(small())
    x = me.uneven(data()[0])
    twice = torch.cat([x, -x])
    (net(x).mean() + net(twice).square().mean()).backward()
    return grads(net)


@scenario()
def triplet_from_one_forward(me):
    net = me.wrap(small())
    x, _ = me.rows(*data())
    anchor, positive = net(torch.cat([x, 2 * x])).chunk(2)
    nn.functional.triplet_margin_loss(anchor, positive, -anchor).backward()
    return grads(net)


@scenario(ddp=False)
def part_of_the_outputs_is_never_used(me):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = small(0), small(1)

        def forward(self, x):
            return {"a": self.a(x), "b": self.b(x)}

    net = me.wrap(Two())
    net(me.uneven(data()[0]))["a"].mean().backward()
    return grads(net)


# --- forward passes that no backward pass uses ------------------------------------------------------------------------


@scenario(ddp=False)
def past_the_wrapper(me):
    net = me.wrap(small())
    net.module(me.uneven(data()[0])).mean().backward()
    return grads(net)


@scenario()
def a_look_at_outputs_with_graph(me):
    net = me.wrap(small())
    if me.rank == 0:
        net.module(torch.zeros(100, 3))
    one_loss(me, net, me.rows).backward()
    return grads(net)


@scenario(ddp=False)
def a_look_through_the_wrapper_on_one_rank(me):
    net = me.wrap(small())
    if me.rank == 0:
        net(torch.zeros(100, 3))
    one_loss(me, net, me.uneven).backward()
    return grads(net)


def one_loss(me, net, shares):
    x, y = shares(*data())
    return nn.functional.mse_loss(net(x), y)


@scenario()
def failed_batch_is_skipped_everywhere(me):
    net = me.wrap(small())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = me.rows(*data())
    for batch in (x, x[:, :2], x):
        try:
            loss = nn.functional.mse_loss(net(batch), y)
        except RuntimeError:
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return params(net)


@scenario(ddp=False)
def backward_fails_half_way_everywhere(me):
    net = me.wrap(small())
    x, y = me.uneven(*data())

    def fail(gradient):
        raise ValueError("a bad batch")

    handle = net.module[0].weight.register_hook(fail)
    with suppress(ValueError):
        nn.functional.mse_loss(net(x), y).backward()
    handle.remove()
    net.zero_grad()
    nn.functional.mse_loss(net(x), y).backward()
    return grads(net)


@scenario(ddp=False)
def error_kept_after_backward_failed(me):
    net = me.wrap(small())
    x, y = me.uneven(*data())
    errors = []
    handle = net.module[0].weight.register_hook(lambda gradient: 1 / 0)
    for _ in range(2):
        try:
            nn.functional.mse_loss(net(x), y).backward()
        except ZeroDivisionError as error:
            errors.append(error)
    handle.remove()
    net.zero_grad()
    nn.functional.mse_loss(net(x), y).backward()
    return grads(net)


@scenario()
def evaluation_in_between(me):
    net = me.wrap(small())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        steps(me, net, optimizer, 2)
        net.eval()
        with torch.no_grad():
            net(torch.zeros(7 + me.rank, 3))
        net.train()
    return params(net)


@scenario()
def evaluation_on_one_rank(me):
    torch.manual_seed(0)
    net = me.wrap(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        steps(me, net, optimizer, 1)
        if me.rank == 0:
            with torch.inference_mode():
                net.module.eval()(torch.zeros(9, 3))
            net.module.train()
    return params(net)


@scenario()
def generate_then_train(me):
    torch.manual_seed(0)
    net = me.wrap(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)))
    tokens = (torch.arange(NUM_ROWS * 3) % 5).view(NUM_ROWS, 3)
    with torch.no_grad():
        text = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(3 + me.rank):
            text = torch.cat([text, net.module(text)[:, -1:].argmax(-1)], 1)
    mine = me.rows(tokens)
    nn.functional.cross_entropy(net(mine[:, :-1]).flatten(0, 1), mine[:, 1:].flatten()).backward()
    return grads(net)


@scenario(ddp=False)
def several_losses_kept_and_one_dropped(me):
    net = me.wrap(small())
    x, y = me.uneven(*data())
    losses = [nn.functional.mse_loss(net(scale * x), y) for scale in (1, 2, 3)]
    (losses[0] + losses[2]).backward()
    return grads(net)


# --- accumulation -----------------------------------------------------------------------------------------------------


def two_pieces(me):
    x, y = me.rows(*data())
    half = len(x) // 2
    return [(x[:half], y[:half]), (x[half : 2 * half], y[half : 2 * half])]


@scenario()
def accumulation_with_no_sync(me):
    net = me.wrap(small())
    for index, (x, y) in enumerate(two_pieces(me)):
        with net.no_sync() if index == 0 else nullcontext():
            (nn.functional.mse_loss(net(x), y) / 2).backward()
    return grads(net)


@scenario()
def accumulation_without_no_sync(me):
    net = me.wrap(small())
    for x, y in two_pieces(me):
        (nn.functional.mse_loss(net(x), y) / 2).backward()
    return grads(net)


@scenario(ddp=False)
def accumulation_of_uneven_shares(me):
    net = me.wrap(small())
    x, y = me.uneven(*data())
    for scale in (1, 2):
        with net.no_sync() if scale == 1 else nullcontext():
            nn.functional.mse_loss(net(scale * x), y).backward()
    return grads(net)


@scenario()
def accumulation_with_a_smaller_last_piece_everywhere(me):
    net = me.wrap(small())
    x, y = me.rows(*data())
    with net.no_sync():
        (nn.functional.mse_loss(net(x), y) / 2).backward()
    each = len(x) // 3
    more = torch.stack([x[i] for i in range(each)]), torch.stack([y[i] for i in range(each)])
    if me.kind == "alone":  # the same rows as the ranks take
        ranks = [Me("ours", Fake(rank, me.comm.world_size)).rows(*data()) for rank in range(me.comm.world_size)]
        each = NUM_ROWS // me.comm.world_size // 3
        more = torch.cat([x[:each] for x, _ in ranks]), torch.cat([y[:each] for _, y in ranks])
    (nn.functional.mse_loss(net(more[0]), more[1]) / 2).backward()
    return grads(net)


class Fake(NamedTuple):
    rank: int
    world_size: int


@scenario()
def all_forwards_then_all_backwards(me):
    net = me.wrap(small())
    losses = [nn.functional.mse_loss(net(x), y) for x, y in two_pieces(me)]
    sum(losses).backward()
    return grads(net)


@scenario(ddp=False)
def zero_grad_keeps_the_memory(me):
    net = me.wrap(small())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = me.uneven(*data())
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
    return params(net)


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.reentrant = nn.Linear(3, 4), nn.Linear(4, 2), reentrant

    def forward(self, x):
        return checkpoint(self.b, torch.tanh(self.a(x)), use_reentrant=self.reentrant)


def checkpoint_as_last_layer(me, reentrant):
    net = me.wrap(Checkpointed(reentrant))
    for _ in range(2):
        one_loss(me, net, me.rows).backward()
    return grads(net)


SCENARIOS["reentrant_checkpoint_as_last_layer"] = partial(checkpoint_as_last_layer, reentrant=True), True
SCENARIOS["checkpoint_as_last_layer"] = partial(checkpoint_as_last_layer, reentrant=False), True


def whole_net_in_a_checkpoint(me, reentrant):
    net = me.wrap(small())
    x, y = me.uneven(*data())
    x.requires_grad_()
    nn.functional.mse_loss(checkpoint(net, x, use_reentrant=reentrant), y).backward()
    return grads(net)


SCENARIOS["net_in_a_reentrant_checkpoint"] = partial(whole_net_in_a_checkpoint, reentrant=True), False
SCENARIOS["net_in_a_checkpoint"] = partial(whole_net_in_a_checkpoint, reentrant=False), False


@scenario(ddp=False)
def net_beside_a_net_in_a_reentrant_checkpoint(me):
    net = me.wrap(small())
    x, y = me.uneven(*data())
    x.requires_grad_()
    loss = nn.functional.mse_loss(net(x), y) + checkpoint(net, 2 * x, use_reentrant=True).square().mean()
    loss.backward()
    return grads(net)


# --- what people do with gradients and outputs ------------------------------------------------------------------------


@scenario()
def clipping(me):
    net = me.wrap(small())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        one_loss(me, net, me.rows).backward()
        clip_grad_norm_(net.parameters(), 0.1)
        optimizer.step()
    return params(net)


@scenario()
def scaled_loss_and_unscaled_gradients(me):
    net = me.wrap(small())
    (one_loss(me, net, me.rows) * 1024).backward()
    for parameter in net.parameters():
        parameter.grad.div_(1024)
    return grads(net)


@scenario()
def weight_decay_in_the_loss(me):
    net = me.wrap(small())
    penalty = sum(parameter.square().sum() for parameter in net.parameters())
    (one_loss(me, net, me.rows) + 0.1 * penalty).backward()
    return grads(net)


@scenario(ddp=False)
def weight_decay_in_the_loss_of_uneven_shares(me):
    net = me.wrap(small())
    penalty = sum(parameter.square().sum() for parameter in net.parameters())
    (one_loss(me, net, me.uneven) + 0.1 * penalty).backward()
    return grads(net)


@scenario(ddp=False)
def gradient_penalty(me):
    net = me.wrap(small())
    x = me.uneven(data()[0]).requires_grad_()
    out = net(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (out.mean() + (slope.norm(dim=1) - 1).square().mean()).backward()
    return grads(net)


@scenario(ddp=False)
def gradient_penalty_alone(me):
    net = me.wrap(small())
    x = me.uneven(data()[0]).requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    (slope.norm(dim=1) - 1).square().mean().backward()
    return grads(net)


@scenario(ddp=False)
def saliency_on_one_rank(me):
    net = me.wrap(small())
    if me.rank == 0:
        image = torch.zeros(50, 3, requires_grad=True)
        torch.autograd.grad(net(image).sum(), image)
    one_loss(me, net, me.uneven).backward()
    return grads(net)


@scenario()
def in_place_on_the_output(me):
    net = me.wrap(small())
    out = net(me.rows(data()[0]))
    out.mul_(2).relu_()
    out.mean().backward()
    return grads(net)


@scenario(ddp=False)
def in_place_on_an_output_that_is_a_view(me):
    torch.manual_seed(0)
    net = me.wrap(nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))))
    out = net(me.uneven(data()[0]))
    out.mul_(2)
    out.square().mean().backward()
    return grads(net)


@scenario()
def gradients_go_on_to_the_input(me):
    net, features = me.wrap(small()), nn.Linear(3, 3, bias=False)
    nn.init.ones_(features.weight)
    net(features(me.rows(data()[0]))).mean().backward()
    return grads(net)


@scenario()
def backward_from_a_given_gradient(me):
    net = me.wrap(small())
    out = net(me.rows(data()[0]))
    detached = out.detach().requires_grad_()
    detached.square().mean().backward()
    out.backward(detached.grad)
    return grads(net)


@scenario()
def hooks_of_the_user(me):
    net = me.wrap(small())
    seen = []
    net.module[0].weight.register_hook(lambda gradient: 2 * gradient)
    net.module[0].register_full_backward_hook(lambda *args: seen.append(1))
    net.module.register_forward_hook(lambda module, args, out: out * 3)
    one_loss(me, net, me.rows).backward()
    return [*grads(net), torch.tensor(len(seen))]


@scenario()
def loss_is_kept_and_summed(me):
    net = me.wrap(small())
    optimizer, total = torch.optim.SGD(net.parameters(), lr=0.1), 0.0
    for _ in range(3):
        loss = one_loss(me, net, me.rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = total + loss  # keeps every graph
    return params(net)


# --- optimisers and lives of models -----------------------------------------------------------------------------------


@scenario()
def lbfgs(me):
    net = me.wrap(small())
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4, tolerance_change=0, tolerance_grad=0)

    def closure():
        optimizer.zero_grad()
        loss = one_loss(me, net, me.rows)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return params(net)


@scenario()
def adversarial_with_two_optimizers(me):
    torch.manual_seed(0)
    generator, critic = me.wrap(nn.Linear(3, 3)), me.wrap(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    of_generator = torch.optim.Adam(generator.parameters(), lr=0.1)
    of_critic = torch.optim.Adam(critic.parameters(), lr=0.1)
    real, noise = me.rows(data()[0], data(seed=5)[0])
    for _ in range(3):
        of_critic.zero_grad()
        fake = generator(noise)
        loss = nn.functional.softplus(critic(fake.detach())).mean() + nn.functional.softplus(-critic(real)).mean()
        loss.backward()
        of_critic.step()
        of_generator.zero_grad()
        nn.functional.softplus(-critic(generator(noise))).mean().backward()
        of_generator.step()
    return params(generator, critic)


@scenario(ddp=False)
def adversarial_with_a_frozen_critic(me):
    torch.manual_seed(0)
    generator, critic = me.wrap(nn.Linear(3, 3)), me.wrap(nn.Linear(3, 1))
    of_generator = torch.optim.SGD(generator.parameters(), lr=0.1)
    of_critic = torch.optim.SGD(critic.parameters(), lr=0.1)
    real, noise = me.uneven(data()[0], data(seed=5)[0])
    for _ in range(3):
        of_critic.zero_grad()
        with torch.no_grad():
            fake = generator(noise)
        (critic(fake).square().mean() + (critic(real) - 1).square().mean()).backward()
        of_critic.step()
        critic.requires_grad_(False)
        of_generator.zero_grad()
        critic(generator(noise)).mean().backward()
        of_generator.step()
        critic.requires_grad_(True)
    return params(generator, critic)


@scenario()
def moving_average_of_weights(me):
    net = me.wrap(small())
    average = AveragedModel(net.module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        steps(me, net, optimizer, 1)
        average.update_parameters(net.module)
    return params(average)


@scenario(ddp=False)
def tied_weights(me):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Tanh(), nn.Linear(4, 5, bias=False))
    model[2].weight = model[0].weight
    net = me.wrap(model)
    tokens = torch.arange(NUM_ROWS) % 5
    for _ in range(2):
        mine = me.uneven(tokens)
        nn.functional.cross_entropy(net(mine), (mine + 1) % 5).backward()
    return grads(net)


@scenario()
def saved_and_loaded(me):
    net = me.wrap(small())
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    steps(me, net, optimizer)
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    net = me.wrap(small(seed=4))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    steps(me, net, optimizer)
    return params(net)


@scenario()
def copy_of_the_module_trains_alone(me):
    net = me.wrap(small())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    steps(me, net, optimizer)
    teacher, through_pickle = copy.deepcopy(net.module), pickle.loads(pickle.dumps(net.module))
    if me.rank == 0:
        for module in (teacher, through_pickle):
            module(data()[0]).sum().backward()
    (net(me.rows(data()[0])) - teacher(2 * me.rows(data()[0])).detach()).square().mean().backward()
    return grads(net)


@scenario(ddp=False)
def wrapped_again(me):
    model = small()
    net = me.wrap(model)
    steps(me, net, torch.optim.SGD(net.parameters(), lr=0.1), shares=me.uneven)
    if me.kind == "ours":
        net = DataParallel(model, me.comm, **me.options)
    one_loss(me, net, me.uneven).backward()
    return grads(net)


@scenario(ddp=False)
def wrapped_again_while_the_old_wrapper_lives(me):
    model = small()
    old = me.wrap(model)
    one_loss(me, old, me.uneven).backward()
    net = DataParallel(model, me.comm, **me.options) if me.kind == "ours" else old
    net.zero_grad()
    one_loss(me, net, me.uneven).backward()
    return grads(net)


@scenario(ddp=False)
def wrapper_is_gone(me):
    model = small()
    net = me.wrap(model)
    loss = one_loss(me, net, me.uneven)
    loss.backward()
    del net
    for parameter in model.parameters():
        parameter.grad = None
    if me.rank == 0:
        model(data()[0]).mean().backward()  # on this rank alone: a plain module
    expected = small()
    expected.load_state_dict(model.state_dict())
    expected(data()[0]).mean().backward()
    for parameter, right in zip(model.parameters(), expected.parameters(), strict=True):
        assert me.rank or torch.equal(parameter.grad, right.grad)
    return params(model)


@scenario(ddp=False)
def frozen_midway(me):
    net = me.wrap(small())
    x, y = me.uneven(*data())
    for frozen in (False, True, False):
        net.module[0].requires_grad_(not frozen)
        net.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    return params(net)


@scenario(ddp=False)
def thawed_after_wrapping(me):
    model = small()
    model[0].requires_grad_(False)
    net = me.wrap(model)
    for index in range(3):
        if index == 1:
            net.module[0].requires_grad_(True)
        one_loss(me, net, me.uneven).backward()
    return grads(net)


@scenario(ddp=False)
def layer_replaced_after_wrapping(me):
    net = me.wrap(small())
    one_loss(me, net, me.uneven).backward()
    torch.manual_seed(7 + me.rank)
    net.module[2] = nn.Linear(5, 2)
    net.zero_grad()
    one_loss(me, net, me.uneven).backward()
    return grads(net)


@scenario(ddp=False)
def other_dtype_after_wrapping(me):
    net = me.wrap(small().float()).double()
    for _ in range(2):
        one_loss(me, net, me.uneven).backward()
    return [gradient for gradient in grads(net) if gradient.dtype == torch.float64]


@scenario(ddp=False)
def some_ranks_leave_a_layer_out(me):
    class Maybe(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = small(0), small(1)

        def forward(self, x):
            last = x[:, 0] == x[-1, 0] if len(x) else x[:, 0] == 0
            return self.a(x) + (self.b(x) if me.rank == 0 else 0 * last[:, None])

    net = me.wrap(Maybe())
    out = net(me.rows(data()[0]))
    out.mean().backward()
    if me.kind == "alone":  # the first rank's rows alone go through b
        for parameter in net.module.b.parameters():
            parameter.grad = None
        first = NUM_ROWS // me.comm.world_size
        net.module.b(data()[0])[:first].sum().div(NUM_ROWS * 2).backward()
    return grads(net)


# --- what forward is given and gives ----------------------------------------------------------------------------------


class Pair(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


@dataclass
class Out:
    logits: torch.Tensor
    rest: dict


class Box:
    def __init__(self, x):
        self.x = x


class Any(nn.Module):
    """Takes the batch in some container and gives its outputs in another."""

    def __init__(self, get, give):
        super().__init__()
        self.body, self.get, self.give = small(), get, give

    def forward(self, batch, **more):
        return self.give(self.body(self.get(batch)))


CONTAINERS = {
    "dict": (lambda x: {"x": x}, lambda batch: batch["x"]),
    "ordered_dict": (lambda x: OrderedDict(x=x), lambda batch: batch["x"]),
    "list_in_dict": (lambda x: {"a": [x, x], "n": 3, "words": ["a"]}, lambda batch: batch["a"][0]),
    "named_tuple": (lambda x: Pair(x, x), lambda batch: batch.hidden),
    "data_class": (lambda x: Out(x, {"x": x}), lambda batch: batch.rest["x"]),
    "object": (Box, lambda batch: batch.x),
    "tensor": (lambda x: x, lambda batch: batch),
}


def through_containers(me, pack, unpack):
    net = me.wrap(Any(unpack, pack))
    out = net(pack(me.uneven(data()[0])), training=True)
    unpack(out).square().mean().backward()
    return grads(net)


for name, (pack, unpack) in CONTAINERS.items():
    SCENARIOS[f"through_{name}"] = partial(through_containers, pack=pack, unpack=unpack), False


@scenario(ddp=False)
def keywords_only(me):
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small()

        def forward(self, *, x, scale=1.0):
            return self.body(x) * scale

    net = me.wrap(Keywords())
    net(scale=2.0, x=me.uneven(data()[0])).mean().backward()
    return grads(net)


@scenario(ddp=False)
def time_first(me):
    torch.manual_seed(0)
    net = me.wrap(nn.GRU(3, 4), batch_dim=1) if me.kind == "ours" else me.wrap(nn.GRU(3, 4))
    x = me.uneven(data()[0]).expand(5, -1, -1)
    net(x)[0].mean().backward()
    return grads(net)


@scenario(ddp=False)
def packed_sequences(me):
    torch.manual_seed(0)
    model = nn.GRU(3, 4, batch_first=True)
    net = me.wrap(model)
    x = me.uneven(data()[0]).unsqueeze(1).expand(-1, 3, -1)
    packed = nn.utils.rnn.pack_padded_sequence(x, [3] * len(x), batch_first=True)
    net(packed)[0].data.mean().backward()
    return grads(net)


@scenario(ddp=False)
def mean_over_tokens(me):
    torch.manual_seed(0)
    net = me.wrap(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)))
    tokens = (torch.arange(NUM_ROWS * 4) * 5 % 7).view(NUM_ROWS, 4)
    lengths = torch.arange(NUM_ROWS) % 4 + 1
    is_token = torch.arange(4) < lengths[:, None]
    tokens, is_token = me.rows(tokens, is_token)
    more = {"weight": is_token.sum()} if me.kind == "ours" else {}
    out = net(tokens, **more)
    nn.functional.cross_entropy(out[is_token], tokens[is_token]).backward()
    return grads(net)


@scenario(ddp=False)
def mask_of_another_length(me):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small()

        def forward(self, x, mask):
            return self.body(x * mask[0])

    net = me.wrap(Masked())
    for _ in range(2):
        net(me.rows(data()[0]), torch.ones(5, 3)).square().mean().backward()
    return grads(net)


@scenario(ddp=False)
def the_modules_own_weight(me):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small()

        def forward(self, x, weight):
            return self.body(x) * weight

    net = me.wrap(Weighted())
    args = (me.uneven(data()[0]),)
    (net(*args, weight=3.0) if me.kind == "ours" else net.module(*args, weight=3.0)).mean().backward()
    return grads(net)


# --- shares -----------------------------------------------------------------------------------------------------------


@scenario(ddp=False)
def uneven_shares(me):
    net = me.wrap(small())
    steps(me, net, torch.optim.Adam(net.parameters(), lr=0.1), shares=me.uneven)
    return params(net)


@scenario(ddp=False)
def empty_share(me):
    net = me.wrap(small())
    steps(me, net, torch.optim.Adam(net.parameters(), lr=0.1), shares=me.empty)
    return params(net)


@scenario(ddp=False)
def shares_that_change(me):
    net = me.wrap(small())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for shares in (me.uneven, me.rows, me.empty, me.uneven):
        steps(me, net, optimizer, 1, shares)
    return params(net)


@scenario(ddp=False)
def no_samples_anywhere(me):
    net = me.wrap(small())
    one_loss(me, net, me.uneven).backward()
    net(torch.zeros(0, 3)).sum().backward()
    return grads(net)


@scenario(ddp=False)
def batch_sizes_of_half_precision(me):
    model = nn.Linear(1, 1, bias=False).half()
    nn.init.ones_(model.weight)
    net = me.wrap(model)
    found = []
    for size in (1, 1024, 3):
        net.zero_grad()
        net(torch.full((size, 1), 64.0, dtype=torch.half)).mean().backward()
        found += grads(net)
    return found


# --- what is refused --------------------------------------------------------------------------------------------------


@refused("no forward pass of the wrapped module led to")
def a_submodule_past_the_wrapper(me):
    net = me.wrap(small())
    net.module[2](net.module[0](me.rows(data()[0]))).mean().backward()


@refused("create_graph=True")
def a_graph_of_the_average(me):
    net = me.wrap(small())
    one_loss(me, net, me.rows).backward(create_graph=True)


@refused("sparse=True")
def sparse_embedding(me):
    me.wrap(nn.Embedding(3, 2, sparse=True))


@refused("layout torch.sparse_coo")
def sparse_gradient(me):
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(3, 2))

        def forward(self, index):
            return nn.functional.embedding(index, self.table, sparse=True)

    net = me.wrap(Sparse())
    net(torch.arange(3)).sum().backward()


@refused("has no shape yet")
def lazy_layer(me):
    me.wrap_unchanged(nn.Sequential(nn.LazyLinear(2)))


@refused("expanded tensor")
def expanded_buffer(me):
    model = small()
    model.register_buffer("scale", torch.zeros(1).expand(4))
    me.wrap(model)


@refused("is a DataParallel")
def wrapped_twice(me):
    me.wrap(me.wrap(small()))


@refused("is a DataParallel")
def wrapped_inside(me):
    me.wrap(nn.Sequential(me.wrap(small())))


@refused("wrapped again")
def the_old_wrapper(me):
    model = small()
    net = me.wrap(model)
    _new = me.wrap(model)
    net(me.rows(data()[0]))


@refused("wrapped again")
def a_loss_of_the_old_wrapper(me):
    model = small()
    net = me.wrap(model)
    loss = one_loss(me, net, me.rows)
    _new = me.wrap(model)
    loss.backward()


@refused("that is gone")
def a_loss_of_a_wrapper_that_is_gone(me):
    net = me.wrap(small())
    loss = one_loss(me, net, me.rows)
    del net
    loss.backward()


@refused("batch_first=False")
def lstm_without_batch_dim(me):
    me.wrap(nn.Sequential(nn.LSTM(3, 4)))


@refused("weight=n")
def no_tensor_to_count(me):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(3))

        def forward(self, name):
            return self.table

    me.wrap(Table())("all")


@refused("weight=-1")
def negative_weight(me):
    me.wrap(small())(me.rows(data()[0]), weight=-1)


@refused("batch_dim=-1")
def negative_batch_dim(me):
    me.wrap(small(), batch_dim=-1)


@refused("use net.module")
def copied(me):
    copy.deepcopy(me.wrap(small()))


@refused("use net.module")
def pickled(me):
    pickle.dumps(me.wrap(small()))


@refused("AveragedModel")
def averaged_model_of_the_wrapper(me):
    AveragedModel(me.wrap(small()))


@refused("taken away before it was averaged")
def step_in_a_hook_of_the_parameter(me):
    net = me.wrap(small())

    def step(parameter):
        parameter.grad = None

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    one_loss(me, net, me.rows).backward()


@refused("have changed since it was wrapped")
def a_new_layer_past_the_wrapper(me):
    net = me.wrap(small())
    net.module[2] = nn.Linear(5, 2)
    net.module(me.rows(data()[0])).mean().backward()


# These need two ranks at least, to disagree.


@refused("average different backward passes")
def one_rank_skips_a_pass_that_failed(me):
    net = me.wrap(small())
    handle = net.module[0].weight.register_hook(lambda gradient: 1 / 0) if me.rank == 0 else None
    try:
        one_loss(me, net, me.rows).backward()
    except ZeroDivisionError:
        handle.remove()
        one_loss(me, net, me.rows).backward()


@refused("average different backward passes")
def another_number_of_accumulated_passes(me):
    net = me.wrap(small())
    with net.no_sync():
        for _ in range(1 + (me.rank == 0)):
            one_loss(me, net, me.rows).backward()
    one_loss(me, net, me.rows).backward()


@refused("it is not clear how much")
def accumulation_whose_ratio_changes(me):
    net = me.wrap(small())
    with net.no_sync():
        one_loss(me, net, me.rows).backward()
    one_loss(me, net, me.uneven).backward()


@refused("it is not clear how much.*rank 0: [0-9]+, 5; rank 1")
def inputs_that_leave_the_batch_open(me):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small()

        def forward(self, x, mask):
            return self.body(x * mask[0])

    net = me.wrap(Masked())
    net(me.uneven(data()[0]), torch.ones(5, 3)).mean().backward()


@refused("average different backward passes|no forward pass")
def one_rank_past_the_wrapper(me):
    net = me.wrap(small())
    x = me.rows(data()[0])
    (net(x) if me.rank else net.module[2](net.module[0](x))).mean().backward()


NEED_TWO = (
    "one_rank_skips_a_pass_that_failed",
    "another_number_of_accumulated_passes",
    "accumulation_whose_ratio_changes",
    "inputs_that_leave_the_batch_open",
    "one_rank_past_the_wrapper",
)


# --- running them -----------------------------------------------------------------------------------------------------


def difference(found, right):
    """None, or what is wrong."""
    if len(found) != len(right):
        return f"{len(found)} tensors instead of {len(right)}"
    for index, (one, other) in enumerate(zip(found, right, strict=True)):
        if (one is None) != (other is None):
            return f"tensor {index} is {one} instead of {other}"
        if one is not None and not torch.allclose(one.double(), other.double(), rtol=1e-9, atol=1e-9):
            return f"tensor {index} is {one.flatten()[:4].tolist()} instead of {other.flatten()[:4].tolist()}"
    return None


def outcomes(comm, names, kinds, overlap, bucket_cap_mb):
    """For each scenario and kind of wrapper: None if it is right, else what is wrong with it."""
    torch.set_default_dtype(torch.float64)
    found = {}
    for name in names:
        function, _ = SCENARIOS[name]
        right = function(Me("alone", comm))
        for kind in kinds:
            options = {"overlap": overlap, "bucket_cap_mb": bucket_cap_mb} if kind == "ours" else {}
            try:
                found[name, kind] = difference(function(Me(kind, comm, **options)), right)
            except Exception as error:
                found[name, kind] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_training_code_gives_what_one_process_gives(transport, world_size, overlap):
    results = launch(outcomes, list(SCENARIOS), ["ours"], overlap, 1e-4, world_size=world_size, transport=transport)
    assert [{name: wrong for name, wrong in found.items() if wrong} for found in results] == [{}] * world_size


def test_torchs_ddp_agrees_where_it_is_meant_for_this():
    names = [name for name, (_, ddp) in SCENARIOS.items() if ddp]
    results = launch(outcomes, names, ["ddp"], None, None, world_size=2, transport="torch")
    assert [{name: wrong for name, wrong in found.items() if wrong} for found in results] == [{}] * 2


class Refusing(Me):
    def wrap_unchanged(self, module):
        return DataParallel(module, self.comm, **self.options)


def refusals(comm, names, overlap):
    torch.set_default_dtype(torch.float64)
    said = {}
    for name in names:
        try:
            REFUSALS[name][0](Refusing("ours", comm, overlap=overlap))
            said[name] = None
        except Exception as error:
            said[name] = str(error)
    return said


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_what_cannot_be_right_is_refused_on_every_rank(transport, world_size, overlap):
    names = [name for name in REFUSALS if world_size > 1 or name not in NEED_TWO]
    for said in launch(refusals, names, overlap, world_size=world_size, transport=transport):
        for name in names:
            assert said[name] and re.search(REFUSALS[name][1], said[name]), f"{name}: {said[name]}"


def freed(comm):
    net = DataParallel(small(), comm)
    module = net.module
    net(data()[0].float()).mean().backward()
    watched = [weakref.ref(net), weakref.ref(net._reducer), weakref.ref(net._counter)]
    gc.disable()  # nothing may need it
    del net
    alive = [ref() is not None for ref in watched]
    gc.enable()
    hooks = len(module._forward_hooks) + sum(len(p._post_accumulate_grad_hooks or ()) for p in module.parameters())
    return alive, hooks


def test_a_wrapper_that_nobody_holds_is_freed_and_leaves_no_hook():
    assert launch(freed, world_size=2) == [([False] * 3, 0)] * 2
