"""What is trained on the pager: a small net, whose weights are the same bits on any number of ranks (lesson 21)."""

import torch
from torch import nn

NUM_SAMPLES, NUM_FEATURES = 1200, 32
NUM_PARTS, ROWS = 12, 4  # a batch is computed in parts, wherever each of them is


class Task:
    """A net, its optimiser and its batches.

    Gradients of parts are added up in the order of the parts and not of the ranks: so all sums are the same to the
    last bit, however many ranks there are.

    Args:
        comm: `Communicator`.
    """

    def __init__(self, comm):
        self.comm = comm
        generator = torch.Generator().manual_seed(1)
        self._x = torch.randn(NUM_SAMPLES, NUM_FEATURES, generator=generator, dtype=torch.float64)
        self._y = self._x[:, :10].argmax(1)
        self.begin()

    def begin(self):
        """Start with the first weights, which are the same on every rank."""
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.Tanh(), nn.Linear(16, 10)).double()
        for parameter in self.net.parameters():
            values = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_((values - 0.5) / 4)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)

    @property
    def state(self):
        return {"net": self.net, "optimizer": self.optimizer}

    def gradients(self, step):
        """The gradients of this rank's parts of batch `step`, (parts of a rank, number of weights)."""
        each = -(-NUM_PARTS // self.comm.world_size)
        rows = []
        for part in range(self.comm.rank * each, min(NUM_PARTS, (self.comm.rank + 1) * each)):
            start = (step * NUM_PARTS + part) * ROWS % len(self._x)
            x, y = self._x[start : start + ROWS], self._y[start : start + ROWS]
            self.net.zero_grad()
            nn.functional.cross_entropy(self.net(x), y).backward()
            rows.append(torch.cat([parameter.grad.view(-1) for parameter in self.net.parameters()]))
        size = sum(parameter.numel() for parameter in self.net.parameters())
        table = torch.zeros(each, size, dtype=torch.float64)
        for row, gradient in zip(table, rows, strict=False):  # the last ranks may have fewer parts
            row.copy_(gradient)
        return table

    def update(self, own):
        """Do a step of the optimiser with the mean over all parts of all ranks. All ranks call it together."""
        table = torch.zeros(self.comm.world_size * len(own), own.shape[1], dtype=torch.float64)
        self.comm.all_gather(table, own)
        total = torch.zeros(own.shape[1], dtype=torch.float64)
        for gradient in table[:NUM_PARTS]:
            total += gradient
        parameters = list(self.net.parameters())
        pieces = (total / NUM_PARTS).split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).clone()
        self.optimizer.step()

    def weights(self):
        """{name: list of numbers}, which travel exactly."""
        return {name: value.tolist() for name, value in self.net.state_dict().items()}
