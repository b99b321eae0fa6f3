"""The parameter server: synchronous equals data parallelism; what is asynchronous is counted, and ends."""

import inspect
import subprocess
import sys
import time
from functools import partial
from math import inf

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lessons_lib import CollectiveMismatch, Mesh, RankFailed, launch
from lessons_lib.memory import Meter
from lessons_lib.parallel import parameter_server
from lessons_lib.parallel.local.parameter_server import split_parameters

cloudpickle.register_pickle_by_value(sys.modules[__name__])
OPTIMISERS = {
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
}
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


class Odd(nn.Module):
    """Tied, frozen and float32 parameters, one that nobody uses and one that only the first worker uses."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 7)
        self.tied = nn.Linear(7, 7)
        self.tied_again = nn.Linear(7, 7, bias=False)
        self.tied_again.weight = self.tied.weight
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.sometimes = nn.Linear(7, 3)
        self.last = nn.Linear(7, 3)
        self.double()
        self.unused = nn.Linear(3, 3)

    def forward(self, x, more):
        hidden = self.tied_again(self.frozen(self.tied(self.first(x).tanh()).tanh())).tanh()
        return self.last(hidden) + self.sometimes(hidden) if more else self.last(hidden)


def share(worker, number):
    """Of a batch whose shares have different sizes; the first worker's is empty at step 2."""
    generator = torch.Generator().manual_seed(1000 * worker + number)
    x = torch.randn(0 if (worker, number) == (0, 2) else 3 + worker, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (len(x),), generator=generator)


def work_of(model, seen, steps=6):
    def work(server):
        for number in range(steps):
            server.pull()
            seen.append([p.detach().clone() for p in model.parameters()])
            model.zero_grad()
            x, y = share(server.rank, number)
            for half in (0, 1):  # accumulated in two backward passes
                cross_entropy(model(x[half::2], server.rank == 0), y[half::2], reduction="sum").backward()
            for p in model.parameters():
                p.grad = p.grad / max(1, len(x)) if p.grad is not None else None
            server.push(weight=len(x))
        return server.clock

    return work


def synchronous(comm, name, num_servers):
    """Every version that a worker pulled, beside one process that takes the whole batch."""
    torch.manual_seed(comm.rank)
    model, seen = Odd(), []
    result = parameter_server(model, comm, OPTIMISERS[name], work_of(model, seen), num_servers=num_servers)
    num_workers = comm.world_size - num_servers
    if comm.rank < num_servers:
        assert sorted((p.worker, p.clock) for p in result) == [(w, c) for w in range(num_workers) for c in range(6)]
        assert all(p.staleness == p.ahead == 0 and p.version == p.clock for p in result)
        return [p.detach() for p in model.parameters()], 0.0
    assert result == 6
    torch.manual_seed(0)
    alone = Odd()
    optimizer, far = OPTIMISERS[name](alone.parameters()), 0.0
    for number in range(6):
        far = max(far, compare(seen[number], alone))
        shares = [share(worker, number) for worker in range(num_workers)]
        losses = [cross_entropy(alone(x, w == 0), y, reduction="sum") for w, (x, y) in enumerate(shares)]
        used = [loss for loss, (x, _) in zip(losses, shares, strict=True) if len(x)]
        optimizer.zero_grad()
        if used:
            (sum(used) / sum(len(x) for x, _ in shares)).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()], max(far, compare(model.parameters(), alone))


def compare(parameters, alone):
    far = 0.0
    for mine, theirs in zip(parameters, alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **(TIGHT if mine.dtype == torch.float64 else {}))
        far = max(far, ((mine - theirs).abs() / (theirs.abs() + 1e-2)).max().item())
    return far


def all_set_ups(comm):
    most = 0.0
    for name, num_servers in [("adam", 1), ("sgd", 1), ("adamw", 2), ("sgd", 3)]:
        if num_servers < comm.world_size:
            numbers, far = synchronous(comm, name, num_servers)
            most = max(most, far)
            for mine in numbers:
                first = mine.clone()
                comm.broadcast(first)
                assert torch.equal(first, mine)
    return most


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_the_synchronous_server_equals_one_process_at_every_step(world_size):
    assert max(launch(all_set_ups, world_size=world_size)) < 1e-10


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_synchronous_server_equals_one_process_over_torch(world_size):
    assert max(launch(all_set_ups, world_size=world_size, transport="torch")) < 1e-10


def on_an_axis(comm):
    mesh = Mesh(comm, job=2, rank=3)
    return synchronous(mesh["rank"], "adam", 1)[1]


def test_on_an_axis_of_a_mesh():
    assert max(launch(on_an_axis, world_size=6)) < 1e-10


