"""Local SGD and DiLoCo: real ranks against one process that plays all workers, after every step."""

import copy
import io
import sys
from functools import partial

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from lessons_lib import CollectiveMismatch, Mesh, RankFailed, launch
from lessons_lib.memory import Meter
from lessons_lib.optim import SGD, Adam
from lessons_lib.parallel import DataParallel, LocalSGD

cloudpickle.register_pickle_by_value(sys.modules[__name__])
NESTEROV = partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)
INNER = {"adam": partial(torch.optim.Adam, lr=1e-2), "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9)}
OUTER = {"mean": None, "nesterov": NESTEROV, "adam": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)}
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


class Odd(nn.Module):
    """Tied, frozen, and unused float32 parameters; buffers that are averaged, and one that counts."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 7)
        self.norm = nn.BatchNorm1d(7)
        self.tied = nn.Linear(7, 7)
        self.tied_again = nn.Linear(7, 7, bias=False)
        self.tied_again.weight = self.tied.weight
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.last = nn.Linear(7, 3)
        self.double()
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        hidden = self.tied_again(self.frozen(self.tied(self.norm(self.first(x).tanh())).tanh()))
        return self.last(hidden.tanh())


def batch(worker, number, num_rows=5):
    generator = torch.Generator().manual_seed(1000 * worker + number)
    x = torch.randn(num_rows + worker, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (len(x),), generator=generator)


def numbers_of(model):
    return [tensor.detach().clone() for tensor in [*model.parameters(), *model.buffers()]]


class Simulation:
    """One process that plays all workers: a plain model and an inner optimiser each, and the sums written out."""

    def __init__(self, num_workers, inner_steps, inner, outer):
        torch.manual_seed(0)
        self.models = [Odd()]
        self.models += [copy.deepcopy(self.models[0]) for _ in range(num_workers - 1)]
        self.optimizers = [inner(model.parameters()) for model in self.models]
        self.inner_steps, self.count = inner_steps, 0
        self.common = copy.deepcopy(self.models[0])
        self.outer = outer and outer(self.common.parameters())

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.count += 1
        if self.count % self.inner_steps == 0:
            self.average()

    @torch.no_grad()
    def average(self):
        for mine, *theirs in zip(self.common.buffers(), *[m.buffers() for m in self.models], strict=True):
            mine.copy_(sum(theirs) / len(theirs) if mine.is_floating_point() else theirs[0])
        for mine, *theirs in zip(self.common.parameters(), *[m.parameters() for m in self.models], strict=True):
            mine.grad = sum(mine - each for each in theirs) / len(theirs) if mine.requires_grad else None
            if self.outer is None:
                mine.copy_(sum(theirs) / len(theirs))
        if self.outer:
            self.outer.step()
        for model in self.models:
            for theirs, mine in zip(numbers_in(model), numbers_in(self.common), strict=True):
                theirs.copy_(mine)


def numbers_in(model):
    return [*model.parameters(), *model.buffers()]


def trained(comm, inner, outer, inner_steps, passes):
    """Compare with the simulation after each of six steps, from ranks that start differently."""
    torch.manual_seed(comm.rank)
    net = LocalSGD(Odd(), comm, inner_steps, OUTER[outer])
    alone = Simulation(comm.world_size, inner_steps, INNER[inner], OUTER[outer])
    optimizer, far = INNER[inner](net.parameters()), 0.0
    for number in range(6):
        for turn in range(passes):
            for worker, model in enumerate(alone.models):
                x, y = batch(worker, passes * number + turn)
                (cross_entropy(model(x), y) / passes).backward()
            x, y = batch(comm.rank, passes * number + turn)
            loss = cross_entropy(net(x), y) / passes
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        net.step()
        alone.step()
        for mine, theirs in zip(numbers_of(net.module), numbers_of(alone.models[comm.rank]), strict=True):
            if mine.dtype == torch.float64:
                far = max(far, ((mine - theirs).abs() / (theirs.abs() + 1e-2)).max().item())
            torch.testing.assert_close(mine, theirs, **(TIGHT if mine.dtype == torch.float64 else {}))
    return far, numbers_of(net.module), net.module.unused.weight.grad


def all_set_ups(comm):
    """Every kind of optimiser, inside and outside, in one launch."""
    most = 0.0
    for inner_steps, inner, outer in [(3, i, o) for i in INNER for o in OUTER] + [
        (1, "adam", "mean"),
        (4, "sgd", "nesterov"),
    ]:
        far, numbers, unused = trained(comm, inner, outer, inner_steps, passes=1 + (inner == "sgd"))
        most = max(most, far)
        assert unused is None
        if inner_steps != 4:  # the last step was followed by an average
            for mine in numbers:
                first = mine.clone()
                comm.broadcast(first)
                assert torch.equal(first, mine)
    return most


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_every_step_equals_one_process_that_plays_all_workers(world_size):
    assert max(launch(all_set_ups, world_size=world_size)) < 1e-10


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_step_equals_one_process_over_torch(world_size):
    assert max(launch(all_set_ups, world_size=world_size, transport="torch")) < 1e-10


# --- bytes and memory -------------------------------------------------------------------------------------------------


def moved(comm, inner_steps, outer):
    net = LocalSGD(Odd(), comm, inner_steps, OUTER[outer])
    optimizer = SGD(net.parameters(), lr=0.1)
    before = comm.ledger.bytes_sent, comm.ledger.calls.get("all_reduce", 0)
    for number in range(12):
        x, y = batch(comm.rank, number)
        cross_entropy(net(x), y).backward()
        optimizer.step()
        net.step()
    travels = [p for p in net.parameters() if p.requires_grad] + [b for b in net.buffers() if b.is_floating_point()]
    sizes = {dtype: sum(t.numel() for t in travels if t.dtype == dtype) for dtype in (torch.float32, torch.float64)}
    return comm.ledger.bytes_sent - before[0], comm.ledger.calls["all_reduce"] - before[1], sizes


@pytest.mark.parametrize("outer", ["mean", "nesterov"])
def test_bytes_are_exactly_one_hth(outer):
    """Sent by all ranks: 2 (N − 1) numel an average, beside the 8 bytes of the counting buffer."""
    runs = {steps: launch(moved, steps, outer, world_size=3, algorithm="ring") for steps in (1, 2, 3, 4, 12)}
    each = [sum(sent for sent, _, _ in runs[steps]) for steps in runs]
    assert each[0] == 2 * each[1] == 3 * each[2] == 4 * each[3] == 12 * each[4]
    _, calls, sizes = runs[12][0]
    assert calls == 2  # one for each dtype
    assert each[4] == 2 * (3 - 1) * (8 * sizes[torch.float64] + 4 * sizes[torch.float32]) + 2 * 8


def kept(comm, outer):
    """The most that was alive, in sizes of the weights."""
    net = nn.Sequential(*[nn.Linear(100, 100, bias=False) for _ in range(10)])
    with Meter(*net.parameters()) as meter:
        weights_bytes = meter.now
        net = LocalSGD(net, comm, 2, OUTER[outer])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(4):
            net(torch.randn(4, 100)).square().mean().backward()
            optimizer.step()
            net.step()
    return meter.peak / weights_bytes


@pytest.mark.parametrize(("outer", "expected"), [("mean", 3), ("nesterov", 5)])
def test_memory_is_what_the_docstring_says(outer, expected):
    """Weights, gradients and what travels; with Nesterov's momentum also the start and a velocity."""
    # Over torch, since in shared memory the meter also sees the room that all ranks have for collectives.
    for peak in launch(kept, outer, world_size=2, transport="torch"):
        assert expected <= peak <= 1.1 * expected


