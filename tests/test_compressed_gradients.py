"""Hooks of DataParallel that send less: bytes as the formula says, what is lost is remembered, torch's own beside."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as torchs
from torch.nn.parallel import DistributedDataParallel

from lessons_lib import CollectiveMismatch, RankFailed, launch
from lessons_lib.checkpoint import Checkpoints
from lessons_lib.compress import Int8Gradients, PowerSGD, TopK, quantize
from lessons_lib.parallel import DataParallel

WIDE = torch.float64
HOOKS = [Int8Gradients(), TopK(0.1), PowerSGD(2)]
names = [type(hook).__name__ for hook in HOOKS]
every_hook = pytest.mark.parametrize("hook", HOOKS, ids=names)
everywhere = pytest.mark.parametrize("transport", ["shared_memory", "torch"])


def small_net(dtype=WIDE):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)


def batch(step, size=12, dtype=WIDE):
    random = torch.Generator().manual_seed(step)
    return torch.randn(size, 12, generator=random, dtype=dtype), torch.randn(size, 4, generator=random, dtype=dtype)


def backward(net, comm, step, size=12, dtype=WIDE):
    x, y = (part[comm.rank :: comm.world_size] for part in batch(step, size, dtype))
    loss = nn.functional.mse_loss(net(x), y)
    loss.backward()


def flat_gradient(net):
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def plain_gradient(step, size=12):
    net, (x, y) = small_net(), batch(step, size)
    nn.functional.mse_loss(net(x), y).backward()
    return flat_gradient(net)


# --- what comes out ---------------------------------------------------------------------------------------------------


def gradients(comm, hook, num_steps, size=12, options=None):
    """The averages of several steps with the same weights, what is left at the end, and the bytes of the last step."""
    net = DataParallel(small_net(), comm, hook=hook, **(options or {}))
    found, sent = [], 0
    for step in range(num_steps):
        net.zero_grad()
        before = comm.ledger.bytes_sent
        backward(net, comm, step, size)
        sent = comm.ledger.bytes_sent - before
        found.append(flat_gradient(net))
    return torch.stack(found), getattr(hook, "left", dict)(), sent


@every_hook
@everywhere
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_that_came_out_and_all_that_is_left_is_what_went_in(hook, transport, world_size):
    options = {"bucket_cap_mb": 1e-3}  # several buckets
    done = launch(gradients, hook, 5, 13, options, world_size=world_size, transport=transport)
    for found, _, _ in done:
        assert torch.equal(found, done[0][0]), "replicas are alike to the bit"
    came_out = done[0][0].sum(0)
    went_in = sum(plain_gradient(step, 13) for step in range(5))
    left = sum(torch.cat([each[1][index] for index in sorted(each[1])]) for each in done)
    # Buckets begin with the last parameter.
    sizes = [p.numel() for p in reversed(list(small_net().parameters()))]
    left = torch.cat(left.split(sizes)[::-1])
    if isinstance(hook, Int8Gradients):  # owners have left something too: within half a step of each sum
        assert (came_out + left - went_in).abs().max() < 0.01 * went_in.abs().max()
    else:
        torch.testing.assert_close(came_out + left, went_in, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(
    "hook", [TopK(1.0), PowerSGD(1, start_step=9), lambda bucket, comm: comm.all_reduce(bucket.gradients)]
)
@everywhere
def test_where_everything_is_sent_it_is_the_average(hook, transport):
    found = launch(gradients, hook, 3, 7, world_size=3, transport=transport)[0][0]
    for step in range(3):
        torch.testing.assert_close(found[step], plain_gradient(step, 7), atol=1e-12, rtol=1e-10)


def test_a_gradient_of_low_rank_arrives_whole_and_vectors_always_do():
    def fn(comm):
        torch.manual_seed(0)
        net = DataParallel(nn.Linear(20, 30).double(), comm, hook=PowerSGD(2))
        x, y = torch.randn(1, 20, dtype=WIDE) + comm.rank, torch.randn(1, 30, dtype=WIDE) * (comm.rank + 1)
        (net(x) * y).sum().backward()  # one sample per rank: a gradient of rank 1 each
        want = torch.stack([y, x.new_zeros(1, 30)]).sum(0).T @ x, y.sum(0)
        for each in want:
            comm.all_reduce(each, op="mean")
        return [p.grad.clone() for p in net.parameters()], list(want)

    for found, want in launch(fn, world_size=2):
        torch.testing.assert_close(found, want, atol=1e-10, rtol=1e-8)


def test_int8_gradients_are_the_sum_of_what_each_rank_rounds():
    def fn(comm):
        bucket = Held(torch.arange(8, dtype=WIDE) ** (comm.rank + 1))
        Int8Gradients(feedback=False)(bucket, comm)
        return bucket.gradients

    chunks = [[(torch.arange(8, dtype=WIDE) ** p).view(2, 4)[part] for p in (1, 2)] for part in (0, 1)]
    sums = [sum(quantize(chunk).dequantize() for chunk in both) for both in chunks]
    want = torch.cat([quantize(each).dequantize() for each in sums])
    for found in launch(fn, world_size=2):
        torch.testing.assert_close(found, want, atol=1e-12, rtol=1e-12)


class Held:
    """A bucket of one parameter."""

    def __init__(self, gradients):
        self.index, self.gradients, self.pairs, self.unused = 0, gradients, {0: (None, gradients)}, []


def test_the_largest_numbers_are_sent_and_what_is_left_waits():
    def fn(comm):
        hook, sent = TopK(0.25), []
        for _ in range(3):
            bucket = Held(torch.tensor([4.0, -3.0, 1.0, 0.5]) * (1 if comm.rank else -1))
            if comm.rank:
                bucket.gradients[0] = 0.0
            hook(bucket, comm)
            sent.append(bucket.gradients.tolist())
        return sent

    first = [[-4.0, -3.0, 0.0, 0.0], [-4.0, -3.0, 0.0, 0.0], [0.0, -3.0 + 9.0, 0.0, 0.0]]
    both = launch(fn, world_size=2)
    assert both[0][0] == both[1][0] == first[0]
    assert both[0] == both[1]
    assert both[0][1] == [0.0, 3.0, 0.0, 0.0] or both[0][1][1] != 0  # what rank 0 kept of number 1 has grown to 6


# --- bytes ------------------------------------------------------------------------------------------------------------


@every_hook
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
def test_bytes_are_those_of_the_formula(hook, world_size, dtype):
    def fn(comm):
        net = nn.Linear(16, 32, dtype=dtype)
        bucket = Held(torch.randn(16 * 32 + 32, dtype=dtype))
        parts = bucket.gradients.split([32, 16 * 32])
        bucket.pairs = {
            i: (None, part.view(p.shape)) for i, (part, p) in enumerate(zip(parts, [net.bias, net.weight], strict=True))
        }
        hook(bucket, comm)
        return comm.ledger.bytes_sent, comm.ledger.bytes_received

    want = hook.bytes_sent([(32,), (32, 16)], world_size, dtype.itemsize)
    for sent, received in launch(fn, world_size=world_size, algorithm="ring"):
        assert sent == received == want


def test_beside_the_gradients_only_the_flags_travel():
    hook = TopK(0.1)
    plain, less = (launch(gradients, each, 2, world_size=2, algorithm="ring")[0][2] for each in (None, hook))
    shapes = [p.shape for p in small_net().parameters()]
    numel = sum(shape.numel() for shape in shapes)
    flags = plain - numel * 8
    assert 0 < flags < 100 and less == hook.bytes_sent(shapes, 2, itemsize=8) + flags


# --- training ---------------------------------------------------------------------------------------------------------


def train(comm, make, num_steps, lr=0.1):
    """The error after training, of a problem that needs every weight: y = W x, batches of 12."""
    torch.manual_seed(1)
    truth = torch.randn(4, 12, dtype=WIDE)
    net = DataParallel(nn.Linear(12, 4).double(), comm, hook=make and make())
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for step in range(num_steps):
        x = batch(step)[0][comm.rank :: comm.world_size]
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), x @ truth.T).backward()
        optimizer.step()
    return (net.module.weight - truth).norm().item() / truth.norm().item()


@pytest.mark.parametrize("kind", [lambda f: TopK(0.05, f), lambda f: PowerSGD(1, f)], ids=["TopK", "PowerSGD"])
def test_with_feedback_training_arrives_and_without_it_does_not(kind):
    with_it, without = (launch(train, lambda f=f: kind(f), 400, world_size=2)[0] for f in (True, False))
    assert with_it < 0.05 and without > 3 * with_it
    assert launch(train, lambda: Int8Gradients(), 400, world_size=2)[0] < 0.01


def torchs_steps(comm, num_steps):
    state = torchs.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2, min_compression_rate=1)
    net = DistributedDataParallel(small_net(torch.float32))
    net.register_comm_hook(state, torchs.powerSGD_hook)
    return _weights_of_steps(net, comm, num_steps)


def our_steps(comm, num_steps):
    seed = int(np.random.RandomState(0).randint(1_000_000_000))  # what torch's hook draws from its seed 0
    net = DataParallel(small_net(torch.float32), comm, hook=PowerSGD(2, seed=seed, start_step=2))
    return _weights_of_steps(net, comm, num_steps)


def _weights_of_steps(net, comm, num_steps):
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
    for step in range(num_steps):
        optimizer.zero_grad()
        backward(net, comm, step, dtype=torch.float32)
        optimizer.step()
        seen.append(torch.cat([p.detach().flatten() for p in net.module.parameters()]))
    return torch.stack(seen)


def test_power_sgd_equals_torchs_at_every_step():
    ours, theirs = (launch(fn, 8, world_size=2, transport="torch")[0] for fn in (our_steps, torchs_steps))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    plain = launch(_plain_steps, 8, world_size=2)[0]
    assert (ours[-1] - plain[-1]).abs().max() > 1e-3, "two ranks of four do leave something out"


def _plain_steps(comm, num_steps):
    return _weights_of_steps(DataParallel(small_net(torch.float32), comm), comm, num_steps)


# --- training code as people write it ---------------------------------------------------------------------------------


def as_people_write_it(comm, hook):
    """Accumulation, evaluation in between, clipping, a layer frozen midway; replicas must stay alike."""
    net = DataParallel(small_net(), comm, hook=hook)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(8):
        optimizer.zero_grad()
        if step % 2:
            with net.no_sync():
                backward(net, comm, 2 * step)
        with torch.no_grad():
            net(batch(0)[0])
        backward(net, comm, 2 * step + 1, size=12 if step % 2 else 8)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step == 4:
            net.module[0].requires_grad_(False)
    return torch.cat([p.detach().flatten() for p in net.module.parameters()])


@every_hook
@everywhere
def test_replicas_stay_alike_in_code_as_people_write_it(hook, transport):
    replicas = launch(as_people_write_it, hook, world_size=3, transport=transport)
    assert all(torch.equal(each, replicas[0]) for each in replicas)
    assert torch.isfinite(replicas[0]).all()


@every_hook
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_seen_by_all_and_forgotten_when_the_step_is_left_out(hook, bad):
    def fn(comm, hook):
        net = DataParallel(small_net(), comm, hook=hook)
        backward(net, comm, 0)
        before = {index: left.clone() for index, left in hook.left().items()}
        net.zero_grad()
        x, y = batch(1)
        (nn.functional.mse_loss(net(x), y) * (bad if comm.rank == 1 else 1.0)).backward()
        seen = torch.isfinite(flat_gradient(net)).all().item()
        kept = all(torch.equal(left, before[index]) for index, left in hook.left().items())
        net.zero_grad()
        backward(net, comm, 2)
        return seen, kept, torch.isfinite(flat_gradient(net)).all().item()

    assert launch(fn, hook, world_size=2) == [(False, True, True)] * 2


@every_hook
def test_a_run_that_resumes_ends_at_the_same_bits(hook, tmp_path):
    def fn(comm, make, folder, until):
        net = DataParallel(small_net(), comm, hook=make())
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        checkpoints, state = Checkpoints(folder, comm), {"net": net, "optimizer": optimizer}
        for step in range(checkpoints.load(state) or 0, until):
            optimizer.zero_grad()
            backward(net, comm, step)
            optimizer.step()
            if step == 3:
                checkpoints.save(step + 1, state)
        return torch.cat([p.detach().flatten() for p in net.module.parameters()])

    make = {"Int8Gradients": Int8Gradients, "TopK": lambda: TopK(0.1), "PowerSGD": lambda: PowerSGD(2)}[
        type(hook).__name__
    ]
    whole = launch(fn, make, tmp_path / "whole", 8, world_size=2)[0]
    launch(fn, make, tmp_path / "cut", 4, world_size=2)
    assert torch.equal(launch(fn, make, tmp_path / "cut", 8, world_size=2)[0], whole)


@every_hook
def test_a_batch_of_another_size_and_one_of_none_leave_what_is_left_alone(hook):
    def fn(comm, hook):
        net, seen = DataParallel(small_net(), comm, hook=hook), []
        for step, size in enumerate((12, 2, 12, 0, 5)):
            before = {index: left.clone() for index, left in hook.left().items()}
            net.zero_grad()
            backward(net, comm, step, size)
            seen.append(flat_gradient(net) if size else torch.zeros(276, dtype=WIDE))
            if not size:
                assert all(torch.equal(left, before[index]) for index, left in hook.left().items())
        return sum(seen), sum(hook.left().values())

    done = launch(fn, hook, world_size=2)
    went_in = sum(plain_gradient(step, size) for step, size in enumerate((12, 2, 12, 0, 5)) if size)
    left = sum(left for _, left in done)
    left = torch.cat(left.split([p.numel() for p in reversed(list(small_net().parameters()))])[::-1])
    error = (done[0][0] + left - went_in).abs().max()
    assert error < (0.02 * went_in.abs().max() if isinstance(hook, Int8Gradients) else 1e-10)


class Forked(nn.Module):
    """A layer for each of two kinds of batches: no rank uses the other one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(12, 4) for _ in range(2)).double()

    def forward(self, x, which):
        return self.layers[which](x)


