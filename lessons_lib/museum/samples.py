"""Exhibits whose ranks train on, or are judged by, the wrong samples."""

import torch

from ..data import RankSampler
from .exhibit import BATCH, Exhibit, average, gradient_of, loss_of, sgd, start, steps, train

ALL = (0, 1, 2, 3)


def two_ranks_read_one_shard(comm, record, mended=False):
    net, *_ = start()
    reader = comm.rank if mended else comm.rank // 2 * 2

    def backward(step, x, y):
        loss_of(net, x.chunk(comm.world_size)[reader], y.chunk(comm.world_size)[reader]).backward()
        average(net, comm)

    train(comm, record, net, sgd(net), backward)


def step_on(rows, step, net, optimizer, data, comm, record):
    """One step on the samples of this rank."""
    x, y = data
    optimizer.zero_grad()
    loss_of(net, x[rows], y[rows]).backward()
    average(net, comm)
    record(step, net)
    optimizer.step()


def no_new_order(comm, record, mended=False):
    net, *data = start()
    optimizer = sgd(net)
    sampler = RankSampler(len(data[0]), comm.rank, comm.world_size, BATCH, seed=1)
    for epoch in range(2):
        if mended:
            sampler.set_epoch(epoch)
        for number, rows in enumerate(sampler):
            step_on(rows, 4 * epoch + number, net, optimizer, data, comm, record)


def resumed_at_the_start_of_the_epoch(comm, record, mended=False):
    net, *data = start()
    optimizer, saved = sgd(net), None
    for first in (0, 2):  # the run is cut off after two steps, and goes on
        sampler = RankSampler(len(data[0]), comm.rank, comm.world_size, BATCH, seed=1)
        if mended and saved:
            sampler.load_state_dict(saved)
        for step, rows in enumerate(list(sampler)[:2], start=first):
            step_on(rows, step, net, optimizer, data, comm, record)
        saved = sampler.state_dict(2)


def batch_grows_with_the_ranks(comm, record, mended=False):
    net, *data = start()
    optimizer = sgd(net)
    own = BATCH // comm.world_size if mended else BATCH
    for step in range(4):
        rows = (torch.arange(own) * comm.world_size + comm.rank + own * comm.world_size * step) % len(data[0])
        step_on(rows, step, net, optimizer, data, comm, record)


def padding_counted_in_the_evaluation(comm, record, mended=False):
    net, *data = start()
    optimizer = sgd(net)
    held_out, targets = data[0][:10], data[1][:10]
    for step, x, y in steps(*data):
        optimizer.zero_grad()
        gradient_of(net, comm, x, y)
        optimizer.step()
        rows = torch.arange(10)[comm.rank :: comm.world_size]
        if not mended:  # as a sampler does that gives each rank as many: it repeats samples
            rows = torch.arange(-(-10 // comm.world_size)) * comm.world_size + comm.rank
            rows = rows % 10
        with torch.no_grad():
            totals = torch.tensor([(net(held_out[rows]) - targets[rows]).square().sum(), len(rows)])
        comm.all_reduce(totals)
        record(step, evaluated=totals[0] / totals[1])


SAMPLES = [
    Exhibit(two_ranks_read_one_shard, "two ranks read one shard", 0, "gradient/0.weight", ALL, "other numbers"),
    Exhibit(no_new_order, "no new order in the second epoch", 4, "gradient/0.weight", ALL, "other numbers"),
    Exhibit(
        resumed_at_the_start_of_the_epoch, "a resume repeats samples", 2, "gradient/0.weight", ALL, "other numbers"
    ),
    Exhibit(batch_grows_with_the_ranks, "the batch grew with the ranks", 0, "gradient/0.weight", ALL, "other numbers"),
    Exhibit(
        padding_counted_in_the_evaluation, "an evaluation that repeats samples", 0, "evaluated", ALL, "other numbers"
    ),
]
