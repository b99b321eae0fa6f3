"""FedAvg beside data-parallel SGD and a loop in one process; clients that differ, leave, or add in secret."""

import math
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from lessons_lib import RankFailed, launch
from lessons_lib.data import digits
from lessons_lib.errors import RankLost
from lessons_lib.parallel import dirichlet_split, federated_averaging
from lessons_lib.parallel.federated.secure_all_reduce import secure_all_reduce

SGD = partial(torch.optim.SGD, lr=0.5)
MOMENTUM = partial(torch.optim.SGD, lr=1.0, momentum=0.9)


def net(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).to(dtype)


def homes(num_clients=5, alpha=1.0, num=300, dtype=torch.float64):
    x, y, _, _ = digits(dtype)
    x, y = x[:num], y[:num]
    return [(x[own], y[own]) for own in dirichlet_split(y, num_clients, alpha)]


def on_ranks(comm, options, num_clients=5, first=0, alpha=1.0):
    """(parameters, rounds); clients lie round-robin on the ranks from `first` on, whose modules start differently."""
    data = homes(num_clients, alpha)
    num_ranks = comm.world_size - first
    mine = {k: data[k] for k in range(num_clients) if k % num_ranks + first == comm.rank}
    module = net(seed=comm.rank)
    rounds = federated_averaging(comm, module, mine, **({"optimizer": SGD, "loss": cross_entropy} | options))
    assert all(p.grad is None for p in module.parameters())
    return [p.detach() for p in module.parameters()], rounds


def launched(world_size, options, **more):
    results = launch(on_ranks, options, world_size=world_size, **more)
    for parameters, rounds in results[1:]:
        assert rounds == results[0][1]
        assert all(torch.equal(a, b) for a, b in zip(parameters, results[0][0], strict=True))
    return results[0]


def assert_alike(found, expected, rtol=1e-10):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=rtol, atol=1e-12)


