"""Exhibits whose gradients are not those of the whole batch."""

import torch
from torch.nn.utils import clip_grad_norm_

from .exhibit import Exhibit, average, loss_of, sgd, share, start, steps, train

ALL = (0, 1, 2, 3)


def summed_for_averaged(comm, record, mended=False):
    net, *_ = start()

    def backward(step, x, y):
        loss_of(net, share(x, comm), share(y, comm)).backward()
        average(net, comm, "mean" if mended else "sum")

    train(comm, record, net, sgd(net, lr=0.02), backward)


def divided_twice(comm, record, mended=False):
    net, *_ = start()

    def backward(step, x, y):
        loss = loss_of(net, share(x, comm), share(y, comm))
        (loss if mended else loss / comm.world_size).backward()
        average(net, comm)

    train(comm, record, net, sgd(net), backward)


def clipped_by_own_norm(comm, record, mended=False):
    net, *_ = start()

    def backward(step, x, y):
        loss_of(net, share(x, comm), share(y, comm)).backward()
        if not mended:
            clip_grad_norm_(net.parameters(), 0.5)
        average(net, comm)
        if mended:
            clip_grad_norm_(net.parameters(), 0.5)

    train(comm, record, net, sgd(net), backward)


def clipped_before_unscaling(comm, record, mended=False):
    net, *_ = start()
    scale = 1024.0  # as for gradients in half precision

    def backward(step, x, y):
        (loss_of(net, share(x, comm), share(y, comm)) * scale).backward()
        average(net, comm)
        clip_grad_norm_(net.parameters(), scale if mended else 1.0)
        for parameter in net.parameters():
            parameter.grad /= scale

    train(comm, record, net, torch.optim.Adam(net.parameters(), lr=0.02), backward)


def mean_of_unequal_means(comm, record, mended=False):
    net, *_ = start()

    def backward(step, x, y):
        is_real = torch.arange(len(x)) % 8 < 5  # the rest is padding
        real, total = share(is_real, comm), is_real.sum() / comm.world_size
        errors = (net(share(x, comm)) - share(y, comm)).square()[real]
        (errors.sum() / total if mended else errors.mean()).backward()
        average(net, comm)

    train(comm, record, net, sgd(net), backward)


def accumulated_undivided(comm, record, mended=False):
    net, *_ = start()
    num_parts = 2

    def backward(step, x, y):
        parts = zip(share(x, comm).chunk(num_parts), share(y, comm).chunk(num_parts), strict=True)
        for part_x, part_y in parts:
            loss = loss_of(net, part_x, part_y)
            (loss / num_parts if mended else loss).backward()
        average(net, comm)

    train(comm, record, net, sgd(net, lr=0.02), backward)


def averaged_weights_of_adam(comm, record, mended=False):
    net, *data = start()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for step, x, y in steps(*data):
        optimizer.zero_grad()
        loss_of(net, share(x, comm), share(y, comm)).backward()
        if mended:
            average(net, comm)
        optimizer.step()
        if not mended:
            for parameter in net.parameters():
                comm.all_reduce(parameter.data, op="mean")
        optimizer.zero_grad()
        record(step, net)


def bias_of_a_row_layer_added_on_every_rank(comm, record, mended=False):
    net, *data = start()
    first, _, last = net
    optimizer = sgd(last, lr=0.05)
    columns = torch.arange(5).tensor_split(comm.world_size)[comm.rank]
    for step, x, y in steps(*data):
        hidden = first(x).tanh().detach()
        term = hidden[:, columns] @ last.weight.detach()[:, columns].T
        output = term + (0 if mended else last.bias.detach())
        comm.all_reduce(output)
        output = output + (last.bias.detach() if mended else 0)
        record(step, output=output)
        last.weight.grad = 2 * (output - y).T @ hidden / len(x)
        last.bias.grad = 2 * (output - y).mean(0)
        optimizer.step()
        record(step, net)


GRADIENTS = [
    Exhibit(summed_for_averaged, "an average that was a sum", 0, "gradient/0.weight", ALL, "4 times"),
    Exhibit(divided_twice, "gradients averaged, and the loss divided too", 0, "gradient/0.weight", ALL, "1/4 of it"),
    Exhibit(clipped_by_own_norm, "clipped by each rank's own norm", 0, "gradient/0.weight", ALL, "other numbers"),
    Exhibit(clipped_before_unscaling, "clipped before unscaling", 0, "gradient/0.weight", ALL, "1/"),
    Exhibit(mean_of_unequal_means, "a mean of means over unequal counts", 0, "gradient/0.weight", ALL, "other numbers"),
    Exhibit(accumulated_undivided, "micro-batches not divided by their number", 0, "gradient/0.weight", ALL, "2 times"),
    Exhibit(averaged_weights_of_adam, "weights averaged after Adam", 0, "weight/0.weight", ALL, "other numbers"),
    Exhibit(bias_of_a_row_layer_added_on_every_rank, "a bias added on every rank", 0, "output", ALL, "other numbers"),
]
