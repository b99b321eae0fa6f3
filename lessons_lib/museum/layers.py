"""Exhibits in which a layer that is spread over ranks forgets what the other ranks have."""

import torch
from torch.nn.functional import layer_norm

from .exhibit import Exhibit, average, loss_of, sgd, share, start, steps, train

ALL = (0, 1, 2, 3)


def every_rank_draws_the_same_dropout(comm, record, mended=False):
    net, *_ = start()

    def backward(step, x, y):
        generator, own = torch.Generator().manual_seed(step), share(x, comm)
        if mended:
            is_kept = share(torch.rand(x.shape, generator=generator) > 0.2, comm)
        else:
            is_kept = torch.rand(own.shape, generator=generator) > 0.2
        loss_of(net, own * is_kept / 0.8, share(y, comm)).backward()
        average(net, comm)

    train(comm, record, net, sgd(net, lr=0.05), backward)


def norm_not_reduced_over_positions(comm, record, mended=False):
    net, *data = start()
    scale = torch.ones(6, dtype=torch.float64, requires_grad=True)  # each rank has it, and a part of the positions
    optimizer = torch.optim.SGD([*net.parameters(), scale], lr=0.1)
    for step, x, y in steps(*data):
        optimizer.zero_grad()
        loss_of(net, layer_norm(share(x, comm), (6,), scale), share(y, comm)).backward()
        average(net, comm)
        if mended:
            comm.all_reduce(scale.grad, op="mean")
        record(step, net, gradient_of_norm=scale.grad)
        optimizer.step()


def statistics_of_each_rank_alone(comm, record, mended=False):
    net, *_ = start()

    def backward(step, x, y):
        own = share(x, comm)
        mean, square = own.mean(0), own.square().mean(0)
        if mended:
            comm.all_reduce(mean, op="mean")
            comm.all_reduce(square, op="mean")
        loss_of(net, (own - mean) / (square - mean.square() + 1e-5).sqrt(), share(y, comm)).backward()
        average(net, comm)

    train(comm, record, net, sgd(net), backward)


def tied_table_learns_at_one_end(comm, record, mended=False):
    _, *data = start()
    torch.manual_seed(1)
    table = torch.randn(6, 3, dtype=torch.float64) / 4  # used by the first stage, and turned round by the last
    for step, x, _ in steps(*data):
        first, last = (table.clone().requires_grad_() for _ in range(2))
        (x @ first @ last.T - x).square().mean().backward()
        gradient = torch.zeros_like(table)
        if comm.rank == 0:
            gradient += first.grad
        if comm.rank == comm.world_size - 1:
            gradient += last.grad
        if mended:
            comm.all_reduce(gradient)
        table -= 0.5 * gradient
        record(step, table=table)


def full_expert_drops_tokens(comm, record, mended=False):
    net, x, y = start()
    expert_of = (x[:, 2] > -0.8).long()  # most tokens want expert 1
    experts, room = [net, start()[0]], 40
    optimizer = torch.optim.SGD([p for each in experts for p in each.parameters()], lr=0.1)
    for step in range(6):
        output = torch.zeros_like(y)
        for number, expert in enumerate(experts):
            tokens = (expert_of == number).nonzero()[:, 0]
            tokens = tokens if mended else tokens[:room]
            output = output.index_put((tokens,), expert(x[tokens]))
        optimizer.zero_grad()
        (output - y).square().mean().backward()
        record(step, output=output)
        optimizer.step()
        record(step, net)


LAYERS = [
    Exhibit(
        every_rank_draws_the_same_dropout, "one dropout for all ranks", 0, "gradient/0.weight", ALL, "other numbers"
    ),
    Exhibit(
        norm_not_reduced_over_positions,
        "a norm whose gradient stays on its rank",
        0,
        "gradient_of_norm",
        ALL,
        "ranks differ",
    ),
    Exhibit(
        statistics_of_each_rank_alone,
        "batch statistics of each rank alone",
        0,
        "gradient/0.weight",
        ALL,
        "other numbers",
    ),
    Exhibit(tied_table_learns_at_one_end, "a tied table updated at one end", 0, "table", ALL, "ranks differ"),
    Exhibit(full_expert_drops_tokens, "tokens dropped by a full expert", 0, "output", ALL, "other numbers"),
]