def check_one_local_step_is_data_parallel_sgd(average):
    """One step of all samples at home, weighed by their number, is a step of the mean over all samples."""
    data = homes()
    assert len({len(x) for x, _ in data}) > 1
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    alone = net()
    optimizer = SGD(alone.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        cross_entropy(alone(x), y).backward()
        optimizer.step()
    assert_alike(average(data), alone.parameters())


def test_one_local_step_is_data_parallel_sgd():
    check_one_local_step_is_data_parallel_sgd(lambda data: launched(3, {"num_rounds": 4})[0])


def in_one_process(data, num_rounds, steps, weight, batch_size=None, momentum=0.0):
    """FedAvg as it stands in the paper; `data` of each client, or a function that gives it for a round."""
    data_of = data if callable(data) else lambda number: data
    module = net()
    velocity = [torch.zeros_like(p) for p in module.parameters()]
    for number in range(num_rounds):
        ends, data = [], data_of(number)
        for client, (x, y) in enumerate(data):
            own = net()
            own.load_state_dict(module.state_dict())
            optimizer, random = SGD(own.parameters()), np.random.default_rng([0, number, client])
            for _ in range(steps):
                for batch in torch.from_numpy(random.permutation(len(x))).split(batch_size or len(x)):
                    optimizer.zero_grad()
                    cross_entropy(own(x[batch]), y[batch]).backward()
                    optimizer.step()
            ends.append([p.detach() for p in own.parameters()])
        weights = [weight(len(x)) for x, _ in data]
        with torch.no_grad():
            for place, p in enumerate(module.parameters()):
                mean = sum(w * end[place] for w, end in zip(weights, ends, strict=True)) / sum(weights)
                velocity[place] = momentum * velocity[place] + (p - mean)
                p -= velocity[place]
    return list(module.parameters())


def bytes_of(comm):
    before = comm.ledger.bytes_sent
    comm.all_reduce(torch.zeros(sum(p.numel() for p in net().parameters()) + 5, dtype=torch.float64))
    one, counted = comm.ledger.bytes_sent - before, []
    for num_rounds in (0, 3):
        before, calls = comm.ledger.bytes_sent, comm.ledger.calls["all_reduce"]
        on_ranks(comm, {"num_rounds": num_rounds, "local_epochs": 2, "batch_size": 16})
        counted.append((comm.ledger.bytes_sent - before, comm.ledger.calls["all_reduce"] - calls))
    return one, counted


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_a_round_is_one_all_reduce_however_long_clients_train(transport):
    for one, ((start, no_calls), (sent, calls)) in launch(bytes_of, world_size=3, transport=transport):
        assert (no_calls, calls) == (0, 3)
        assert sent - start == 3 * one > 0


def test_clients_that_all_weigh_the_same_are_rejected():
    check_one_local_step_is_data_parallel_sgd(lambda data: in_one_process(data, 4, 1, weight=lambda n: n))
    with pytest.raises(AssertionError):
        check_one_local_step_is_data_parallel_sgd(lambda data: in_one_process(data, 4, 1, weight=lambda n: 1))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_many_local_steps_equal_the_paper_on_any_number_of_ranks(momentum):
    options = {"num_rounds": 3, "local_epochs": 2, "batch_size": 16}
    if momentum:
        options["server_optimizer"] = MOMENTUM
    expected = in_one_process(homes(), 3, 2, weight=lambda n: n, batch_size=16, momentum=momentum)
    for world_size in (1, 3):
        assert_alike(launched(world_size, options)[0], expected)


def test_over_torch_too():
    expected = in_one_process(homes(), 2, 1, weight=lambda n: n)
    assert_alike(launched(2, {"num_rounds": 2}, transport="torch")[0], expected)


def test_some_take_part_by_the_seed_and_all_in_the_end():
    options = {"num_rounds": 40, "participation": 0.4, "seed": 3}
    rounds = launched(2, options)[1]
    assert all(len(r.chosen) == 2 and r.chosen == r.came_back for r in rounds)
    sizes = [len(x) for x, _ in homes()]
    assert all(r.num_samples == sum(sizes[k] for k in r.chosen) for r in rounds)
    times = np.bincount([k for r in rounds for k in r.chosen], minlength=5)
    assert stats.chisquare(times).pvalue > 1e-3
    assert launched(1, {**options, "num_rounds": 5})[1] == rounds[:5]
    assert [r.chosen for r in launched(1, {**options, "num_rounds": 5, "seed": 4})[1]] != [r.chosen for r in rounds[:5]]


def leaves(number, client):
    return client == 2 or number == 1


def test_a_client_that_leaves_is_not_in_the_mean():
    found, rounds = launched(2, {"num_rounds": 3, "leaves": leaves, "server_optimizer": MOMENTUM})
    assert [r.came_back for r in rounds] == [(0, 1, 3, 4), (), (0, 1, 3, 4)]
    assert rounds[1].num_samples == 0
    data = homes()
    expected = in_one_process([data[k] for k in (0, 1, 3, 4)], 2, 1, weight=lambda n: n, momentum=0.9)
    assert_alike(found, expected)


def killed_in_the_second_round(comm):
    """Rank 2 dies while it trains; the others go on from the weights that they have, with the clients that are left."""
    data, module, done = homes(3), net(seed=comm.rank), []

    def dies(number, client):
        if number == 1 and client == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    options = {"num_rounds": 3, "after_round": done.append}
    try:
        federated_averaging(comm, module, {comm.rank: data[comm.rank]}, SGD, cross_entropy, leaves=dies, **options)
    except RankLost:
        mine = {comm.rank: data[comm.rank]}
        federated_averaging(comm.regroup(), module, mine, SGD, cross_entropy, **options | {"num_rounds": 2})
    return [p.detach() for p in module.parameters()], [r.came_back for r in done]


def test_a_client_whose_process_is_killed_is_gone_and_the_others_go_on():
    results = launch(killed_in_the_second_round, world_size=3, elastic=True)
    data = homes(3)
    expected = in_one_process(lambda number: data[: 3 if number == 0 else 2], 3, 1, weight=lambda n: n)
    assert results[2] is None
    for parameters, came_back in results[:2]:
        assert came_back == [(0, 1, 2), (0, 1), (0, 1)]
        assert_alike(parameters, expected)


def accuracies(comm, alpha, server_optimizer, num_rounds=20):
    x, y, x_test, y_test = digits()
    parts = dirichlet_split(y, 10, alpha, seed=1)
    mine = {k: (x[parts[k]], y[parts[k]]) for k in range(comm.rank, 10, comm.world_size)}
    module, seen = net(dtype=torch.float32), []

    def note(_):
        seen.append((module(x_test).argmax(1) == y_test).float().mean().item())

    options = {"local_epochs": 2, "batch_size": 16, "participation": 0.2, "after_round": note}
    optimizer = partial(torch.optim.SGD, lr=0.1)
    federated_averaging(
        comm,
        module,
        mine,
        optimizer,
        cross_entropy,
        num_rounds=num_rounds,
        server_optimizer=server_optimizer,
        **options,
    )
    return seen


def test_it_learns_better_from_clients_that_are_alike():
    alike, skewed = (launch(accuracies, alpha, None, world_size=2)[0] for alpha in (math.inf, 0.05))
    assert len(alike) == 20
    assert np.mean(alike[-5:]) > 0.85 > np.mean(skewed[-5:]) > 0.2


# --- the split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 1.0, 100.0, math.inf])
@pytest.mark.parametrize("num_clients", [1, 3, 10])
def test_every_sample_goes_to_one_client(alpha, num_clients):
    _, y, _, _ = digits()
    parts = dirichlet_split(y, num_clients, alpha, seed=2)
    assert len(parts) == num_clients
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(y)))
    assert all(torch.equal(a, b) for a, b in zip(parts, dirichlet_split(y, num_clients, alpha, seed=2), strict=True))


