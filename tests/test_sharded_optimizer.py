"""An optimiser whose state is shared out: the steps, the state and the bytes of the unsharded one."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from lessons_lib import CollectiveMismatch, RankFailed, launch
from lessons_lib.memory import Meter
from lessons_lib.parallel import DataParallel, ShardedOptimizer, clip_grad_norm_

TIGHT = {"rtol": 1e-10, "atol": 1e-13}
SAME_STEP = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "Adam": {"lr": 1e-2, "amsgrad": True},
    "AdamW": {"lr": 1e-2},
    "Adamax": {"lr": 1e-2},
    "NAdam": {"lr": 1e-2},
    "RAdam": {"lr": 1e-1},
    "RMSprop": {"lr": 1e-2, "momentum": 0.9, "centered": True},
    "Rprop": {"lr": 1e-2},
    "Adagrad": {"lr": 1e-2},
    "Adadelta": {"lr": 1.0},
    "ASGD": {"lr": 1e-2},
}


class Net(nn.Module):
    """Sizes that no number of ranks divides; a tied weight, a frozen one, one that is never used, an empty one."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.last = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.third = nn.Linear(7, 7)
        self.third.weight = self.second.weight
        self.scale, self.unused = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.ones(4))
        self.empty = nn.Parameter(torch.ones(0, 3))
        self.last.bias.requires_grad_(False)
        self.double()

    def forward(self, x):
        x = self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return self.last(x) * self.scale + self.empty.sum()


def groups(net):
    """Two parameter groups with options of their own."""
    matrices = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": rest, "lr": 0.003}]


def batch(step, rows=24):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, 5, generator=generator).double(), torch.randn(rows, 3, generator=generator).double()


def share_of(comm, tensor):
    return tensor.tensor_split(comm.world_size)[comm.rank]


class Pair:
    """The same training in one process and on this rank."""

    def __init__(self, comm, optimizer_class, **options):
        self.comm, self.alone, self.ours = comm, Net(0), Net(comm.rank)
        self.net = DataParallel(self.ours, comm)
        self.reference = optimizer_class(groups(self.alone), **options)
        self.optimizer = ShardedOptimizer(groups(self.ours), optimizer_class, comm, **options)

    def backward(self, step, rows=24):
        x, y = batch(step, rows)
        mse_loss(self.alone(x), y).backward()
        mse_loss(self.net(share_of(self.comm, x)), share_of(self.comm, y)).backward()

    def step(self, clip=None):
        if clip:
            norm = nn.utils.clip_grad_norm_(self.alone.parameters(), clip)
            torch.testing.assert_close(clip_grad_norm_(self.ours.parameters(), clip, self.comm), norm, **TIGHT)
        for optimizer in (self.reference, self.optimizer):
            optimizer.step()
            optimizer.zero_grad()

    def compare(self):
        for (name, mine), other in zip(self.ours.named_parameters(), self.alone.parameters(), strict=True):
            torch.testing.assert_close(mine, other, **TIGHT, msg=lambda text, name=name: f"{name}: {text}")
        assert_same_state(self.optimizer.state_dict(), self.reference.state_dict())


def assert_same_state(mine, other):
    assert mine["param_groups"] == other["param_groups"]
    assert mine["state"].keys() == other["state"].keys()
    for number, state in other["state"].items():
        assert mine["state"][number].keys() == state.keys()
        for key, value in state.items():
            torch.testing.assert_close(mine["state"][number][key], value, rtol=1e-10, atol=1e-13)


def six_steps(comm, names):
    for name in names:
        pair = Pair(comm, getattr(torch.optim, name), **SAME_STEP[name])
        schedulers = [torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5) for o in (pair.reference, pair.optimizer)]
        for step in range(6):
            for part in range(1 + step % 2):  # every second step adds up two batches
                pair.backward(10 * step + part, rows=24 - step)
            pair.step(clip=0.5 if step > 3 else None)
            pair.compare()
            for scheduler in schedulers:
                scheduler.step()


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_every_step_equals_one_process(world_size):
    launch(six_steps, ["SGD", "Adam"] if world_size != 3 else list(SAME_STEP), world_size=world_size)


