"""Exhibits whose ranks, or whose optimiser, hold something else than people think."""

import copy

import torch

from .exhibit import Exhibit, average, loss_of, share, start, steps


def moving_average_on_rank_0(comm, record, mended=False):
    net, *data = start()
    optimizer, smooth = torch.optim.SGD(net.parameters(), lr=0.1), copy.deepcopy(net)
    for step, x, y in steps(*data):
        optimizer.zero_grad()
        loss_of(net, share(x, comm), share(y, comm)).backward()
        average(net, comm)
        optimizer.step()
        if mended or comm.rank == 0:
            for slow, fast in zip(smooth.parameters(), net.parameters(), strict=True):
                slow.data.lerp_(fast.data, 0.1)
        record(step, net, moving_average=smooth[0].weight)


def one_flipped_bit(comm, record, mended=False):
    net, *data = start()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step, x, y in steps(*data):
        if not mended and step == 3 and comm.rank == 2:
            net[0].weight.data.view(-1).view(torch.int64)[7] ^= 1 << 51  # in the memory of one device
        optimizer.zero_grad()
        loss_of(net, share(x, comm), share(y, comm)).backward()
        average(net, comm)
        record(step, net)
        optimizer.step()


def optimizer_of_the_weights_before(comm, record, mended=False):
    net, *data = start()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    moved = copy.deepcopy(net[0])  # as moving or wrapping a layer may do
    net[0] = moved
    if mended:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step, x, y in steps(*data):
        net.zero_grad()
        loss_of(net, share(x, comm), share(y, comm)).backward()
        average(net, comm)
        record(step, net)
        optimizer.step()


def checkpoint_that_the_next_step_changed(comm, record, mended=False):
    net, *data = start()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step, x, y in steps(*data):
        if step == 3:
            saved = copy.deepcopy(net.state_dict()) if mended else net.state_dict()  # written later, by a thread
        if step == 5:
            net.load_state_dict(saved)  # the run goes on from what was written
        optimizer.zero_grad()
        loss_of(net, share(x, comm), share(y, comm)).backward()
        average(net, comm)
        record(step, net)
        optimizer.step()


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