@every_hook
def test_what_is_left_of_an_unused_layer_waits_until_it_is_used(hook):
    def fn(comm, hook):
        net, summed = DataParallel(Forked(), comm, hook=hook), 0
        for step, which in enumerate((0, 1, 1, 0)):
            net.zero_grad()
            x, y = (part[comm.rank :: comm.world_size] for part in batch(step))
            nn.functional.mse_loss(net(x, which), y).backward()
            assert net.module.layers[1 - which].weight.grad is None
            given = [torch.zeros(p.shape, dtype=WIDE) if p.grad is None else p.grad for p in net.parameters()]
            summed += torch.cat([each.flatten() for each in given[::-1]])  # in the order of the bucket
        return summed, hook.left()[0]

    def plain(step, which):
        net, (x, y) = Forked(), batch(step)
        nn.functional.mse_loss(net(x, which), y).backward()
        given = [torch.zeros(p.shape, dtype=WIDE) if p.grad is None else p.grad for p in net.parameters()]
        return torch.cat([each.flatten() for each in given[::-1]])

    done = launch(fn, hook, world_size=2)
    went_in = sum(plain(step, which) for step, which in enumerate((0, 1, 1, 0)))
    error = (done[0][0] + sum(left for _, left in done) - went_in).abs().max()
    assert error < (0.02 * went_in.abs().max() if isinstance(hook, Int8Gradients) else 1e-10)