# --- known relatives --------------------------------------------------------------------------------------------------


def relatives(comm):
    """One inner step of SGD is data parallelism; an outer SGD of lr 1 is the plain mean."""
    models, nets = [], []
    for kind in range(3):
        torch.manual_seed(0)
        models.append(nn.Linear(6, 3, dtype=torch.float64))
        wrap = [
            lambda m: DataParallel(m, comm, weight_by_batch=False),
            lambda m: LocalSGD(m, comm, 1),
            lambda m: LocalSGD(m, comm, 1, partial(torch.optim.SGD, lr=1.0)),
        ]
        nets.append(wrap[kind](models[-1]))
    optimizers = [SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    for number in range(6):
        x, y = batch(comm.rank, number)
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
            if isinstance(net, LocalSGD):
                net.step()
        for model in models[1:]:
            torch.testing.assert_close(model.weight, models[0].weight, **TIGHT)


def test_one_inner_step_of_sgd_is_data_parallelism():
    launch(relatives, world_size=3)


def beside_torch(comm):
    """Torch's averager and ours, every third step, after each step."""
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

    averager = PeriodicModelAverager(period=3, warmup_steps=0)
    averager.step = 1  # torch averages where its count divides: so both average after steps 3 and 6
    torch.manual_seed(0)
    theirs = nn.Linear(6, 3, dtype=torch.float64)
    ours = LocalSGD(copy.deepcopy(theirs), comm, 3)
    optimizers = [Adam(model.parameters(), lr=1e-2) for model in (theirs, ours)]
    for number in range(7):
        x, y = batch(comm.rank, number)
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        ours.step()
        averager.average_parameters(theirs.parameters())
        torch.testing.assert_close(ours.module.weight, theirs.weight, **TIGHT)


def test_every_step_equals_torchs_own_averager():
    launch(beside_torch, world_size=2, transport="torch")


# --- as people write it -----------------------------------------------------------------------------------------------


def changed_midway(comm):
    """Frozen after the second step, thawed after the fourth; what moved before it was frozen is averaged."""
    torch.manual_seed(comm.rank)
    net = LocalSGD(Odd(), comm, 3, NESTEROV)
    alone = Simulation(comm.world_size, 3, INNER["sgd"], None)
    alone.outer = NESTEROV(alone.common.parameters())
    optimizer = INNER["sgd"](net.parameters())
    for number in range(9):
        for model in [*alone.models, net.module]:
            model.first.requires_grad_(number not in (2, 3, 4))
        for worker, model in enumerate(alone.models):
            cross_entropy(model(batch(worker, number)[0]), batch(worker, number)[1]).backward()
        cross_entropy(net(batch(comm.rank, number)[0]), batch(comm.rank, number)[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        net.step()
        # The simulation's outer step sees all that has moved in its round: rounds 0 to 2 and 3 to 5 move `first`.
        alone.step()
        torch.testing.assert_close(net.module.first.weight, alone.models[comm.rank].first.weight, **TIGHT)


def test_what_is_frozen_in_the_middle_of_a_round_is_averaged_with_it():
    launch(changed_midway, world_size=3)


def clipped(net, optimizer, x, y, number):
    cross_entropy(net(x), y).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    optimizer.step()


def evaluated(net, optimizer, x, y, number):
    loss = cross_entropy(checkpoint(net, x, use_reentrant=False), y)
    loss.backward()
    net.eval()
    with torch.inference_mode():
        net(x)
    net.train()
    optimizer.step()


def caught(net, optimizer, x, y, number):
    loss = cross_entropy(net(x), y)
    loss.backward(retain_graph=True)
    try:
        if number == 2:
            raise ValueError
        loss.backward()
    except ValueError:
        optimizer.zero_grad()
    optimizer.step()


def by_hand(net, optimizer, x, y, number):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(x)
    cross_entropy(outputs.double(), y).backward()
    with torch.no_grad():
        for p in net.parameters():
            p.sub_(p.grad if p.grad is not None else 0, alpha=0.1)


def with_closure(net, optimizer, x, y, number):
    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        return loss

    torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3).step(closure)


def as_people_write(comm):
    """The same code trains the wrapper, and the plain models of one process."""
    far = {}
    for scenario in (clipped, evaluated, caught, by_hand, with_closure):
        torch.manual_seed(comm.rank)
        net = LocalSGD(Odd(), comm, 2, NESTEROV)
        alone = Simulation(comm.world_size, 2, INNER["sgd"], NESTEROV)
        optimizer = INNER["sgd"](net.parameters())
        for number in range(5):
            scenario(net, optimizer, *batch(comm.rank, number), number)
            optimizer.zero_grad()
            for worker, model in enumerate(alone.models):
                scenario(model, alone.optimizers[worker], *batch(worker, number), number)
                alone.optimizers[worker].zero_grad()
            with torch.inference_mode(number % 3 == 0):
                net.step()
            alone.count += 1
            if alone.count % 2 == 0:
                alone.average()
        net.average()  # the last step, before its time
        alone.average()
        pairs = zip(numbers_of(net.module), numbers_of(alone.models[0]), strict=True)
        far[scenario.__name__] = max((a - b).abs().max().item() for a, b in pairs if a.dtype == torch.float64)
    return far


def test_training_code_as_people_write_it_equals_one_process():
    for far in launch(as_people_write, world_size=3):
        assert max(far.values()) < 1e-10, far


def too_early(comm):
    net = LocalSGD(nn.Linear(6, 3), comm, 2)
    with pytest.warns(UserWarning, match="before any weight has moved"):
        net.step()


def shorter_rounds(comm):
    """A state saved four steps after an average, loaded where a round has three."""
    nets = [LocalSGD(nn.Linear(6, 3).double(), comm, steps) for steps in (5, 3)]
    optimizer = SGD(nets[0].parameters(), lr=0.1)
    for _ in range(4):
        nets[0](torch.randn(2, 6).double()).sum().backward()
        optimizer.step()
        nets[0].step()
    nets[1].load_state_dict(nets[0].state_dict())
    nets[1].step()
    weights = nets[1].module.weight.detach().clone()
    comm.broadcast(weights)
    return torch.equal(weights, nets[1].module.weight)


def test_a_step_too_early_is_told_and_a_round_that_is_over_ends():
    launch(too_early, world_size=2)
    assert launch(shorter_rounds, world_size=2) == [True, True]


def interrupted(comm, outer, at):
    """The numbers of an uninterrupted run, and of one that is saved, built anew and loaded after `at` steps."""
    found = []
    for stop in (None, at):
        torch.manual_seed(comm.rank)
        net = LocalSGD(Odd(), comm, 3, OUTER[outer])
        optimizer = INNER["adam"](net.parameters())
        for number in range(7):
            if number == stop:
                file = io.BytesIO()
                torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
                torch.manual_seed(99 + comm.rank)
                net = LocalSGD(Odd(), comm, 3, OUTER[outer])
                optimizer = INNER["adam"](net.parameters())
                file.seek(0)
                saved = torch.load(file, weights_only=True)
                net.load_state_dict(saved["net"])
                optimizer.load_state_dict(saved["optimizer"])
            cross_entropy(net(batch(comm.rank, number)[0]), batch(comm.rank, number)[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
            net.step()
        found.append((net.num_steps, numbers_of(net.module)))
    return all(map(torch.equal, found[0][1], found[1][1])) and found[0][0] == found[1][0] == 7


@pytest.mark.parametrize("at", [3, 5])
def test_a_run_that_is_saved_and_loaded_goes_on_to_the_same_bits(at):
    for outer in OUTER:
        assert launch(interrupted, outer, at, world_size=2) == [True, True]


def loaded_elsewhere(comm):
    """A state saved after an average goes to any number of ranks; one of a rank in between only back to it."""
    net = LocalSGD(Odd(), comm, 2, NESTEROV)
    state = copy.deepcopy(net.state_dict())
    state["_extra_state"].update(rank=7, world_size=9)
    net.load_state_dict(state)
    state["_extra_state"].update(num_local=1)
    with pytest.raises(ValueError, match=r"state of rank 7 of 9, 1 steps after an average: rank . of 2 needs its own"):
        net.load_state_dict(state)
    plain = LocalSGD(Odd(), comm, 2)
    with pytest.raises(ValueError, match="state with an outer optimiser: this LocalSGD has none"):
        plain.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match="state without an outer optimiser: this LocalSGD has one"):
        net.load_state_dict(plain.state_dict())


def test_states_are_loaded_where_they_belong():
    launch(loaded_elsewhere, world_size=2)


def loads(comm, who):
    """Weights loaded into the module itself, in the middle of a round, by the ranks in `who`."""
    torch.manual_seed(0)
    net, other = LocalSGD(Odd(), comm, 3, NESTEROV), Odd()
    optimizer = INNER["sgd"](net.parameters())
    if comm.rank in who:
        net.module.load_state_dict(other.state_dict())
    for number in range(3):
        cross_entropy(net(batch(comm.rank, number)[0]), batch(comm.rank, number)[1]).backward()
        optimizer.step()
        net.step()
    return max((a - b).abs().max().item() for a, b in zip(net.module.parameters(), other.parameters(), strict=True))


def test_weights_loaded_by_all_are_a_new_start_and_by_some_a_mismatch():
    assert max(launch(loads, (0, 1), world_size=2)) < 1.5  # not 0.7 times the way between two random starts more
    with pytest.raises(CollectiveMismatch, match=r"the ranks disagree: .*LocalSGD"):
        launch(loads, (1,), world_size=2)


def uneven(comm, how):
    net = LocalSGD(nn.Linear(6, 3).double(), comm, 3)
    optimizer = SGD(net.parameters(), lr=0.1)
    for _ in range(2 + (how == "steps") * comm.rank):
        net(torch.randn(2, 6).double()).sum().backward()
        optimizer.step()
        net.step()
    if how == "frozen":
        net.module.bias.requires_grad_(comm.rank == 0)
        net.average()
        net.module(torch.randn(2, 6).double()).sum().backward()
        optimizer.step()
        net.step()
    net.average()


@pytest.mark.parametrize("how", ["steps", "frozen"])
@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_ranks_that_do_not_do_the_same_are_told(how, transport):
    with pytest.raises(CollectiveMismatch, match=r"LocalSGD\.average\(\)"):
        launch(uneven, how, world_size=2, transport=transport, timeout_s=10)


def forgotten(comm):
    net = LocalSGD(nn.Linear(6, 3), comm, 3)
    optimizer, others = torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.Adam(nn.Linear(2, 2).parameters())
    for _ in range(2):
        net(torch.randn(2, 6)).sum().backward()
        others.step()
        optimizer.step()


def wrapped_twice(comm):
    model = nn.Linear(6, 3)
    first, optimizer = LocalSGD(model, comm, 3), torch.optim.SGD(model.parameters(), lr=0.1)
    second = LocalSGD(model, comm, 3)
    for _ in range(3):
        model(torch.randn(2, 6)).sum().backward()
        optimizer.step()
        second.step()
    with pytest.raises(RuntimeError, match="wrapped again: use the new one"):
        first.step()
    with pytest.raises(TypeError, match="module is a LocalSGD"):
        LocalSGD(second, comm, 3)
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.deepcopy(second)
    twin = copy.deepcopy(second.module)
    twin.load_state_dict(model.state_dict())
    del first, second
    for _ in range(2):
        optimizer.step()  # nobody counts any more


def test_a_forgotten_step_is_told_and_an_old_wrapper_lets_go():
    with pytest.raises(RankFailed, match=r"call net\.step\(\) after each optimizer"):
        launch(forgotten, world_size=2)
    launch(wrapped_twice, world_size=2)


def other_parameters(comm):
    net = LocalSGD(nn.Sequential(nn.Linear(6, 3)), comm, 1, NESTEROV)
    net.module[0] = nn.Linear(6, 4)
    with pytest.raises(RuntimeError, match="other parameters than when it was wrapped"):
        net.step()


def refused(comm):
    model = nn.Linear(2, 2)
    for kind, match, arguments in [
        (TypeError, "module is a str: a torch.nn.Module", ("model", comm, 2)),
        (TypeError, "comm is a int: the Communicator", (model, 3, 2)),
        (ValueError, "inner_steps=0: a whole number of at least 1", (model, comm, 0)),
        (ValueError, "inner_steps=1.5: a whole number", (model, comm, 1.5)),
        (TypeError, "outer_optimizer is a SGD: what makes", (model, comm, 2, SGD(model.parameters(), lr=1))),
        (TypeError, "outer_optimizer made a list: a torch.optim", (model, comm, 2, list)),
        (ValueError, "no parameter that needs a gradient", (nn.Flatten(), comm, 2)),
        (ValueError, "parameter weight has no shape yet", (nn.LazyLinear(2), comm, 2)),
    ]:
        with pytest.raises(kind, match=match):
            LocalSGD(*arguments)
    other_parameters(comm)


def test_bad_input_is_refused_on_every_rank():
    launch(refused, world_size=2)


def differ(comm):
    LocalSGD(nn.Linear(2, 2), comm, 2 + comm.rank)


def test_other_options_on_another_rank_are_a_mismatch():
    with pytest.raises(CollectiveMismatch, match="inner_steps=3"):
        launch(differ, world_size=2)


def on_axes(comm):
    """Gradients averaged on one axis at every step, weights on the other every second step."""
    mesh = Mesh(comm, far=2, near=2)
    torch.manual_seed(comm.rank)
    net = LocalSGD(DataParallel(nn.Linear(6, 3).double(), mesh["near"]), mesh["far"], 2, NESTEROV)
    torch.manual_seed(0)
    models = [nn.Linear(6, 3).double()]
    models.append(copy.deepcopy(models[0]))
    common = copy.deepcopy(models[0])
    outer = NESTEROV(common.parameters())
    optimizers = [SGD(model.parameters(), lr=0.1, momentum=0.9) for model in [*models, net]]
    for number in range(6):
        x, y = batch(comm.rank, number, 5 - comm.rank)
        cross_entropy(net(x), y).backward()
        for far, model in enumerate(models):
            shares = [batch(2 * far + near, number, 5 - (2 * far + near)) for near in range(2)]
            cross_entropy(model(torch.cat([x for x, _ in shares])), torch.cat([y for _, y in shares])).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        net.step()
        if number % 2:
            with torch.no_grad():
                for mine, a, b in zip(common.parameters(), *[m.parameters() for m in models], strict=True):
                    mine.grad = mine - (a + b) / 2
                outer.step()
                for model in models:
                    model.load_state_dict(common.state_dict())
        far = mesh.coordinates["far"]
        torch.testing.assert_close(net.module.module.weight, models[far].weight, **TIGHT)


def test_on_one_axis_beside_data_parallelism_on_another():
    launch(on_axes, world_size=4)