def test_alpha_says_how_much_clients_differ():
    _, y, _, _ = digits()

    def largest(alpha):
        shares = [np.bincount(y[part], minlength=10) for part in dirichlet_split(y, 10, alpha, seed=0)]
        return np.mean([counts.max() / counts.sum() for counts in shares if counts.sum()])

    found = [largest(alpha) for alpha in (0.05, 0.5, 5.0, math.inf)]
    assert found == sorted(found, reverse=True) and found[0] > 0.4 and found[-1] < 0.13
    sizes = [len(part) for part in dirichlet_split(y, 10, math.inf)]
    assert max(sizes) - min(sizes) <= 10


# --- in secret -------------------------------------------------------------------------------------------------------


def in_secret(comm, gone=(), threshold=2):
    seen = {}
    tensor = torch.zeros(200, 100) if comm.rank == 0 else torch.full((200, 100), comm.rank * 1.25)
    secure_all_reduce(comm, tensor, threshold, leaves=comm.rank in gone, watch=seen.update)
    return tensor, seen


@pytest.mark.parametrize("gone", [(), (3,)])
@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_the_server_adds_what_it_cannot_see(gone, transport):
    results = launch(in_secret, gone, world_size=5, transport=transport)
    expected = 1.25 * sum(rank for rank in range(1, 5) if rank not in gone)
    assert all(torch.equal(tensor, torch.full((200, 100), expected)) for tensor, _ in results)
    seen = results[0][1]
    assert sorted(seen) == [rank for rank in range(1, 5) if rank not in gone]
    for words in seen.values():
        assert stats.chisquare(np.bincount(words.view(np.uint8), minlength=256)).pvalue > 1e-6
    assert all(not other for _, other in results[1:])


def server_with_data(comm):
    secure_all_reduce(comm, torch.ones(2), 2)


def test_too_few_that_stay_end_the_launch():
    with pytest.raises(RankFailed, match=r"survivors=\[1\]: 2 or more of"):
        launch(in_secret, (2, 3), world_size=4, timeout_s=20)
    with pytest.raises(RankFailed, match="three ranks, are needed"):
        launch(in_secret, world_size=2)
    with pytest.raises(RankFailed, match="rank 0 is the server: a tensor of zeros is needed there"):
        launch(server_with_data, world_size=3)


def averaged_in_secret(comm, options):
    add = partial(secure_all_reduce, comm, threshold=2, fraction_bits=20)
    return on_ranks(comm, options | {"add": add}, num_clients=3, first=1)


def test_fedavg_with_secret_sums_equals_the_open_one_to_the_fixed_point():
    options = {"num_rounds": 3, "batch_size": 16}
    secret = launch(averaged_in_secret, options, world_size=4)
    expected = in_one_process(homes(3), 3, 1, weight=lambda n: n, batch_size=16)
    for parameters, rounds in secret:
        assert [r.came_back for r in rounds] == [(0, 1, 2)] * 3
        for a, b in zip(parameters, expected, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-5)


# --- what cannot be --------------------------------------------------------------------------------------------------


def what_cannot_be(comm):
    data, module = homes(), net()
    right = {"clients": {comm.rank: data[comm.rank]}, "optimizer": SGD, "loss": cross_entropy, "num_rounds": 1}
    x, y = data[0]
    for bad, match in (
        ({"clients": {0: (x, y)}}, r"clients=\[0, 0\] of all ranks"),
        ({"clients": {comm.rank + 1: (x, y)}}, r"clients=\[1, 2\]"),
        ({"clients": {}}, r"clients=\[\]"),
        ({"clients": {comm.rank: (x, y[:-1])}}, r"clients\[0\] has x of"),
        ({"participation": 0}, "participation=0"),
        ({"participation": 1.5}, r"participation=1\.5"),
        ({"local_epochs": 0}, "local_epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_rounds": -1}, "num_rounds=-1"),
        ({"module": nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10))}, "module has buffers"),
    ):
        arguments = {"module": module} | right | bad
        with pytest.raises(ValueError, match=match):
            federated_averaging(comm, **arguments)
    with pytest.raises(TypeError, match="optimizer is a"):
        federated_averaging(comm, module, **right | {"optimizer": "sgd"})
    with pytest.raises(TypeError, match="server_optimizer made a"):
        federated_averaging(comm, module, **right, server_optimizer=lambda p: None)
    before = [p.detach().clone() for p in module.parameters()]
    assert federated_averaging(comm, module, **right | {"num_rounds": 0}) == []
    empty = {comm.rank: (x[:0], y[:0])}
    (only,) = federated_averaging(comm, module, **right | {"clients": empty})
    assert only.num_samples == 0 and all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_what_cannot_be():
    launch(what_cannot_be, world_size=2)
    with pytest.raises(ValueError, match="alpha=0"):
        dirichlet_split([0, 1], 2, 0)
    with pytest.raises(ValueError, match="num_clients=0"):
        dirichlet_split([0, 1], 0, 1.0)
