"""FedAvg: clients train at home for a while, and what comes back is averaged (lesson 25)."""

import copy
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch

from ...errors import check_whole
from ..local.outer import check_makes_optimizer, made
from ..objects import share_objects
from ..replicas import share_start, trained


class Round(NamedTuple):
    """What happened in a round, the same on every rank.

    Attributes:
        number: from 0.
        chosen: the numbers of the clients that were asked.
        came_back: of those whose result was in the mean.
        num_samples: that these have together.
    """

    number: int
    chosen: tuple
    came_back: tuple
    num_samples: int


def federated_averaging(
    comm,
    module,
    clients,
    optimizer,
    loss,
    *,
    num_rounds,
    local_epochs=1,
    batch_size=None,
    participation=1.0,
    server_optimizer=None,
    seed=0,
    leaves=None,
    add=None,
    after_round=None,
):
    """Train one module on the data of clients that show it to nobody.

    A round goes from θ. Each chosen client k with n_k samples trains for E epochs at home and ends at θ_k; then

        Δ = Σ_k n_k (θ − θ_k) / Σ_k n_k,      θ ← θ − Δ, or a step of the server's optimiser whose gradient is Δ

    With SGD of lr=1 and momentum=0.9 at the server it is FedAvgM. The sums run over those that come back. Which clients
    live on which rank does not matter: the result is the same to rounding, for modules that draw nothing. Every rank
    plays the server: all have the same sum and take the same step.

    Args:
        comm: `Communicator`.
        module: without buffers; rank 0's parameters are taken over, and in the end all ranks have θ.
        clients: {number: (x, y)} of the clients that live on this rank, tensors of n_k samples; together 0 to K - 1.
        optimizer: makes a client's optimiser of a list of parameters, anew in each round.
        loss: `loss(module(x), y)`, a mean over samples.
        num_rounds: how many.
        local_epochs: E.
        batch_size: of the steps at home; None takes all n_k samples at once.
        participation: share of the clients that are chosen in a round, at least one; above 0 and at most 1.
        server_optimizer: makes an optimiser of a list of parameters; None is plain averaging.
        seed: of the choice, and of the orders in which clients go through their samples.
        leaves: `leaves(round, client)` says that a chosen client trains and does not come back; None: all do.
        add: adds a float64 tensor over all ranks in place; None takes `comm.all_reduce`. See `secure_all_reduce`.
        after_round: called with each `Round`, when the module has its new weights.

    Returns:
        A list of `Round`. A round from which nobody came back changes nothing.

    Raises:
        TypeError, ValueError: bad arguments, on every rank.

    Communication: per round one all-reduce of the parameters and of a number for each client, in float64.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data (2017),
    algorithm 1; Hsu, Qi and Brown (2019), §4.1.
    """
    _check(module, optimizer, num_rounds, local_epochs, batch_size, participation)
    sizes = _meet(comm, clients)
    options = [num_rounds, local_epochs, batch_size, participation, seed, server_optimizer is None]
    share_start(module, comm, f"{options}", "federated_averaging")
    parameters = trained(module)
    step = None if server_optimizer is None else made(server_optimizer, parameters, "server_optimizer")
    rounds = []
    for number in range(num_rounds):
        chosen = _choose(len(sizes), participation, [seed, number])
        ways = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
        came_back = torch.zeros(len(sizes), dtype=torch.float64)
        for client in sorted(set(chosen) & set(clients)):
            home = _Home(*clients[client], optimizer, loss, np.random.default_rng([seed, number, client]))
            way = home.way_back(module, local_epochs, batch_size)
            if not (leaves and leaves(number, client)):
                ways += sizes[client] * way
                came_back[client] = 1
        sums = torch.cat([ways, came_back])
        (add or comm.all_reduce)(sums)
        ways, came_back = sums[: len(ways)], sums[len(ways) :].round().bool().tolist()
        back = tuple(client for client in chosen if came_back[client])
        rounds.append(Round(number, chosen, back, sum(sizes[client] for client in back)))
        if rounds[-1].num_samples:
            _move(parameters, ways / rounds[-1].num_samples, step)
        if after_round:
            after_round(rounds[-1])
    return rounds


class _Home(NamedTuple):
    """A client: its samples, and how it trains."""

    x: torch.Tensor
    y: torch.Tensor
    optimizer: object
    loss: object
    random: object

    def way_back(self, module, local_epochs, batch_size):
        """θ − θ_k as one flat float64 tensor; the module itself stays at θ."""
        own = copy.deepcopy(module)
        moving = trained(own)
        optimizer, num = self.optimizer(moving), len(self.x)
        for _ in range(local_epochs if num else 0):
            for batch in torch.from_numpy(self.random.permutation(num)).split(batch_size or num):
                optimizer.zero_grad()
                self.loss(own(self.x[batch]), self.y[batch]).backward()
                optimizer.step()
        return torch.cat([(a - b).detach().flatten().double() for a, b in zip(trained(module), moving, strict=True)])


def _choose(num_clients, participation, seed):
    num_chosen = max(1, round(participation * num_clients))
    return tuple(sorted(np.random.default_rng(seed).choice(num_clients, num_chosen, replace=False).tolist()))


def _meet(comm, clients):
    """How many samples each client has, in order of their numbers."""
    mine = {number: (len(x), len(y)) for number, (x, y) in clients.items()}
    everyone = [pair for part in share_objects(comm, mine) for pair in part.items()]
    numbers = sorted((number for number, _ in everyone), key=repr)
    if sorted(numbers, key=str) != sorted(range(len(everyone)), key=str) or not everyone:
        raise ValueError(f"clients={numbers} of all ranks: each number from 0 on once is needed")
    for number, (num_x, num_y) in everyone:
        if num_x != num_y:
            raise ValueError(f"clients[{number}] has x of {num_x} samples and y of {num_y}: equally many are needed")
    return [size for _, (size, _) in sorted(everyone)]


@torch.no_grad()
def _move(parameters, way, step):
    for parameter, part in zip(parameters, way.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
        if step is None:
            parameter.sub_(parameter.grad)
    if step is not None:
        step.step()
    for parameter in parameters:
        parameter.grad = None


def _check(module, optimizer, num_rounds, local_epochs, batch_size, participation):
    check_whole("num_rounds", num_rounds, 0)
    check_whole("local_epochs", local_epochs, 1)
    check_whole("batch_size", 1 if batch_size is None else batch_size, 1)
    if not isinstance(participation, Real) or not 0 < participation <= 1:
        raise ValueError(f"participation={participation!r}: a number above 0 and at most 1 is needed")
    check_makes_optimizer(optimizer, "optimizer")
    if any(True for _ in module.buffers()):
        raise ValueError("module has buffers, such as batch statistics: what stays at home would differ for ever")
