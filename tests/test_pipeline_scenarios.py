"""Training code as people write it, through a pipeline and beside one process: equal, or refused on all ranks."""

import copy
import io
import pickle
import re
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lessons_lib import CollectiveMismatch, RankFailed, launch
from lessons_lib.parallel import PipelineParallel, clip_grad_norm_, split_layers
from lessons_lib.schedules import gpipe, interleaved, one_f_one_b, zb_h1, zbv

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
PARTS, WIDTH = 4, 6
RIGHT, REFUSED = {}, {}


def mse(output, target):
    return F.mse_loss(output, target)


def mlp(num_layers=4, layer=None):
    layer = layer or (lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()))
    return [layer() for _ in range(num_layers)]


class Pair:
    """A pipeline over all ranks, and the same model in one process.

    Args:
        comm: the communicator.
        make: a function that makes the list of layers.
        program: for (ranks, micro-batches).
        optimiser: a function of parameters.
    """

    def __init__(self, comm, make=mlp, program=zb_h1, optimiser=None, loss_fn=mse, prepare=None):
        self.comm, self.loss_fn = comm, loss_fn
        optimiser = optimiser or (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
        made = program(comm.world_size, PARTS)
        both = []
        for seed in (0, comm.rank):
            torch.manual_seed(seed)
            both.append([layer.double() for layer in make()])
        (self.layers, layers), self.cuts = both, made.num_stages
        self.alone, self.theirs = nn.Sequential(*self.layers), split_layers(self.layers, made.num_stages)
        self.net = PipelineParallel(split_layers(layers, made.num_stages), comm, made)
        for model in (self.alone, nn.Sequential(*layers)):
            if prepare:
                prepare(model)
        self.optimisers = optimiser(self.alone.parameters()), optimiser(self.trained())
        self.draw = torch.Generator().manual_seed(1)

    def trained(self):
        """The parameters that are here, or another one: an optimiser wants at least one."""
        return list(self.net.parameters()) or [nn.Parameter(torch.zeros(1))]

    def batch(self, rows=2 * PARTS):
        return tuple(torch.randn(2, rows, WIDTH, dtype=torch.float64, generator=self.draw))

    def backward(self, *batch, loss_fn=None, theirs=None):
        """One batch forward and backward on both; the losses must be equal."""
        x, y = batch or self.batch()
        loss_fn = loss_fn or self.loss_fn
        expected = (theirs or loss_fn)(self.alone(x), y)
        expected.sum().backward()
        loss = self.net.step(x, y, loss_fn)
        torch.testing.assert_close(loss, expected.detach().reshape(()), **TIGHT, check_dtype=False)
        self.check()

    def update(self):
        for optimizer in self.optimisers:
            optimizer.step()
            optimizer.zero_grad()
        self.check()

    def train(self, steps=2, **options):
        for _ in range(steps):
            self.backward(**options)
            self.update()

    def check(self):
        """Weights, gradients and buffers are those of one process."""
        for number, module in self.net.stages.items():
            other = dict(self.theirs[int(number)].named_parameters(remove_duplicate=False))
            for name, mine in module.named_parameters(remove_duplicate=False):
                torch.testing.assert_close(mine, other[name], **TIGHT)
                assert (mine.grad is None) == (other[name].grad is None), f"{name}: {mine.grad} and {other[name].grad}"
                if mine.grad is not None:
                    torch.testing.assert_close(mine.grad.to_dense(), other[name].grad.to_dense(), **TIGHT)

    def on_both(self, change):
        """`change(layers)` for one process, and for the pipeline, where layers that are not here are None."""
        change(list(self.layers))
        here = [None] * len(self.layers)
        for module in self.net.stages.values():
            for name, layer in module.named_children():
                here[int(name)] = layer
        change(here)


def right(scenario):
    RIGHT[scenario.__name__] = scenario
    return scenario


def refused(*errors, match=""):
    def note(scenario):
        REFUSED[scenario.__name__] = scenario, errors, match
        return scenario

    return note


# --- loops ------------------------------------------------------------------------------------------------------------


@right
def a_plain_loop(comm):
    Pair(comm).train(3)


@right
def accumulation_over_three_batches(comm):
    pair = Pair(comm)
    for _ in range(2):
        for _ in range(3):
            pair.backward()
        pair.update()


@right
def gradients_set_to_zero(comm):
    pair = Pair(comm)
    for _ in range(3):
        pair.backward()
        for optimizer in pair.optimisers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)


@right
def evaluation_in_between(comm):
    pair = Pair(comm, lambda: [*mlp(3), nn.Dropout(0.0)])
    for _ in range(2):
        pair.backward()
        x, _ = pair.batch()
        torch.testing.assert_close(pair.net(x), pair.alone(x).detach(), **TIGHT)
        pair.update()
        pair.net.eval()
        assert not any(module.training for module in pair.net.stages.modules())
        with torch.no_grad():
            torch.testing.assert_close(pair.net(x[:3]), pair.alone(x[:3]), **TIGHT)
        pair.net.train()


@right
def batches_of_other_lengths(comm):
    pair = Pair(comm)
    for rows in (8, 4, 12, 8):
        pair.backward(*pair.batch(rows))
        pair.update()


@right
def adam_with_weight_decay(comm):
    Pair(comm, optimiser=lambda parameters: torch.optim.AdamW(parameters, lr=0.01)).train(3)


@right
def a_scheduler(comm):
    pair = Pair(comm)
    schedulers = [torch.optim.lr_scheduler.StepLR(each, 1, 0.5) for each in pair.optimisers]
    for _ in range(3):
        pair.train(1)
        for scheduler in schedulers:
            scheduler.step()


