"""One training loop for one process and for many (lessons 07 and 12)."""

import inspect
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from .comm import Communicator
from .data import RankSampler, batches
from .errors import check_whole


@dataclass
class History:
    """What a run of `fit` saw; the same on every rank.

    Attributes:
        losses: mean loss of the global batch, one number per step.
        epoch_losses: mean loss over all samples, one number per epoch.
        accuracies: share of the validation set that is classified rightly after each epoch; empty without one.
        samples_per_s: training samples of all ranks per second.
        time_s: how long training took, validation left out.
    """

    losses: list = field(default_factory=list)
    epoch_losses: list = field(default_factory=list)
    accuracies: list = field(default_factory=list)
    samples_per_s: float = 0.0
    time_s: float = 0.0


def fit(model, optimizer, loss_fn, data, *, batch_size, epochs=1, seed=0, validation=None, progress=True, on_step=None):
    """Train `model` in place; wrapped in `DataParallel`, on all ranks of its communicator. Nothing else changes.

    A model in evaluation mode is trained in training mode; in a model in training mode, submodules that were put into
    evaluation mode stay so, such as a frozen batch norm. Afterwards each module has the mode it had.

    Args:
        model: any `nn.Module`, on the device of `data`.
        optimizer: any `torch.optim.Optimizer` of parameters of `model`. One whose step needs a closure, such as
            LBFGS, gets one that computes the loss of the same batch anew, over all ranks.
        loss_fn: mean loss of a batch, loss_fn(prediction, target).
        data: (x, y), tensors of the same length; the whole data set on every rank.
        batch_size: samples per step, over all ranks together.
        epochs, seed: passes over the data, and what decides their order.
        validation: (x, y) to measure `accuracy` on after each epoch, y being class numbers.
        progress: show a bar with loss and throughput (rank 0 only).
        on_step: called after each step as on_step(step, loss of this rank's samples).

    Returns:
        `History`. A loss that is NaN stands there as NaN.

    Raises:
        TypeError, ValueError: an argument is not what is said above, or `loss_fn` gives no tensor of one number.

    Communication: what `model` does, and per epoch an all-reduce of two numbers per step; with a closure one of two
        numbers each time it is called.
    """
    _check(model, optimizer, loss_fn, data, validation, on_step)
    check_whole("epochs", epochs, 0)
    comm = getattr(model, "comm", None)
    comm = comm if isinstance(comm, Communicator) else None
    rank, world_size = (comm.rank, comm.world_size) if comm else (0, 1)
    sampler, history = RankSampler(len(data[0]), rank, world_size, batch_size, seed=seed), History()
    parameter = inspect.signature(optimizer.step).parameters.get("closure")
    needs_closure = parameter is not None and parameter.default is inspect.Parameter.empty
    hidden = not progress or rank > 0
    with (
        _modes_kept(model),
        tqdm(total=epochs * len(sampler), disable=hidden, leave=False, file=sys.stderr, unit="step") as bar,
    ):
        if not model.training:
            model.train()
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            start_s, sums, num_seen = time.perf_counter(), [], 0
            for x, y in batches(sampler, *data):
                loss = _step(model, optimizer, loss_fn, x, y, needs_closure, comm)
                sums.append((loss * len(x), len(x)) if len(x) else (0.0, 0))
                if on_step is not None:
                    on_step(epoch * len(sampler) + len(sums) - 1, loss)
                num_seen += len(x)
                rate = num_seen * world_size / (time.perf_counter() - start_s)
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}", samples_per_s=f"{rate:.0f}", refresh=False)
            history.time_s += time.perf_counter() - start_s
            _record(history, torch.tensor(sums, dtype=torch.float64), comm)
            if validation is not None:
                history.accuracies.append(accuracy(model, *validation))
    history.samples_per_s = epochs * len(data[0]) / history.time_s if history.time_s else 0.0
    return history


