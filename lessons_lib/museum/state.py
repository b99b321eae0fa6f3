"""Exhibits whose ranks, or whose optimiser, hold something else than people think."""

import copy

import torch

from .exhibit import Exhibit, gradient_of, sgd, start, steps, train


def moving_average_on_rank_0(comm, record, mended=False):
    net, *data = start()
    optimizer, smooth = sgd(net), copy.deepcopy(net)
    for step, x, y in steps(*data):
        optimizer.zero_grad()
        gradient_of(net, comm, x, y)
        optimizer.step()
        if mended or comm.rank == 0:
            for slow, fast in zip(smooth.parameters(), net.parameters(), strict=True):
                slow.data.lerp_(fast.data, 0.1)
        record(step, net, moving_average=smooth[0].weight)


def one_flipped_bit(comm, record, mended=False):
    net, *_ = start()

    def backward(step, x, y):
        if not mended and step == 3 and comm.rank == 2:
            net[0].weight.data.view(-1).view(torch.int64)[7] ^= 1 << 51  # in the memory of one device
        gradient_of(net, comm, x, y)

    train(comm, record, net, sgd(net), backward)


def optimizer_of_the_weights_before(comm, record, mended=False):
    net, *_ = start()
    optimizer = sgd(net)
    net[0] = copy.deepcopy(net[0])  # as moving or wrapping a layer may do
    train(comm, record, net, sgd(net) if mended else optimizer, lambda step, x, y: gradient_of(net, comm, x, y))


def checkpoint_that_the_next_step_changed(comm, record, mended=False):
    net, *_ = start()
    saved = {}

    def backward(step, x, y):
        if step == 3:
            saved.update(copy.deepcopy(net.state_dict()) if mended else net.state_dict())  # a thread writes it later
        if step == 5:
            net.load_state_dict(saved)  # the run goes on from what was written
        gradient_of(net, comm, x, y)

    train(comm, record, net, sgd(net), backward)


STATE = [
    Exhibit(
        checkpoint_that_the_next_step_changed,
        "a checkpoint that the next step changed",
        5,
        "weight/0.weight",
        (0, 1, 2, 3),
        "other numbers",
    ),
    Exhibit(
        moving_average_on_rank_0,
        "a moving average of weights on rank 0 alone",
        0,
        "moving_average",
        (1, 2, 3),
        "ranks differ",
    ),
    Exhibit(one_flipped_bit, "one flipped bit", 3, "weight/0.weight", (2,), "ranks differ"),
    Exhibit(
        optimizer_of_the_weights_before,
        "an optimiser of weights that are no longer the model's",
        1,
        "weight/0.weight",
        (0, 1, 2, 3),
        "other numbers",
    ),
]