@right
def clipping_by_the_norm_of_all_stages(comm):
    pair = Pair(comm)
    for _ in range(3):
        pair.backward()
        expected = nn.utils.clip_grad_norm_(pair.alone.parameters(), 0.05)
        torch.testing.assert_close(clip_grad_norm_(pair.net.parameters(), 0.05, comm), expected, **TIGHT)
        pair.check()
        pair.update()


@right
def clipping_with_tied_tables(comm):
    pair = Pair(comm, tied)
    for _ in range(3):
        pair.backward()
        expected = nn.utils.clip_grad_norm_(pair.alone.parameters(), 0.05)
        torch.testing.assert_close(clip_grad_norm_(pair.net.parameters(), 0.05, comm), expected, **TIGHT)
        pair.update()


@right
def clipping_after_a_layer_was_replaced(comm):
    pair = Pair(comm)

    def replace(layers):
        torch.manual_seed(9)
        new = nn.Linear(WIDTH, WIDTH).double()
        if layers[1] is not None:
            layers[1][0] = new

    pair.on_both(replace)
    pair.backward()
    expected = nn.utils.clip_grad_norm_(pair.alone.parameters(), 0.05)
    torch.testing.assert_close(clip_grad_norm_(pair.net.parameters(), 0.05, comm), expected, **TIGHT)


@right
def gradients_dropped_by_hand(comm):
    pair = Pair(comm)
    pair.backward()
    for parameter in [*pair.alone.parameters(), *pair.net.parameters()]:
        parameter.grad = None
    pair.train(1)


@right
def a_view_of_one_flat_gradient(comm):
    """Whoever keeps gradients in one flat tensor still finds them there."""
    pair = Pair(comm)
    flat = torch.zeros(sum(p.numel() for p in pair.net.parameters()), dtype=torch.float64)
    place = 0
    for p in pair.net.parameters():
        p.grad = flat[place : place + p.numel()].view_as(p)
        place += p.numel()
    for p in pair.alone.parameters():
        p.grad = torch.zeros_like(p)
    pair.backward()
    pair.backward()
    expected = torch.cat([p.grad.flatten() for n in pair.net.stages for p in pair.theirs[int(n)].parameters()])
    torch.testing.assert_close(flat, expected, **TIGHT)