@torch.no_grad()
def accuracy(model, x, y):
    """Measure the share of samples, in 0..1, whose largest output is their class, in evaluation mode.

    Args:
        model: gives (N, classes) for x, at least two classes. Each of its modules keeps the mode it has.
        x: (N, ...), at least one sample.
        y: (N,) class numbers.

    Raises:
        TypeError, ValueError: an argument is not what is said above, or the model's output is of another shape.
    """
    _check_is_module(model)
    _check_is_pair("(x, y)", (x, y))
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"y of {y.dtype}: class numbers, which are whole, are needed")
    with _modes_kept(model):
        prediction = model.eval()(x)
    told = tuple(prediction.shape) if isinstance(prediction, torch.Tensor) else type(prediction).__name__
    if not isinstance(told, tuple) or len(told) < 2 or told[:-1] != tuple(y.shape) or told[-1] < 2:
        shape = f"({', '.join(map(str, y.shape))}, classes)"
        raise ValueError(f"model(x) is {told}: a tensor of shape {shape}, with at least two classes, is needed")
    return (prediction.argmax(-1) == y).sum().item() / y.numel()


@contextmanager
def _modes_kept(model):
    """Afterwards give each module of `model` the mode, training or evaluation, that it has now."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _step(model, optimizer, loss_fn, x, y, needs_closure, comm):
    """Make one step, and return the loss before it: of this rank's samples, or of all where a closure is needed."""

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        _check_loss(loss)
        loss.backward()
        return loss

    if not needs_closure:
        loss = closure()
        optimizer.step()
        return loss.item()
    # Such an optimizer decides by the loss how far it goes: ranks that saw losses of their own would part.
    return optimizer.step(lambda: _mean_over_ranks(closure(), len(x), comm)).item()


def _mean_over_ranks(loss, num_samples, comm):
    if comm is None:
        return loss
    total = torch.tensor([loss.item() * num_samples if num_samples else 0, num_samples], dtype=torch.float64)
    comm.all_reduce(total)
    return total[0] / total[1]


def _record(history, sums, comm):
    """sums: (steps, 2), loss sums and sample counts of this rank; added up over ranks once per epoch."""
    if comm is not None:
        comm.all_reduce(sums)
    history.losses += (sums[:, 0] / sums[:, 1]).tolist()
    history.epoch_losses.append((sums[:, 0].sum() / sums[:, 1].sum()).item())


def _check(model, optimizer, loss_fn, data, validation, on_step):
    _check_is_module(model)
    if isinstance(optimizer, type) or not hasattr(optimizer, "zero_grad") or not hasattr(optimizer, "step"):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}: a torch.optim.Optimizer is needed")
    held = {parameter for group in getattr(optimizer, "param_groups", []) for parameter in group["params"]}
    if held and held.isdisjoint(model.parameters()):
        raise ValueError(f"optimizer={type(optimizer).__name__} of other parameters: one of the model's is needed")
    for name, function in (("loss_fn", loss_fn), ("on_step", on_step)):
        if not callable(function) and (name == "loss_fn" or function is not None):
            raise TypeError(f"{name} is a {type(function).__name__}: a function of two arguments is needed")
    _check_is_pair("data", data)
    if validation is not None:
        _check_is_pair("validation", validation)


def _check_is_module(model):
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: a torch.nn.Module is needed")


def _check_is_pair(name, pair):
    told = [type(part).__name__ for part in pair] if isinstance(pair, list | tuple) else type(pair).__name__
    if not isinstance(told, list) or len(pair) != 2 or not all(isinstance(part, torch.Tensor) for part in pair):
        raise TypeError(f"{name} is a {told}: (x, y), two tensors, is needed")
    shapes = [tuple(part.shape) for part in pair]
    if not all(shapes) or shapes[0][0] != shapes[1][0] or shapes[0][0] == 0:
        raise ValueError(f"{name} of shapes {shapes}: as many targets as samples, at least one, are needed")


def _check_loss(loss):
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"loss_fn's result is a {type(loss).__name__}: a torch.Tensor of one number is needed")
    if loss.numel() != 1 or not loss.requires_grad:
        told = f"of shape {tuple(loss.shape)}" + ("" if loss.requires_grad else " without a gradient")
        raise ValueError(f"loss_fn's result is {told}: one number that depends on the model's parameters is needed")
