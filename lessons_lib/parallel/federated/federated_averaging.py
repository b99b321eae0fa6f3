"""FedAvg: clients train at home for a while, and what comes back is averaged (lesson 25)."""

import copy
from functools import partial
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
    home = _Home(module, optimizer, loss, local_epochs, batch_size)
    rounds = []
    for number in range(num_rounds):
        chosen = _choose(len(sizes), participation, [seed, number])
        sums = _from_homes(home, clients, chosen, sizes, [seed, number], leaves and partial(leaves, number))
        (add or comm.all_reduce)(sums)
        ways, came_back = sums.split([len(sums) - len(sizes), len(sizes)])
        back = tuple(client for client in chosen if came_back[client].round())
        rounds.append(Round(number, chosen, back, sum(sizes[client] for client in back)))
        if rounds[-1].num_samples:
            _move(parameters, ways / rounds[-1].num_samples, step)
        if after_round:
            after_round(rounds[-1])
    return rounds


class _Home(NamedTuple):
    """How a client trains."""

    module: torch.nn.Module
    optimizer: object
    loss: object
    local_epochs: int
    batch_size: int | None

    def way_back(self, x, y, random):
        """θ − θ_k of the client with these samples, as one flat float64 tensor; the module itself stays at θ."""
        own = copy.deepcopy(self.module)
        moving = trained(own)
        optimizer, num = self.optimizer(moving), len(x)
        for _ in range(self.local_epochs if num else 0):
            for batch in torch.from_numpy(random.permutation(num)).split(self.batch_size or num):
                optimizer.zero_grad()
                self.loss(own(x[batch]), y[batch]).backward()
                optimizer.step()
        ways = zip(trained(self.module), moving, strict=True)
        return torch.cat([(a - b).detach().flatten().double() for a, b in ways])


def _from_homes(home, clients, chosen, sizes, seed, leaves):
    """Σ n_k (θ − θ_k) over this rank's chosen clients, and behind it a number for each client: 1 if it came back."""
    ways = torch.zeros(sum(p.numel() for p in trained(home.module)), dtype=torch.float64)
    came_back = torch.zeros(len(sizes), dtype=torch.float64)
    for client in chosen:
        if client in clients:
            way = home.way_back(*clients[client], np.random.default_rng([*seed, client]))
            if not (leaves and leaves(client)):
                ways += sizes[client] * way
                came_back[client] = 1
    return torch.cat([ways, came_back])


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