# --- staleness --------------------------------------------------------------------------------------------------------


def stale(comm, max_staleness, num_steps, num_servers, slow_s):
    """A quadratic whose gradient says which version it was made with; the last worker is slow."""
    model = nn.Linear(1, 3, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    applied = []

    def make(parameters):
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        optimizer.register_step_post_hook(lambda *_: applied.append(parameters[0].detach().clone()))
        return optimizer

    def work(server):
        for number in range(num_steps):
            server.pull()
            if server.rank == server.num_workers - 1:
                time.sleep(slow_s)  # so that the others run into the bound; nothing asserted depends on it
            mark = torch.zeros(3, 1, dtype=torch.float64)
            mark[0], mark[1], mark[2] = -1, -(10.0**server.rank), -number
            server.push([mark])
        return server.clock

    result = parameter_server(model, comm, make, work, max_staleness, num_servers)
    return result, model.weight.detach(), applied


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
@pytest.mark.parametrize("max_staleness", [1, 3, inf])
def test_nobody_is_further_ahead_than_allowed_and_each_gradient_counts_once(max_staleness, transport):
    num_workers, num_steps = 3, 8
    ranks = launch(stale, max_staleness, num_steps, 1, 2e-3, world_size=1 + num_workers, transport=transport)
    pushes, weights, applied = ranks[0]
    assert [clock for clock, _, _ in ranks[1:]] == [num_steps] * num_workers
    each = [(w, c) for w in range(num_workers) for c in range(num_steps)]
    assert sorted((push.worker, push.clock) for push in pushes) == each
    assert [push.version for push in pushes] == list(range(len(each)))  # each is one step, in this order
    torch.testing.assert_close(
        weights.flatten().tolist(), [24.0, num_steps * 111.0, num_workers * sum(range(num_steps)) * 1.0]
    )
    for push, before, after in zip(pushes, [torch.zeros_like(weights), *applied], applied, strict=False):
        assert (after - before)[1] == 10.0**push.worker and (after - before)[2] == push.clock
    # Replay: the clocks at each pull, counted again from the order of the pushes.
    for push in pushes:
        clocks = [sum(p.worker == w for p in pushes[: push.pulled]) for w in range(num_workers)]
        assert clocks[push.worker] == push.clock and push.pulled <= push.version
        at_work = [clock for clock in clocks if clock < num_steps]
        assert push.ahead <= push.clock - min(at_work) <= max_staleness
        assert push.staleness <= (2 * max_staleness + 1) * (num_workers - 1)


def one_by_one(comm, name):
    """With one worker, bounded or not, each push is the next step of an ordinary training."""
    torch.manual_seed(comm.rank)
    model = Odd()
    parameter_server(model, comm, OPTIMISERS[name], lambda server: ordinary(server, model), 1)
    torch.manual_seed(0)
    alone = Odd()
    optimizer = OPTIMISERS[name](alone.parameters())
    for number in range(6):
        optimizer.zero_grad()
        x, y = share(1, number)
        cross_entropy(alone(x, False), y).backward()
        optimizer.step()
    return compare(model.parameters(), alone)


def ordinary(server, model):
    for number in range(6):
        server.pull()
        model.zero_grad()
        x, y = share(1, number)
        cross_entropy(model(x, False), y).backward()
        server.push()


def test_one_worker_alone_trains_as_one_process_does():
    assert max(launch(one_by_one, "adamw", world_size=2)) < 1e-10


def on_the_server(comm):
    """Clipping of the mean and a schedule of the learning rate, where the step is taken; batch statistics."""
    torch.manual_seed(comm.rank)
    model = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).double()

    def make(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(parameters, 0.1) and None)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer

    def work(server):
        for number in range(6):
            server.pull()
            model.zero_grad()
            x, y = share(1 + server.rank, number)
            cross_entropy(model(x), y).backward()
            server.push()

    parameter_server(model, comm, make, work)
    return [tensor.detach() for tensor in model.state_dict().values()]


