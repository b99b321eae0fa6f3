"""One training loop for one process and for many (lessons 07 and 12)."""

import sys
import time
from dataclasses import dataclass, field
from numbers import Integral

import torch
from tqdm import tqdm

from .data import RankSampler, batches


@dataclass
class History:
    """What a run of `fit` saw; the same on every rank.

    Attributes:
        losses: mean loss of the global batch, one number a step.
        epoch_losses: mean loss over all samples, one number an epoch.
        accuracies: share of the validation set that is classified rightly after each epoch; empty without one.
        samples_per_s: training samples of all ranks a second.
        time_s: how long training took, validation left out.
    """

    losses: list = field(default_factory=list)
    epoch_losses: list = field(default_factory=list)
    accuracies: list = field(default_factory=list)
    samples_per_s: float = 0.0
    time_s: float = 0.0


def fit(model, optimizer, loss_fn, data, *, batch_size, epochs=1, seed=0, validation=None, progress=True, on_step=None):
    """Train `model` in place; wrapped in `DataParallel`, on all ranks of its communicator. Nothing else changes.

    Args:
        model: any `nn.Module`, on the device of `data`.
        optimizer: any `torch.optim.Optimizer`.
        loss_fn: mean loss of a batch, loss_fn(prediction, target).
        data: (x, y), tensors of the same length; the whole data set on every rank.
        batch_size: samples a step, over all ranks together.
        epochs, seed: passes over the data, and what decides their order.
        validation: (x, y) to measure accuracy on after each epoch, y being class numbers.
        progress: show a bar with loss and throughput (rank 0 only).
        on_step: called after each step as on_step(step, loss of this rank's samples).

    Returns:
        `History`.

    Raises:
        TypeError, ValueError: bad arguments; what `RankSampler` says about batch_size and seed.
    """
    _check(model, optimizer, loss_fn, data, validation, epochs)
    comm = getattr(model, "comm", None)
    rank, world_size = (comm.rank, comm.world_size) if comm else (0, 1)
    sampler = RankSampler(len(data[0]), rank, world_size, batch_size, seed=seed)
    history = History()
    bar = tqdm(total=epochs * len(sampler), disable=not progress or rank > 0, leave=False, file=sys.stderr, unit="step")
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        start_s, sums = time.perf_counter(), []
        model.train()
        for x, y in batches(sampler, *data):
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            sums.append((loss.item() * len(x), len(x)) if len(x) else (0.0, 0))
            if on_step is not None:
                on_step(epoch * len(sampler) + len(sums) - 1, loss.item())
            bar.update()
            bar.set_postfix(
                loss=f"{loss.item():.4f}", samples_per_s=f"{_rate(sums, start_s) * world_size:.0f}", refresh=False
            )
        history.time_s += time.perf_counter() - start_s
        _record(history, torch.tensor(sums, dtype=torch.float64), comm)
        if validation is not None:
            history.accuracies.append(accuracy(model, *validation))
    bar.close()
    history.samples_per_s = epochs * len(data[0]) / history.time_s if history.time_s else 0.0
    return history


def _check(model, optimizer, loss_fn, data, validation, epochs):
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: a torch.nn.Module is needed")
    if not hasattr(optimizer, "zero_grad") or not callable(loss_fn):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, loss_fn a {type(loss_fn).__name__}: an optimizer of the "
            "model's parameters and a function of (prediction, target) are needed"
        )
    for name, pair in (("data", data), ("validation", validation)):
        if pair is not None and not (isinstance(pair, list | tuple) and len(pair) == 2 and all(map(len, pair))):
            raise ValueError(f"{name} must be (x, y), two tensors with at least one sample, not {pair!r:.200}")
    if not isinstance(epochs, Integral) or epochs < 0:
        raise ValueError(f"epochs={epochs!r}: a whole number of 0 or more is accepted")


@torch.no_grad()
def accuracy(model, x, y):
    """The share of samples, in 0..1, whose largest output is their class. x: (N, ...), y: (N,) class numbers."""
    model.eval()
    return (model(x).argmax(-1) == y).sum().item() / len(y)


def _rate(sums, start_s):
    return sum(count for _, count in sums) / (time.perf_counter() - start_s)


def _record(history, sums, comm):
    """sums: (steps, 2), loss sums and sample counts of this rank; added up over ranks once an epoch."""
    if comm is not None:
        comm.all_reduce(sums)
    history.losses += (sums[:, 0] / sums[:, 1]).tolist()
    history.epoch_losses.append((sums[:, 0].sum() / sums[:, 1].sum()).item())
