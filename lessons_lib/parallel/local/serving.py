"""What a parameter server does with what comes to it (lesson 13)."""

from math import inf
from typing import NamedTuple

import torch

from ..flat import empty_like, pack, unpack

PULL, PUSH, DONE = range(3)
_NUM_FIXED = 2  # of a header: what it is, and the weight


class Push(NamedTuple):
    """A gradient that a server has taken a step with.

    Attributes:
        worker: whose it was, from 0.
        clock: how many gradients that worker had pushed before.
        pulled: after how many steps the weights were pulled that it was computed with.
        version: after how many steps it was applied. Its staleness is version - pulled.
        ahead: how far ahead of the slowest worker its worker was when it pulled.
    """

    worker: int
    clock: int
    pulled: int
    version: int
    ahead: int

    @property
    def staleness(self):
        return self.version - self.pulled


def header_of(kind, share, weight=1.0, gradient=None):
    """What comes before the numbers: what is wanted, n_k, and which parameters of `share` have a gradient."""
    flags = [g is not None for g in gradient] if gradient else [0] * len(share)
    return torch.tensor([kind, weight, *flags], dtype=torch.float64, device=share[0].device)


class Server:
    """Serves until every worker has ended. Messages from all workers come to one loop, so nothing is ever shared.

    Args:
        comm: of all servers and workers.
        share: the parameters that this server keeps.
        optimizer: of these parameters.
        max_staleness: see `parameter_server`.
        num_servers: the ranks before the first worker.
    """

    def __init__(self, comm, share, optimizer, max_staleness, num_servers):
        self._comm, self._share, self._first = comm, share, num_servers
        self._optimizer, self._max_staleness = optimizer, max_staleness
        self._clocks = [0] * (comm.world_size - num_servers)  # inf when a worker has ended
        self._pulled, self._ahead = list(self._clocks), list(self._clocks)
        self._waiting, self._pending, self._version, self._pushes = [], {}, 0, []

    def serve(self):
        """Answer until all have ended; the list of `Push`."""
        header = header_of(PULL, self._share)
        while min(self._clocks) < inf:
            worker = self._comm.recv(header) - self._first
            kind, weight, *flags = header.tolist()
            if kind == PULL:
                self._waiting.append(worker)
            elif kind == PUSH:
                self._take(worker, weight, flags)
            else:
                self._clocks[worker] = inf
            self._step_together()
            for waiting in [worker for worker in self._waiting if self._may_go_on(worker)]:
                self._waiting.remove(waiting)
                self._answer(waiting)
        return self._pushes

    def _may_go_on(self, worker):
        if worker in self._pending:
            return False  # its last gradient is not yet in the weights
        return self._clocks[worker] <= min(self._clocks) + self._max_staleness

    def _answer(self, worker):
        self._pulled[worker], self._ahead[worker] = self._version, self._clocks[worker] - min(self._clocks)
        for flat in pack(self._share):
            self._comm.send(flat, worker + self._first)

    def _take(self, worker, weight, flags):
        flats = empty_like(self._share)
        for flat in flats:
            self._comm.recv(flat, worker + self._first)
        gradient = unpack(flats, self._share)
        if self._max_staleness == 0:
            self._pending[worker] = weight, flags, gradient
            self._note(worker)
        else:
            self._note(worker)
            self._step([g if used else None for g, used in zip(gradient, flags, strict=True)])
        self._clocks[worker] += 1

    def _note(self, worker):
        noted = self._clocks[worker], self._pulled[worker], self._version, self._ahead[worker]
        self._pushes.append(Push(worker, *noted))

    def _step_together(self):
        """Take the step of a synchronous clock, when everybody who is still at work has pushed."""
        at_work = [worker for worker, clock in enumerate(self._clocks) if clock < inf]
        if not self._pending or any(worker not in self._pending for worker in at_work):
            return
        # In the order of the workers, whoever came first: the same sum every time.
        pushed = [self._pending[worker] for worker in sorted(self._pending) if self._pending[worker][0]]
        total, mean = sum(weight for weight, _, _ in pushed), []
        for k in range(len(self._share)):
            mean.append(_sum_in_place([(weight / total, g[k]) for weight, flags, g in pushed if flags[k]]))
        self._pending = {}
        self._step(mean)

    def _step(self, gradient):
        for parameter, g in zip(self._share, gradient, strict=True):
            parameter.grad = g
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._version += 1


def _sum_in_place(terms):
    """Σ a g of pairs (a, g), made in the memory of the first g; None if there are none."""
    for number, (weight, gradient) in enumerate(terms):
        if number:
            terms[0][1].add_(gradient, alpha=weight)
        else:
            gradient.mul_(weight)
    return terms[0][1] if terms else None