def test_a_hook_serves_one_model_until_that_is_wrapped_again_or_gone():
    def fn(comm):
        hook, module = TopK(0.1), small_net()
        net = DataParallel(module, comm, hook=hook)
        backward(net, comm, 0)
        net = DataParallel(module, comm, hook=hook)
        backward(net, comm, 1)
        try:
            DataParallel(small_net(), comm, hook=hook)
        except ValueError as error:
            return str(error)

    assert launch(fn, world_size=2) == ["hook=TopK: it serves another DataParallel already, a new one is needed"] * 2


def test_a_state_of_another_hook_or_for_none_is_refused():
    def fn(comm, hook):
        net = DataParallel(small_net(), comm, hook=TopK(0.1))
        DataParallel(small_net(), comm, hook=hook).load_run_state(net.run_state())

    with pytest.raises(RankFailed, match="hook=PowerSGD: the state is of a TopK"):
        launch(fn, PowerSGD(1), world_size=2)
    with pytest.raises(RankFailed, match="hook=None: the state is of a run with a hook"):
        launch(fn, None, world_size=2)


def test_ranks_with_other_hooks_and_states_that_do_not_fit_are_refused():
    def other_hooks(comm):
        DataParallel(small_net(), comm, hook=TopK(0.1 * (1 + comm.rank)))

    with pytest.raises(CollectiveMismatch, match="hook=TopK"):
        launch(other_hooks, world_size=2)

    def other_state(comm):
        hook = TopK(0.1)
        hook.load_state_dict({"kind": "TopK", "left": {"0": torch.zeros(3, dtype=WIDE)}})
        backward(DataParallel(small_net(), comm, hook=hook), comm, 0)

    with pytest.raises(RankFailed, match="bucket 0 has 276 numbers, and the loaded state 3"):
        launch(other_state, world_size=2)
    with pytest.raises(RankFailed, match="hook is a int"):
        launch(lambda comm: DataParallel(small_net(), comm, hook=3), world_size=2)
    for wrong in (lambda: TopK(0), lambda: TopK(1.5), lambda: PowerSGD(0), lambda: PowerSGD(1, seed=-1)):
        with pytest.raises(ValueError, match=r"=(0|1\.5|-1)"):
            wrong()