@right
def an_optimiser_over_all_layers(comm):
    """Made before the pipeline was, over layers that this rank does not keep."""
    torch.manual_seed(0)
    layers = [layer.double() for layer in mlp()]
    optimizer = torch.optim.SGD([p for layer in layers for p in layer.parameters()], lr=0.1)
    net = PipelineParallel(split_layers(layers, comm.world_size), comm, one_f_one_b(comm.world_size, PARTS))
    pair = Pair(comm, optimiser=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    for _ in range(2):
        x, y = pair.batch()
        pair.backward(x, y)
        net.step(x, y, mse)
        optimizer.step()
        optimizer.zero_grad()
        pair.update()
    for mine, other in zip(net.parameters(), pair.net.parameters(), strict=True):
        torch.testing.assert_close(mine, other, **TIGHT)


@right
def anomaly_detection(comm):
    with torch.autograd.set_detect_anomaly(True):
        Pair(comm).train(1)


@right
def gradients_switched_on_within_no_grad(comm):
    pair = Pair(comm)
    with torch.no_grad(), torch.enable_grad():
        pair.train(1)


@right
def a_batch_changed_right_after_the_step(comm):
    pair = Pair(comm)
    x, y = pair.batch()
    for _ in range(3):
        pair.backward(x, y)
        pair.update()
        x.mul_(1.5)
        y.add_(0.5)


@right
def strided_batches(comm):
    pair = Pair(comm)
    x, y = pair.batch(4 * PARTS)
    pair.backward(x[::2], y[1::2])
    wide = torch.randn(WIDTH, 2 * PARTS, dtype=torch.float64, generator=pair.draw)
    pair.backward(wide.T, wide.T.flip(0))


@right
def a_micro_batch_that_gives_nan(comm):
    pair = Pair(comm)
    x, y = pair.batch()
    x[3] = float("nan")
    expected = mse(pair.alone(x), y)
    assert expected.isnan() and pair.net.step(x, y, mse).isnan()
    assert all(parameter.grad.isnan().any() for parameter in pair.net.parameters())


# --- losses -----------------------------------------------------------------------------------------------------------


@right
def a_loss_of_shape_one(comm):
    Pair(comm).train(2, loss_fn=lambda output, target: mse(output, target).view(1), theirs=mse)


@right
def a_loss_that_is_a_module(comm):
    Pair(comm, loss_fn=nn.SmoothL1Loss()).train(2)


@right
def targets_that_are_the_input(comm):
    pair = Pair(comm)
    x, _ = pair.batch()
    pair.backward(x, x)


@right
def targets_in_one_row(comm):
    """As language models have them: one target for each number that comes out, in the order of the samples."""
    pair = Pair(comm, loss_fn=lambda output, target: mse(output.flatten(), target))
    x, y = pair.batch()
    pair.backward(x, y.flatten())


@right
def targets_that_are_classes(comm):
    pair = Pair(comm, loss_fn=nn.CrossEntropyLoss(label_smoothing=0.1))
    x, _ = pair.batch()
    pair.backward(x, torch.randint(WIDTH, (len(x),), generator=pair.draw))


@right
def a_loss_with_a_penalty_on_the_output(comm):
    def with_penalty(output, target):
        slope = torch.autograd.grad(output.pow(3).sum(), output, create_graph=True)[0]
        return mse(output, target) + slope.square().mean()

    Pair(comm).train(2, loss_fn=with_penalty)


@right
def a_loss_that_ends_its_own_graph_first(comm):
    """Somebody measures the gradient by the output before the real backward."""

    def measured(output, target):
        loss = mse(output, target)
        torch.autograd.grad(loss, output, retain_graph=True)
        return loss

    Pair(comm).train(2, loss_fn=measured)


@right
def a_loss_that_does_not_use_the_targets(comm):
    Pair(comm).train(2, loss_fn=lambda output, target: output.square().mean())


# --- layers -----------------------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A linear layer, and a function (layer, x) that uses it."""

    def __init__(self, use, **options):
        super().__init__()
        self.layer, self.use = nn.Linear(WIDTH, WIDTH, **options), use

    def forward(self, x):
        return self.use(self.layer, x)


def using(use, **options):
    """Layers that all use a linear layer in the same way."""
    return lambda: [Wrapped(use, **options) for _ in range(4)]


USES = {
    "checkpointing": lambda layer, x: checkpoint(lambda x: layer(x).tanh(), x, use_reentrant=False),
    "checkpointing_the_old_way": lambda layer, x: checkpoint(
        lambda x: layer(x).tanh(), x if x.requires_grad else x.detach().requires_grad_(), use_reentrant=True
    ),
    "named_arguments": lambda layer, x: F.linear(input=x, bias=layer.bias, weight=layer.weight).tanh(),
    "single_samples": lambda layer, x: torch.stack([layer(sample) for sample in x]).tanh(),
    "more_dimensions": lambda layer, x: layer(x.view(1, -1, 1, WIDTH)).view(-1, WIDTH).tanh(),
    "a_transposed_input": lambda layer, x: layer(x.T.contiguous().T).tanh(),
    "a_layer_used_twice": lambda layer, x: layer(layer(x).tanh()),
    "a_weight_used_otherwise_too": lambda layer, x: (layer(x) + x @ layer.weight * 0.5).tanh(),
    "a_scaled_weight": lambda layer, x: F.linear(x, layer.weight * 2, layer.bias).tanh(),
    "a_transposed_weight": lambda layer, x: F.linear(x, layer.weight.T, layer.bias).tanh(),
    "a_bias_of_one_number": lambda layer, x: F.linear(x, layer.weight, layer.bias[:1].expand(WIDTH)).tanh(),
    "a_vector_as_weight": lambda layer, x: (layer(x) + F.linear(x, layer.bias).unsqueeze(1)).tanh(),
    "a_detached_branch": lambda layer, x: (layer(x) + layer(x.detach()).square()).tanh(),
    "a_branch_without_gradients": lambda layer, x: (layer(x) * no_graph(layer, x)).tanh(),
    "a_frozen_copy": lambda layer, x: F.linear(layer(x).tanh(), layer.weight.detach()),
    "an_operation_in_place": lambda layer, x: F.relu(layer(x), inplace=True),
    "a_slope_inside": lambda layer, x: slope_of(layer, x),
    "a_slope_of_the_weight_inside": lambda layer, x: (x * weight_slope_of(layer, x)).tanh(),
    "transforms_of_torch_func": lambda layer, x: torch.func.vmap(lambda sample: layer(sample).tanh())(x),
    "a_gradient_by_torch_func": lambda layer, x: torch.func.vmap(
        torch.func.grad(lambda sample: layer(sample).square().sum())
    )(x),
    "a_functional_call": lambda layer, x: torch.func.functional_call(
        layer, {"weight": layer.weight * 3, "bias": layer.bias}, (x,)
    ).tanh(),
    "tensors_saved_on_the_cpu": lambda layer, x: saved(torch.autograd.graph.save_on_cpu(), layer, x),
    "tensors_packed_by_twos": lambda layer, x: saved(
        torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach() * 2, lambda t: t / 2), layer, x
    ),
    "a_hook_on_the_output": lambda layer, x: hooked(layer(x).tanh(), lambda gradient: 2 * gradient),
    "a_hook_that_makes_no_gradient_large": lambda layer, x: hooked(layer(x), cut_off),
    "an_output_in_another_order": lambda layer, x: layer(x).tanh().T.contiguous().T,
    "an_expanded_output": lambda layer, x: layer(x).mean(1, keepdim=True).expand(-1, WIDTH),
    "a_number_of_the_batch": lambda layer, x: layer(x) * len(x),
}


def no_graph(layer, x):
    with torch.no_grad():
        return layer(x)


def slope_of(layer, x):
    x = x if x.requires_grad else x.clone().requires_grad_()
    return torch.autograd.grad(layer(x).tanh().square().sum(), x, create_graph=True)[0]


def weight_slope_of(layer, x):
    return torch.autograd.grad(layer(x[:1]).tanh().sum(), layer.weight, create_graph=True)[0].norm()


def saved(hooks, layer, x):
    with hooks:
        return layer(x).tanh()


def cut_off(gradient):
    return gradient.clamp(-1e-3, 1e-3)


def hooked(output, hook):
    if output.requires_grad:
        output.register_hook(hook)
    return output


def of_use(name, use):
    """A scenario in which all layers use their linear layer so; one process takes the micro-batches one by one."""
    per_part = name in ("a_hook_that_makes_no_gradient_large", "a_slope_of_the_weight_inside", "a_number_of_the_batch")

    def scenario(comm):
        pair = Pair(comm, using(use))
        if per_part:
            in_parts(pair, 2)
        else:
            pair.train(2)

    scenario.__name__ = name
    return scenario


def in_parts(pair, steps):
    """One process that goes through the micro-batches too, where a layer looks at the whole batch."""
    for _ in range(steps):
        x, y = pair.batch()
        for part in zip(x.chunk(PARTS), y.chunk(PARTS), strict=True):
            (pair.loss_fn(pair.alone(part[0]), part[1]) / PARTS).backward()
        pair.net.step(x, y, pair.loss_fn)
        pair.check()
        pair.update()


for _name, _use in USES.items():
    right(of_use(_name, _use))


class Applied(nn.Module):
    """A function as a layer."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


class Scaled(nn.Module):
    """A layer with one number."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return x * self.scale


