"""What an exhibit is, and what all of them train."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..check_run import check_run

NUM_SAMPLES, BATCH = 64, 16


@dataclass(frozen=True)
class Exhibit:
    """A training run that is wrong, and what is wrong with it.

    Attributes:
        run: (comm, record, mended=False); record(step, module, loss=...) in each step.
        told: what somebody would say who had found it.
        step, tensor, ranks, kind: where it first parts from one process, on four ranks, as in `Parting`.
    """

    run: object
    told: str
    step: int
    tensor: str
    ranks: tuple
    kind: str

    @property
    def name(self):
        return self.run.__name__

    def compare(self, mended=False):
        """Compare it, or its mended version, with the mended one on one rank; a `CheckedRun`."""
        right = partial(self.run, mended=True)
        return check_run(right if mended else self.run, reference=right)


def table(exhibits):
    """(name, what is wrong, what `check_run` says) of each `Exhibit`, run now on four ranks."""
    return [(exhibit.name, exhibit.told, str(exhibit.compare())) for exhibit in exhibits]


def start():
    """A net, and 64 samples with targets that it can learn; the same on every rank."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.randn(NUM_SAMPLES, 6, dtype=torch.float64)
    return net, x, x[:, :1] * 2 - x[:, 1:2].sin()


def loss_of(net, x, y):
    return (net(x) - y).square().mean()


def steps(x, y, num_epochs=2):
    """(step, x, y) of batch after batch."""
    batches = [*zip(x.split(BATCH), y.split(BATCH), strict=True)] * num_epochs
    return [(step, *batch) for step, batch in enumerate(batches)]


def share(tensor, comm):
    """This rank's part of a batch."""
    return tensor.chunk(comm.world_size)[comm.rank]


def average(net, comm, op="mean"):
    """Put the average over ranks into every gradient."""
    for parameter in net.parameters():
        comm.all_reduce(parameter.grad, op=op)


def gradient_of(net, comm, x, y):
    """Put the gradient of the whole batch into `net`, as it should be."""
    loss_of(net, share(x, comm), share(y, comm)).backward()
    average(net, comm)


def train(comm, record, net, optimizer, backward):
    """Train as most exhibits do; `backward(step, x, y)` puts the gradients of a whole batch into `net`."""
    _, *data = start()
    for step, x, y in steps(*data):
        net.zero_grad()
        backward(step, x, y)
        record(step, net)
        optimizer.step()


def sgd(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr=lr)