def test_every_step_equals_one_process_over_torch():
    launch(six_steps, ["SGD", "Adam"], world_size=3, transport="torch")


def saved(comm, state, world_sizes=None):
    """Two steps from a state, or from the start; the state."""
    pair = Pair(comm, torch.optim.Adam, lr=1e-2)
    if state is not None:
        for optimizer in (pair.reference, pair.optimizer):
            optimizer.load_state_dict(copy.deepcopy(state[0]))
        for net in (pair.alone, pair.ours):
            net.load_state_dict(state[1])
    for step in range(2):
        pair.backward(step)
        pair.step()
        pair.compare()
    return pair.optimizer.state_dict(), pair.ours.state_dict()


def test_a_state_goes_on_on_another_number_of_ranks():
    state = None
    for world_size in (4, 2, 3, 1):
        state = launch(saved, state, world_size=world_size)[0]
    assert state[0]["state"][0]["step"] == 8


def costs(comm):
    """Bytes sent by a step, and what lies on this rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 41), nn.Linear(41, 30))
    numel = sum(p.numel() for p in model.parameters())
    net = DataParallel(model, comm)
    optimizer = ShardedOptimizer(net.parameters(), torch.optim.Adam, comm)
    net(torch.randn(4, 50)).sum().backward()
    before = comm.ledger.bytes_sent, comm.ledger.messages_sent
    optimizer.step()
    sent = comm.ledger.bytes_sent - before[0], comm.ledger.messages_sent - before[1]
    state = [t for s in optimizer.inner.state.values() for t in s.values() if t.dim()]
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    there = [*model.parameters(), *[p.grad for p in model.parameters()], *state]
    with Meter(*there) as meter:
        optimizer.step()
    return numel, sent, Meter(*state).now, sum(weights.values()), meter.peak - Meter(*there).now


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_bytes_and_memory_are_what_the_docstring_says(world_size, transport):
    for numel, (sent_bytes, messages), state_bytes, weight_bytes, made_bytes in launch(
        costs, world_size=world_size, transport=transport
    ):
        chunk = -(-numel // world_size)
        assert sent_bytes == (world_size - 1) * chunk * 4
        assert messages == world_size - 1
        assert chunk * 8 - 8 * world_size <= state_bytes <= chunk * 8  # the last chunk ends with padding
        assert weight_bytes == chunk * world_size * 4
        if transport == "torch":  # in shared memory, what others hold is counted as well when it is looked at
            assert made_bytes <= 2.2 * chunk * 4  # what Adam makes and lets go of in a step


def life(comm):
    """Training as people write it, beside one process."""
    pair = Pair(comm, torch.optim.AdamW, lr=1e-2)
    params = list(pair.ours.parameters())

    pair.backward(0)
    pair.backward(1)  # two backward passes
    pair.step()
    with torch.no_grad():
        torch.testing.assert_close(pair.net(batch(9)[0]), pair.alone(batch(9)[0]), **TIGHT)
    pair.compare()

    for net in (pair.ours, pair.alone):  # frozen midway, another one set free
        net.first.weight.requires_grad_(False)
        net.last.bias.requires_grad_(True)
    pair.backward(2)
    pair.step()
    pair.compare()

    for net in (pair.ours, pair.alone):  # weights changed from outside, and put into other memory
        net.load_state_dict({name: value * 0.5 for name, value in net.state_dict().items()})
        net.second.weight.data = net.second.weight.data * 2
        with torch.no_grad():
            net.last.weight.mul_(1.1)
    pair.backward(3)
    pair.step()
    pair.compare()

    for net, optimizer in ((pair.ours, pair.optimizer), (pair.alone, pair.reference)):
        net.extra = nn.Parameter(torch.full((5,), 0.25, dtype=torch.float64))
        optimizer.add_param_group({"params": [net.extra], "lr": 0.5})
        net.forward_before = net.forward
        net.forward = lambda x, net=net: net.forward_before(x * net.extra)
    pair.backward(4)
    pair.step()
    pair.compare()

    x, y = batch(5)  # a closure

    def closure():
        pair.optimizer.zero_grad()
        loss = mse_loss(pair.net(share_of(comm, x)), share_of(comm, y))
        loss.backward()
        return loss

    mse_loss(pair.alone(x), y).backward()
    pair.reference.step()
    assert pair.optimizer.step(closure).item() > 0
    pair.reference.zero_grad()
    pair.optimizer.zero_grad()
    pair.compare()
    assert {id(p) for p in params} < {id(p) for p in pair.ours.parameters()}

    twin = copy.deepcopy(pair.ours)  # a copy of the model trains alone
    torch.testing.assert_close(twin(x), pair.alone(x), **TIGHT)
    pair.optimizer.step()  # no gradient at all
    pair.reference.step()
    pair.compare()

    loss = mse_loss(pair.net(x), y)
    pair.backward(6)
    pair.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # the graph is of the old weights
        loss.backward()


def test_training_as_people_write_it_equals_one_process():
    launch(life, world_size=3)


def refused(comm):
    net = Net(0)
    for name in ("Muon", "Adafactor", "LBFGS"):
        with pytest.raises(ValueError, match=f"optimizer_class={name}: "):
            ShardedOptimizer(net.parameters(), getattr(torch.optim, name), comm)

    class Normed(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad /= p.grad.norm()
            super().step()

    with pytest.raises(ValueError, match="optimizer_class=Normed: its step of one number depends on other numbers"):
        ShardedOptimizer(net.parameters(), Normed, comm, lr=0.1)
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        ShardedOptimizer(net.parameters(), torch.optim.Adam, comm, lr=-1)
    with pytest.raises(TypeError, match="nothing"):
        ShardedOptimizer(net.parameters(), torch.optim.Adam, comm, nothing=1)
    with pytest.raises(TypeError, match="comm is a int"):
        ShardedOptimizer(net.parameters(), torch.optim.Adam, 3)
    with pytest.raises(TypeError, match="a class of optimiser is needed"):
        ShardedOptimizer(net.parameters(), torch.optim.Adam(net.parameters()), comm)
    with pytest.raises(ValueError, match="empty parameter list"):
        ShardedOptimizer([], torch.optim.Adam, comm)
    with pytest.raises(CollectiveMismatch, match="a group of ShardedOptimizer"):
        ShardedOptimizer([torch.zeros(3 + comm.rank)], torch.optim.SGD, comm)
    optimizer = ShardedOptimizer(net.parameters(), torch.optim.SGD, comm, lr=0.1)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(optimizer)
    mse_loss(net(batch(comm.rank)[0]), batch(0)[1]).backward()  # nobody averages
    with pytest.raises(CollectiveMismatch, match=r"gradients .* which must be equal"):
        optimizer.step()
    net.float()
    with pytest.raises(RuntimeError, match=r"a parameter has become torch\.float32"):
        optimizer.step()


def test_what_cannot_be_right_raises_on_every_rank():
    launch(refused, world_size=2)


def only_rank_0_saves(comm):
    net = DataParallel(Net(0), comm)
    optimizer = ShardedOptimizer(net.parameters(), torch.optim.Adam, comm)
    mse_loss(net(batch(0)[0]), batch(0)[1]).backward()
    optimizer.step()
    if comm.rank == 0:
        optimizer.state_dict()


def test_a_state_dict_on_one_rank_alone_is_told():
    with pytest.raises((CollectiveMismatch, RankFailed), match="all_gather"):
        launch(only_rank_0_saves, world_size=2)


def beside_torch(comm):
    """The same six steps by torch's own tool."""
    net, theirs = DataParallel(Net(0), comm), DistributedDataParallel(Net(0), find_unused_parameters=True)
    ours = ShardedOptimizer(net.parameters(), torch.optim.Adam, comm, lr=1e-2)
    peer = ZeroRedundancyOptimizer(theirs.parameters(), torch.optim.Adam, lr=1e-2)
    for step in range(6):
        x, y = (share_of(comm, tensor) for tensor in batch(step))
        for model, optimizer in ((net, ours), (theirs, peer)):
            optimizer.zero_grad()
            mse_loss(model(x), y).backward()
            optimizer.step()
    for mine, other in zip(net.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, **TIGHT)


def test_steps_are_those_of_the_zero_redundancy_optimizer():
    launch(beside_torch, world_size=2, transport="torch")