def test_clipping_and_schedules_belong_to_the_servers_optimiser():
    ranks = launch(on_the_server, world_size=3)
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).double()
    optimizer, lr = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9), 0.1
    for number in range(6):
        optimizer.param_groups[0]["lr"] = lr / 10 ** (number // 2)
        optimizer.zero_grad()
        buffers = {name: buffer.clone() for name, buffer in alone.named_buffers()}
        for worker in (2, 1):  # the first worker's statistics are those that stay
            alone.load_state_dict(buffers, strict=False)
            x, y = share(worker, number)
            (cross_entropy(alone(x), y) / 2).backward()
        nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
        optimizer.step()
    for state in ranks:
        for mine, theirs in zip(state, alone.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, theirs, **TIGHT)


# --- bytes and memory -------------------------------------------------------------------------------------------------


def moved(comm, num_servers, num_steps):
    """Bytes sent and received, those of the parameters, and how many tensors these are."""
    model = Odd()
    work = work_of(model, [], num_steps)
    parameter_server(model, comm, OPTIMISERS["sgd"], work, 0, num_servers)
    size_bytes = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    num_tensors = sum(p.requires_grad for p in model.parameters())
    return comm.ledger.bytes_sent, comm.ledger.bytes_received, size_bytes, num_tensors


@pytest.mark.parametrize("num_servers", [1, 2])
def test_bytes_are_those_of_the_docstring(num_servers):
    long, short = (launch(moved, num_servers, num_steps, world_size=4) for num_steps in (6, 0))
    _, _, size_bytes, num_tensors = long[0]
    header_bytes = 16 * num_servers + 8 * num_tensors
    more = [[after[k] - before[k] for k in (0, 1)] for after, before in zip(long, short, strict=True)]
    for sent, received in more[num_servers:]:
        assert (sent, received) == (6 * (2 * header_bytes + size_bytes), 6 * size_bytes)
    num_workers = 4 - num_servers
    sent, received = (sum(row[k] for row in more[:num_servers]) for k in (0, 1))
    assert (sent, received) == (num_workers * 6 * size_bytes, num_workers * 6 * (2 * header_bytes + size_bytes))


def kept(comm, max_staleness):
    """The most that was alive, in sizes of the weights, on a server with momentum and on a plain worker."""
    model = nn.Sequential(*[nn.Linear(100, 100, bias=False) for _ in range(10)])

    def work(server):
        for _ in range(3):
            server.pull()
            model.zero_grad()
            model(torch.randn(4, 100)).square().mean().backward()
            server.push()

    with Meter(*model.parameters()) as meter:
        weights_bytes = meter.now
        parameter_server(model, comm, OPTIMISERS["sgd"], work, max_staleness)
    return meter.peak / weights_bytes


@pytest.mark.parametrize("max_staleness", [0, 2, inf])
def test_memory_is_what_the_docstring_says(max_staleness):
    # Over torch, since in shared memory the meter also sees the room that all ranks have for collectives.
    server, *workers = launch(kept, max_staleness, world_size=4, transport="torch")
    num_gradients = 3 if max_staleness == 0 else 1
    assert 2 + num_gradients <= server <= 1.1 * (2 + num_gradients)  # weights, velocities, gradients
    assert all(3 <= worker <= 4.4 for worker in workers)  # weights, gradients, what is sent, what is received


def under_torchrun():
    """The script that torchrun starts: both strategies, on four ranks, over gloo."""
    import torch
    from torch import nn

    from lessons_lib import connect
    from lessons_lib.parallel import LocalSGD, parameter_server

    with connect() as comm:
        torch.manual_seed(comm.rank)
        net = LocalSGD(nn.Linear(3, 2).double(), comm, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for number in range(4):
            optimizer.zero_grad()
            (net(torch.ones(1, 3).double() * comm.rank).sum() * (number + 1)).backward()
            optimizer.step()
            net.step()
        model = nn.Linear(3, 2, bias=False).double()
        nn.init.ones_(model.weight)

        def work(server):
            for _ in range(5):
                server.pull()
                server.push([torch.full((2, 3), 1.0 + server.rank, dtype=torch.float64)])

        parameter_server(model, comm, lambda p: torch.optim.SGD(p, lr=0.5), work, 1)
        rows = torch.zeros(4 * 14, dtype=torch.float64)
        mine = [p.detach().flatten() for p in (*net.parameters(), *model.parameters())]
        comm.all_gather(rows, torch.cat(mine))
        if comm.rank == 0:
            rows = rows.view(4, 14)
            print(bool((rows == rows[0]).all()), rows[0, 8:].unique().tolist())


def test_under_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(inspect.getsource(under_torchrun) + "\n\nunder_torchrun()\n")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", str(script)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.split("\n")[0] == "True [-14.0]", done.stderr  # 1 − ½ · 5 · (1 + 2 + 3)


def test_parameters_are_dealt_out_to_servers_by_size():
    sizes = [5, 100, 60, 50, 1, 1]
    shares = split_parameters([torch.zeros(size) for size in sizes], 2)
    assert [[p.numel() for p in share] for share in shares] == [[5, 100, 1, 1], [60, 50]]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def breaks(comm, what, max_staleness):
    model = nn.Linear(6, 3)

    def work(server):
        for number in range(4):
            server.pull()
            if what == "barrier":
                comm.barrier()
            model.zero_grad()
            model(torch.randn(2, 6)).sum().backward()
            if server.rank == 1 and number == 2:
                if what == "raise":
                    raise ArithmeticError("the data of this worker are broken")
                if what == "leave":
                    return
            server.push()

    def make(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        if what == "server" and comm.rank == 0:
            optimizer.register_step_post_hook(lambda *_: 1 / 0)
        return optimizer

    pushes = parameter_server(model, comm, make, work, max_staleness)
    return pushes if comm.rank == 0 else model.weight.detach()


def test_workers_that_wait_for_each_other_elsewhere_are_told():
    with pytest.raises(CollectiveMismatch, match=r"rank 0: recv\(.*src=None\).*barrier"):
        launch(breaks, "barrier", 0, world_size=3, timeout_s=20)


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
@pytest.mark.parametrize("max_staleness", [0, 1, inf])
def test_a_worker_that_raises_is_named_and_nothing_hangs(max_staleness, transport):
    with pytest.raises(RankFailed, match="rank 2 raised ArithmeticError: the data of this worker are broken"):
        launch(breaks, "raise", max_staleness, world_size=4, transport=transport, timeout_s=20)


def test_a_server_that_raises_is_named():
    with pytest.raises(RankFailed, match="rank 0 raised ZeroDivisionError"):
        launch(breaks, "server", 1, world_size=3, timeout_s=20)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_the_others_go_on_when_a_worker_has_ended_early(max_staleness):
    pushes, *weights = launch(breaks, "leave", max_staleness, world_size=4)
    assert sorted(push.worker for push in pushes) == [0] * 4 + [1] * 2 + [2] * 4
    assert all(torch.equal(weights[0], each) for each in weights)


def misuse(comm):
    model = nn.Linear(6, 3)

    def work(server):
        with pytest.raises(RuntimeError, match="push\\(\\) without a pull"):
            server.push()
        server.pull()
        server.pull()  # to look again is allowed
        for kind, match, arguments in [
            (ValueError, "gradient has 1 tensors: 2 are needed", {"gradient": [None]}),
            (ValueError, r"of shape \(2,\): torch.float32 of \(3, 6\) is needed", {"gradient": [torch.ones(2), None]}),
            (TypeError, "gradient holds a str: dense tensors", {"gradient": ["g", None]}),
            (ValueError, "weight=-1: a number from 0 up is needed", {"weight": -1}),
        ]:
            with pytest.raises(kind, match=match):
                server.push(**arguments)
        model.extra = nn.Parameter(torch.ones(1))
        with pytest.raises(RuntimeError, match="trains other parameters than when"):
            server.push()
        del model.extra
        server.push()  # no gradient at all: nothing moves
        return server

    before = [p.detach().clone() for p in model.parameters()]
    server = parameter_server(model, comm, partial(torch.optim.AdamW, lr=1.0), work)
    if comm.rank:
        with pytest.raises(RuntimeError, match="the work of this worker has ended"):
            server.pull()
    else:
        assert all(map(torch.equal, before, model.parameters()))
    with pytest.raises(ValueError, match=r"max_staleness=-1: a whole number of at least 0"):
        parameter_server(model, comm, OPTIMISERS["sgd"], work, -1)
    with pytest.raises(ValueError, match="num_servers=3 of 3 ranks: at least one worker is needed"):
        parameter_server(model, comm, OPTIMISERS["sgd"], work, 0, 3)
    with pytest.raises(TypeError, match="work is a int: a function of a worker"):
        parameter_server(model, comm, OPTIMISERS["sgd"], 3)
    with pytest.raises(TypeError, match="optimizer is a SGD: what makes an optimiser"):
        parameter_server(model, comm, torch.optim.SGD(model.parameters(), lr=1.0), work)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        parameter_server(model, comm, partial(torch.optim.SGD, lr=-1.0), work)
    with pytest.raises(ValueError, match="num_servers=2: at most 1 are needed"):
        parameter_server(nn.Linear(2, 2, bias=False), comm, OPTIMISERS["sgd"], work, 0, 2)


def test_misuse_is_refused_on_every_rank_and_training_can_go_on():
    launch(misuse, world_size=3)


def differ(comm):
    parameter_server(nn.Linear(2, 2), comm, OPTIMISERS["sgd"], lambda server: None, comm.rank)


def test_other_options_on_another_rank_are_a_mismatch():
    with pytest.raises(CollectiveMismatch, match="max_staleness=1"):
        launch(differ, world_size=2)


def alone(comm):
    parameter_server(nn.Linear(2, 2), comm, OPTIMISERS["sgd"], lambda server: None)


def test_one_rank_cannot_serve_itself():
    with pytest.raises(RankFailed, match="num_servers=1 of 1 ranks: at least one worker is needed"):
        launch(alone, world_size=1)