def around(*layers):
    """A linear layer before, and one after, so that each of two stages has something to train."""
    return lambda: [nn.Linear(WIDTH, WIDTH), *(make() for make in layers), nn.Linear(WIDTH, WIDTH)]


LAYERS = {
    "attention": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True),
    "layer_norm": lambda: nn.LayerNorm(WIDTH),
    "batch_norm_with_fixed_statistics": lambda: nn.BatchNorm1d(WIDTH).eval(),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "a_bilinear_layer": lambda: Applied(lambda x: x * x.roll(1, -1)),
    "a_single_number": Scaled,
    "no_parameters": nn.Tanh,
    "nothing_at_all": nn.Identity,
    "a_dropout_that_drops_nothing": lambda: nn.Dropout(0.0),
    "a_linear_layer_without_bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "a_change_of_dtype": lambda: Applied(lambda x: x.float().double()),
}


def of_layers(name, make):
    def scenario(comm):
        if name == "attention":
            longer, back = Applied(lambda x: x.unsqueeze(1)), Applied(lambda x: x.flatten(1))
            pair = Pair(comm, around(lambda: longer, make, lambda: back))
        else:
            pair = Pair(comm, around(make, make))
        in_parts(pair, 2) if name == "a_change_of_dtype" else pair.train(2)

    scenario.__name__ = name
    return scenario


for _name, _make in LAYERS.items():
    right(of_layers(_name, _make))


@right
def batch_norm_as_in_micro_batches(comm):
    in_parts(Pair(comm, around(lambda: nn.BatchNorm1d(WIDTH), nn.Tanh)), 2)


class Recurrent(nn.Module):
    """The rows as a sequence: it looks at all rows of a micro-batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(WIDTH, WIDTH)

    def forward(self, x):
        return self.layer(x)[0]


@right
def a_recurrent_layer(comm):
    in_parts(Pair(comm, around(Recurrent)), 2)


@right
def convolutions(comm):
    def make():
        image = Applied(lambda x: x.view(-1, 1, 2, 3))
        return [image, nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 2), nn.Flatten()]

    Pair(comm, make).train(2)


def linear():
    return nn.Linear(WIDTH, WIDTH)


def whole(x):
    return (x * 3).long().clamp(0, 4)


@right
def whole_numbers_between_stages(comm):
    Pair(comm, lambda: [linear(), Applied(whole), nn.Embedding(5, 1), nn.Flatten()]).train(2)


@right
def truths_between_stages(comm):
    Pair(comm, lambda: [linear(), Applied(lambda x: x > 0), Applied(lambda x: x.double()), linear()]).train(2)


def decaying(parameters):
    """Shows whether there is no gradient, or one of zeros."""
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5)


@right
def a_stage_that_detaches(comm):
    Pair(comm, lambda: [linear(), linear(), Applied(torch.Tensor.detach), linear()], optimiser=decaying).train(3)


@right
def a_stage_that_does_not_look_at_its_input(comm):
    Pair(comm, lambda: [linear(), nn.Tanh(), Applied(torch.zeros_like), linear()], optimiser=decaying).train(3)


@right
def a_parameter_that_is_not_used(comm):
    def make():
        layers = mlp()
        for layer in layers:
            layer.spare = nn.Parameter(torch.ones(3))
        return [Wrapped(lambda layer, x: layer(x)), *layers[1:3], Wrapped(lambda layer, x: layer(x))]

    Pair(comm, make).train(2)


@right
def sparse_gradients(comm):
    def make():
        return [Applied(whole), nn.Embedding(5, WIDTH, sparse=True), Applied(lambda x: x.sum(1)), linear()]

    pair = Pair(comm, make, optimiser=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    pair.backward()
    pair.train(2)


# --- hooks and wrappers -----------------------------------------------------------------------------------------------


@right
def forward_hooks(comm):
    def prepare(model):
        for layer in model:
            layer.register_forward_hook(lambda module, args, output: output * 1.5)
            layer[0].register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))

    Pair(comm, prepare=prepare).train(2)


@right
def backward_hooks_of_modules(comm):
    def double(module, of_input, of_output):
        return tuple(gradient if gradient is None else 2 * gradient for gradient in of_input)

    def prepare(model):
        for layer in model:
            layer[1].register_full_backward_hook(double)

    Pair(comm, prepare=prepare).train(2)


@right
def a_hook_that_scales_gradients_of_weights(comm):
    def prepare(model):
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: 3 * gradient)

    Pair(comm, prepare=prepare).train(2)


@right
def a_hook_that_cuts_gradients_of_weights(comm):
    def prepare(model):
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))

    in_parts(Pair(comm, prepare=prepare), 2)


@right
def a_hook_that_comes_after_the_first_step(comm):
    pair = Pair(comm)
    pair.train(1)

    def hook(layers):
        for layer in filter(None, layers):
            layer[0].weight.register_hook(lambda gradient: -gradient)

    pair.on_both(hook)
    pair.train(1)


@right
def a_hook_where_gradients_pile_up(comm):
    """Called once for each micro-batch in one process that takes them one by one, and here."""
    calls = {"alone": 0, "net": 0}
    pair = Pair(comm)
    own = [pair.theirs[int(number)] for number in pair.net.stages]

    def count(who):
        def hook(parameter):
            calls[who] += 1

        return hook

    for who, modules in (("alone", own), ("net", pair.net.stages.values())):
        for module in modules:
            for parameter in module.parameters():
                parameter.register_post_accumulate_grad_hook(count(who))
    in_parts(pair, 1)
    assert calls["alone"] == calls["net"] > 0, calls


@right
def a_hook_on_the_node_where_gradients_pile_up(comm):
    """As wrappers of torch have them: no list of hooks shows it."""
    seen, pair = [], Pair(comm)
    nodes = [p.expand_as(p).grad_fn.next_functions[0][0] for p in pair.net.parameters() if p.dim() == 2]
    for node in nodes:
        node.register_hook(lambda *gradients: seen.append(1))
    pair.backward()
    assert len(seen) >= len(nodes)


@right
def a_layer_replaced_by_its_number(comm):
    pair = Pair(comm)
    pair.train(1)

    def replace(layers):
        torch.manual_seed(9)
        new = nn.Linear(WIDTH, WIDTH).double()
        if layers[1] is not None:
            layers[1][0] = new

    pair.on_both(replace)
    pair.optimisers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (pair.alone, pair.net)]
    pair.train(2)


@right
def a_whole_stage_replaced(comm):
    """As somebody does who wraps it, for example to compile it."""
    pair = Pair(comm)
    for number, module in pair.net.stages.items():
        pair.net.stages[number] = Doubled(module)
    for number, module in enumerate(pair.theirs):
        pair.theirs[number] = Doubled(module)
    pair.alone = nn.Sequential(*pair.theirs)
    pair.train(2)
    x, _ = pair.batch()
    torch.testing.assert_close(pair.net(x), pair.alone(x).detach(), **TIGHT)


class Doubled(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return 2 * self.module(x)


@right
def stages_that_are_compiled(comm):
    pair = Pair(comm)
    for module in pair.net.stages.values():
        module.compile(backend="eager")
    pair.train(2)


@right
def a_layer_frozen_midway_and_thawed(comm):
    pair = Pair(comm, optimiser=decaying)
    for trains in (True, False, True):
        pair.on_both(lambda layers, trains=trains: [each.requires_grad_(trains) for each in layers[1:3] if each])
        pair.train(2)


@right
def a_layer_frozen_from_the_start_and_thawed(comm):
    pair = Pair(comm, prepare=lambda model: model[0].requires_grad_(False))
    pair.train(2)
    pair.on_both(lambda layers: layers[0] and layers[0].requires_grad_(True))
    pair.train(2)


@right
def weights_turned_into_other_numbers_midway(comm):
    pair = Pair(comm)
    pair.train(1)

    def shrink(layers):
        for layer in filter(None, layers):
            with torch.no_grad():
                layer[0].weight.mul_(0.5)

    pair.on_both(shrink)
    pair.train(1)


@right
def wrapped_twice(comm):
    """The same layers in a second pipeline, with another program and other micro-batches."""
    pair = Pair(comm)
    pair.train(1)
    stages = [copy.deepcopy(module) for module in pair.theirs]
    for number, module in pair.net.stages.items():
        stages[int(number)] = module
    pair.net = PipelineParallel(stages, comm, gpipe(comm.world_size, 2))
    pair.train(2)
    pair.backward()
    expected = nn.utils.clip_grad_norm_(pair.alone.parameters(), 0.05)
    torch.testing.assert_close(clip_grad_norm_(pair.net.parameters(), 0.05, comm), expected, **TIGHT)


@right
def copies_of_the_stages(comm):
    pair = Pair(comm)
    pair.train(1)
    kept = copy.deepcopy(pair.net.stages)
    again = pickle.loads(pickle.dumps(pair.net.stages))
    averaged = torch.optim.swa_utils.AveragedModel(pair.net.stages)
    averaged.update_parameters(pair.net.stages)
    for one, two, three in zip(kept.parameters(), again.parameters(), averaged.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        torch.testing.assert_close(one, three, rtol=0, atol=0)
    pair.train(1)


@right
def states_saved_and_loaded(comm):
    pair = Pair(comm)
    pair.train(1)
    file = io.BytesIO()
    torch.save({"net": pair.net.state_dict(), "optimiser": pair.optimisers[1].state_dict()}, file)
    before = copy.deepcopy((pair.alone.state_dict(), pair.optimisers[0].state_dict()))
    pair.train(2)
    file.seek(0)
    state = torch.load(file)
    pair.net.load_state_dict(state["net"])
    pair.optimisers[1].load_state_dict(state["optimiser"])
    pair.alone.load_state_dict(before[0])
    pair.optimisers[0].load_state_dict(before[1])
    pair.train(2)


@right
def states_loaded_in_place_of_the_parameters(comm):
    pair = Pair(comm, tied)
    pair.train(1)
    state, alone = copy.deepcopy(pair.net.state_dict()), copy.deepcopy(pair.alone.state_dict())
    pair.train(1)
    pair.net.load_state_dict(state, assign=True)
    pair.alone.load_state_dict(alone)
    pair.optimisers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (pair.alone, pair.net)]
    pair.train(2)


@right
def another_dtype_midway(comm):
    pair = Pair(comm)
    for model in (pair.alone, pair.net):
        model.to(torch.float32)
    for _ in range(2):
        x, y = (each.float() for each in pair.batch())
        mse(pair.alone(x), y).backward()
        pair.net.step(x, y, mse)
        for number, module in pair.net.stages.items():
            for mine, other in zip(module.parameters(), pair.theirs[int(number)].parameters(), strict=True):
                torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


@right
def autocast_around_the_step(comm):
    pair = Pair(comm)
    pair.net.float()
    pair.alone.float()
    x, y = (each.float() for each in pair.batch())
    for part in zip(x.chunk(PARTS), y.chunk(PARTS), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            loss = mse(pair.alone(part[0]), part[1].bfloat16()) / PARTS
        loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        pair.net.step(x, y.bfloat16(), mse)
    for number, module in pair.net.stages.items():
        for mine, other in zip(module.parameters(), pair.theirs[int(number)].parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=5e-2, atol=2e-3)


@right
def autocast_inside(comm):
    def cast(layer, x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x).float()

    pair = Pair(comm, using(cast))
    pair.net.float()
    pair.alone.float()
    x, y = (each.float() for each in pair.batch())
    for part in zip(x.chunk(PARTS), y.chunk(PARTS), strict=True):
        (mse(pair.alone(part[0]), part[1]) / PARTS).backward()
    pair.net.step(x, y, mse)
    for number, module in pair.net.stages.items():
        for mine, other in zip(module.parameters(), pair.theirs[int(number)].parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=5e-2, atol=2e-3)


# --- tied -------------------------------------------------------------------------------------------------------------


def tied():
    """The weight of the first layer lies in the last one too."""
    layers = [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)]
    layers[4].weight = layers[0].weight
    return layers


def tied_throughout():
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(6)]
    for layer in layers[1:]:
        layer.weight = layers[0].weight
        layer.bias = layers[0].bias
    return layers


@right
def tied_weights(comm):
    pair = Pair(comm, tied)
    pair.train(2)
    pair.backward()
    pair.train(1)


@right
def everything_tied(comm):
    Pair(comm, tied_throughout).train(3)


@right
def tied_weights_that_meet_on_one_rank(comm):
    Pair(comm, tied, program=lambda ranks, parts: zbv(ranks, parts) if 2 * ranks <= 5 else gpipe(ranks, parts)).train(3)


@right
def tied_weights_frozen_midway_and_thawed(comm):
    pair = Pair(comm, tied, optimiser=decaying)

    def freeze(trains):
        def change(layers):
            for layer in (layers[0], layers[4]):
                if layer is not None:
                    layer.weight.requires_grad_(trains)

        return change

    for trains in (True, False, True):
        pair.on_both(freeze(trains))
        pair.train(2)


@right
def tied_weights_frozen_from_the_start(comm):
    pair = Pair(comm, tied, prepare=lambda model: model[0].weight.requires_grad_(False))
    pair.train(2)
    pair.on_both(lambda layers: [layers[n].weight.requires_grad_(True) for n in (0, 4) if layers[n] is not None])
    pair.train(2)


@right
def tied_weights_that_nobody_uses(comm):
    def make():
        layers = [Spare() for _ in range(4)]
        layers[3].spare = layers[0].spare
        return layers

    Pair(comm, make, optimiser=decaying).train(2)


@right
def tied_weights_that_one_rank_uses(comm):
    def make():
        layers = [Spare() for _ in range(4)]
        layers[3].spare = layers[0].spare
        layers[3].uses = True
        return layers

    Pair(comm, make).train(2)


class Spare(nn.Module):
    """A layer with a parameter that it may use."""

    def __init__(self):
        super().__init__()
        self.layer, self.spare, self.uses = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.ones(WIDTH)), False

    def forward(self, x):
        return self.layer(x) * (self.spare if self.uses else 1)


@refused(ValueError, match="frozen on rank 0 alone")
def tied_weights_frozen_on_one_rank(comm):
    pair = Pair(comm, tied)
    pair.train(1)
    if comm.rank == 0:
        pair.net.stages["0"][0].weight.requires_grad_(False)
    pair.backward()


@refused(ValueError, match="are one parameter, which has other numbers on other ranks")
def tied_weights_replaced_on_one_rank(comm):
    pair = Pair(comm, tied)
    if comm.rank == 0:
        torch.manual_seed(9)
        pair.net.stages["0"][0] = nn.Linear(WIDTH, WIDTH).double()
    pair.backward()


@refused(ValueError, match="were one parameter, and are not now")
def tied_weights_that_are_gone(comm):
    pair = Pair(comm, tied)
    if comm.rank == 0:
        pair.net.stages["0"][0] = nn.Identity()
    pair.backward()


@refused(ValueError, match="other numbers on other ranks.*clip_grad_norm_")
def tied_weights_clipped_by_the_norm_of_each_rank(comm):
    pair = Pair(comm, tied)
    for _ in range(2):
        x, y = pair.batch()
        pair.net.step(x, y, mse)
        nn.utils.clip_grad_norm_(pair.net.parameters(), 0.05)
        pair.optimisers[1].step()


# --- what cannot be right ---------------------------------------------------------------------------------------------


def with_loss(loss_fn):
    def scenario(comm):
        pair = Pair(comm)
        pair.train(1)
        pair.backward()
        x, y = pair.batch()
        try:
            pair.net.step(x, y, loss_fn)
        finally:  # what was there before is there still, and nothing more: the next steps are right
            pair.check()
            pair.backward()
            pair.update()
            pair.train(1)

    return scenario


def broken(output, target):
    raise LookupError("no loss today")


@contextmanager
def expecting(comm, errors, match):
    """Every rank raises; one of these errors where it happened, `RankFailed` elsewhere."""
    try:
        yield
    except RankFailed as error:
        assert RankFailed in errors or any(each.__name__ in str(error) for each in errors), error
    except errors as error:
        assert re.search(match, str(error)), error
    else:
        raise AssertionError(f"rank {comm.rank} raised nothing")


LOSSES = {
    "a_loss_that_raises": (broken, LookupError, "no loss today"),
    "a_loss_for_each_sample": (lambda o, t: (o - t).square().mean(1), ValueError, "one real number is needed"),
    "a_loss_that_is_a_float": (lambda o, t: mse(o, t).item(), TypeError, "loss_fn returned a float"),
    "a_loss_that_is_nothing": (lambda o, t: None, TypeError, "loss_fn returned a NoneType"),
    "a_loss_without_a_graph": (lambda o, t: mse(o, t).detach(), ValueError, "without a graph"),
    "a_complex_loss": (lambda o, t: torch.complex(o, t).mean(), ValueError, "one real number is needed"),
    "two_losses": (lambda o, t: (mse(o, t), mse(o, t)), TypeError, "loss_fn returned a tuple"),
    "a_loss_that_has_been_used_up": (lambda o, t: used_up(mse(o, t)), RuntimeError, "second time"),
}


def used_up(loss):
    loss.backward()
    return loss


for _name, (_loss, _error, _match) in LOSSES.items():
    _scenario = with_loss(_loss)
    _scenario.__name__ = _name
    refused(_error, match=_match)(_scenario)


class Breaks(nn.Module):
    """A layer that raises at the third micro-batch, forward or backward, once."""

    def __init__(self, way):
        super().__init__()
        self.way, self.calls, self.layer = way, 0, nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        self.calls += 1
        if self.calls == 3 + PARTS and self.way == "forward":
            raise LookupError("forward is broken")
        x = self.layer(x)
        if self.calls == 3 + PARTS and self.way == "backward":
            x.register_hook(self.fail)
        if self.calls == 3 + PARTS and self.way == "tuple":
            return x, x
        if self.calls == 1 + PARTS and self.way == "first":
            raise LookupError("the first micro-batch is broken")
        return x

    def fail(self, gradient):
        raise LookupError("backward is broken")


def breaking(place, way, program=zb_h1):
    def scenario(comm):
        def make():
            layers = mlp(6)
            layers[place] = Breaks(way)
            return layers

        pair = Pair(comm, make, program)
        for module in pair.alone:
            if isinstance(module, Breaks):
                module.way = "never"
        x, y = pair.batch()
        pair.backward(x, y)  # the first step is right, and its gradients are still there
        try:
            pair.net.step(*pair.batch(), mse)
        finally:
            pair.check()
            pair.train(2)

    return scenario


BREAKS = {
    "the_first_stage_raises_forward": (0, "forward", LookupError, "forward is broken"),
    "a_middle_stage_raises_forward": (3, "forward", LookupError, "forward is broken"),
    "the_last_stage_raises_forward": (5, "forward", LookupError, "forward is broken"),
    "the_first_stage_raises_backward": (0, "backward", LookupError, "backward is broken"),
    "a_middle_stage_raises_backward": (3, "backward", LookupError, "backward is broken"),
    "the_last_stage_raises_backward": (5, "backward", LookupError, "backward is broken"),
    "the_first_stage_raises_at_once": (0, "first", LookupError, "the first micro-batch is broken"),
    "a_middle_stage_raises_at_once": (3, "first", LookupError, "the first micro-batch is broken"),
    "a_stage_gives_two_tensors": (1, "tuple", TypeError, "tuple"),
}
for _name, (_place, _way, _error, _match) in BREAKS.items():
    for _program in (zb_h1, gpipe, interleaved):
        _scenario = breaking(_place, _way, _program)
        _scenario.__name__ = f"{_name}_in_{_program.__name__}"
        refused(_error, match=_match)(_scenario)


@refused(LookupError, match="a new shape is broken")
def a_new_shape_raises_at_once(comm):
    """Nobody knows yet what the activations of this shape look like."""
    pair = Pair(comm)
    pair.train(1)

    def fail(module, args):
        if len(args[0]) == 3 and module.training:
            raise LookupError("a new shape is broken")

    own = list(pair.net.stages.values()) if comm.rank == 0 else []
    handles = [module.register_forward_pre_hook(fail) for module in own]
    try:
        pair.net.step(*pair.batch(3 * PARTS), mse)
    finally:
        for handle in handles:
            handle.remove()
        pair.backward(*pair.batch(3 * PARTS))
        pair.update()


@refused(RuntimeError, match="no_grad")
def a_step_without_gradients(comm):
    pair = Pair(comm)
    with torch.no_grad():
        pair.net.step(*pair.batch(), mse)


@refused(RuntimeError, match="no_grad")
def a_step_in_inference_mode(comm):
    pair = Pair(comm)
    with torch.inference_mode():
        pair.net.step(*pair.batch(), mse)


@refused(CollectiveMismatch, match="without gradients")
def a_step_without_gradients_on_one_rank(comm):
    pair = Pair(comm)
    with torch.set_grad_enabled(comm.rank > 0):
        pair.net.step(*pair.batch(), mse)


def with_batch(change):
    def scenario(comm):
        pair = Pair(comm)
        pair.train(1)
        try:
            pair.net.step(*change(comm, *pair.batch()), mse)
        finally:
            pair.train(1)

    return scenario


def other(tensor, comm):
    return tensor + comm.rank


BATCHES = {
    "a_list_as_batch": (lambda c, x, y: (x.tolist(), y), TypeError, "x is a list"),
    "a_list_as_batch_on_one_rank": (lambda c, x, y: (x if c.rank else [x], y), CollectiveMismatch, "x: list"),
    "a_number_as_batch": (lambda c, x, y: (x[0, 0], y), TypeError, "x is a Tensor"),
    "an_empty_batch": (lambda c, x, y: (x[:0], y[:0]), ValueError, "x has 0 rows"),
    "a_batch_that_does_not_divide": (lambda c, x, y: (x[:7], y[:7]), ValueError, "x has 7 rows"),
    "targets_that_do_not_divide": (lambda c, x, y: (x, y[:6]), ValueError, "y has 6 rows"),
    "another_shape_on_one_rank": (
        lambda c, x, y: (x[: 4 + 4 * c.rank], y),
        CollectiveMismatch,
        r"shape \(4, 6\)",
    ),
    "another_dtype_on_one_rank": (lambda c, x, y: (x if c.rank else x.float(), y), CollectiveMismatch, "float32"),
    "other_numbers_on_each_rank": (lambda c, x, y: (other(x, c), y), ValueError, "x has other numbers"),
    "other_targets_on_each_rank": (lambda c, x, y: (x, other(y, c)), ValueError, "y has other numbers"),
    "another_order_on_each_rank": (lambda c, x, y: (x.roll(c.rank, 0), y), ValueError, "x has other numbers"),
    "a_batch_that_requires_grad": (lambda c, x, y: (x.requires_grad_(), y), ValueError, "x requires a gradient"),
    "targets_that_require_grad": (lambda c, x, y: (x, y.requires_grad_()), ValueError, "y requires a gradient"),
    "a_dictionary_as_targets": (lambda c, x, y: (x, {"y": y}), TypeError, "y is a dict"),
    "no_targets": (lambda c, x, y: (x, None), TypeError, "y is a NoneType"),
    "targets_of_another_length": (lambda c, x, y: (x, y[:4]), ValueError, "y has 4 rows: a multiple of the 8 of x"),
}
for _name, (_change, _error, _match) in BATCHES.items():
    _scenario = with_batch(_change)
    _scenario.__name__ = _name
    refused(*(_error if isinstance(_error, tuple) else (_error,)), match=_match)(_scenario)


def with_layer(make):
    def scenario(comm):
        pair = Pair(comm, lambda: [linear(), make(), linear(), linear()])
        pair.net.step(*pair.batch(), mse)

    return scenario


OUTPUTS = {
    "a_list_between_stages": (lambda: Applied(lambda x: [x]), TypeError, "returned a list"),
    "complex_numbers_between_stages": (lambda: Applied(torch.Tensor.cfloat), TypeError, "complex64 of 2 dimensions"),
    "nine_dimensions_between_stages": (
        lambda: Applied(lambda x: x.view(2, *[1] * 7, WIDTH)),
        TypeError,
        "9 dimensions",
    ),
    "a_sparse_tensor_between_stages": (lambda: Applied(torch.Tensor.to_sparse), TypeError, "torch.sparse_coo"),
}
for _name, (_make, _error, _match) in OUTPUTS.items():
    _scenario = with_layer(_make)
    _scenario.__name__ = _name
    refused(_error, match=_match)(_scenario)


@refused(RuntimeError, match="in-place")
def a_stage_that_begins_in_place(comm):
    pair = Pair(comm, lambda: [linear(), linear(), nn.ReLU(inplace=True), linear()])
    pair.net.step(*pair.batch(), mse)


@refused(RuntimeError, match="modified by an inplace")
def a_weight_changed_between_forward_and_backward(comm):
    pair = Pair(comm)

    def change(output, target):
        with torch.no_grad():
            for parameter in pair.net.parameters():
                parameter.add_(0.1)
        return mse(output, target)

    pair.net.step(*pair.batch(), change)


@refused(RuntimeError, match="modified by an inplace")
def a_weight_changed_between_input_and_weight(comm):
    """By somebody who steps as soon as the bias has its gradient."""
    pair = Pair(comm)

    def change(parameter):
        with torch.no_grad():
            for each in pair.net.parameters():
                each.add_(0.1)

    for parameter in pair.net.parameters():
        if parameter.dim() == 1:
            parameter.register_post_accumulate_grad_hook(change)
    pair.net.step(*pair.batch(), mse)


@refused(TypeError, match="belongs to its own rank")
def a_copy_of_the_pipeline(comm):
    copy.deepcopy(Pair(comm).net)


@refused(RuntimeError, match="does not require grad")
def backward_through_an_evaluation(comm):
    pair = Pair(comm)
    x, y = pair.batch()
    mse(pair.net(x), y).backward()


@refused(CollectiveMismatch, match="forward.*step|step.*forward")
def an_evaluation_on_one_rank(comm):
    pair = Pair(comm)
    x, y = pair.batch()
    if comm.rank == 0:
        pair.net(x)
    pair.net.step(x, y, mse)


@refused(LookupError, match="forward is broken")
def an_evaluation_that_raises(comm):
    def make():
        return [*mlp(3), Breaks("forward")]

    pair = Pair(comm, make)
    x, _ = pair.batch()
    for _ in range(2 + PARTS):
        pair.net(x)
    try:
        pair.net(x)
    finally:
        next(layer for layer in pair.alone if isinstance(layer, Breaks)).way = "never"
        torch.testing.assert_close(pair.net(x), pair.alone(x).detach(), **TIGHT)
        pair.train(1)


@refused(ValueError, match="x has other numbers")
def an_evaluation_of_another_batch_on_each_rank(comm):
    pair = Pair(comm)
    pair.net(pair.batch()[0] + comm.rank)


# --- all of them ------------------------------------------------------------------------------------------------------


def run_right(comm, names):
    return {name: outcome(RIGHT[name], comm) for name in names}


def run_refused(comm, names):
    found = {}
    for name in names:
        scenario, errors, match = REFUSED[name]
        found[name] = outcome(lambda comm, s=scenario, e=errors, m=match: expect(comm, s, e, m), comm)
    return found


def expect(comm, scenario, errors, match):
    with expecting(comm, errors, match):
        scenario(comm)


def outcome(scenario, comm):
    """ "" or what went wrong, in words; where one rank has left a scenario, the others leave it as well."""
    words = ""
    try:
        scenario(comm)
    except Exception as error:
        words = f"{type(error).__name__}: {error}"[:2000]
    while True:
        try:
            comm.barrier()
            return words
        except CollectiveMismatch:  # another rank is still in it, and now hears that this one is not
            words = words or "this rank was through when another was not"


@pytest.mark.parametrize("world_size", [2, 3])
def test_what_is_right_equals_one_process(world_size):
    for found in launch(run_right, list(RIGHT), world_size=world_size):
        assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize("world_size", [2, 3])
def test_what_cannot_be_right_is_refused_on_every_rank_and_the_next_step_is_right(world_size):
    for found in launch(run_refused, list(REFUSED), world_size=world_size):
        assert {name: words for name, words in found.items() if words} == {}


def test_after_a_failure_training_goes_on_over_torch_too():
    """Nothing of a failed step is left on the wire. (Where ranks have disagreed, over torch nothing can follow.)"""
    names = [name for name in REFUSED if CollectiveMismatch not in REFUSED[name][1]]
    for found in launch(run_refused, names, world_size=2, transport="torch"):
        assert {name: words for name, words in found.items() if words} == {}
