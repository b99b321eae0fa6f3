"""Data parallelism: many ranks against one process after every step, and against torch's DDP."""

import sys

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lessons_lib import CollectiveMismatch, Links, RankFailed, launch
from lessons_lib.data import RankSampler, batches, digits
from lessons_lib.losses import cross_entropy
from lessons_lib.models import mlp
from lessons_lib.optim import SGD, Adam
from lessons_lib.parallel import DataParallel
from lessons_lib.train import History, fit

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ("shared_memory", "torch")
ONE_BUCKET, MANY_BUCKETS = 25, 2e-4


class Odd(nn.Module):
    """Tied, frozen, unused and used-by-one-rank-only parameters, and no bias here and there."""

    def __init__(self, rank=0):
        super().__init__()
        self.rank = rank
        self.first = nn.Linear(6, 8)
        self.tied = nn.Linear(8, 8)
        self.tied_again = nn.Linear(8, 8, bias=False)
        self.tied_again.weight = self.tied.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.last = nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        return self.last(torch.tanh(self.tied_again(self.frozen(torch.tanh(self.tied(torch.tanh(self.first(x))))))))


def problem(num_samples=103):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(num_samples, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (num_samples,), generator=generator)


def train(comm, bucket_cap_mb=25, overlap=None, optimizer=Adam, set_to_none=True, batch_size=10):
    """Parameters after every step, of one process (comm=None) or of this rank. Ranks start from different weights."""
    rank, world_size = (comm.rank, comm.world_size) if comm else (0, 1)
    torch.manual_seed(rank)
    model = Odd()
    if comm:
        model = DataParallel(model, comm, bucket_cap_mb=bucket_cap_mb, overlap=overlap)
    opt = optimizer(model.parameters(), lr=1e-2)
    states = []
    for x, y in batches(RankSampler(103, rank, world_size, batch_size), *problem()):
        opt.zero_grad(set_to_none=set_to_none)
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
        states.append([p.detach().clone() for p in model.parameters()])
    untouched = [p.grad is None for name, p in model.named_parameters() if "unused" in name or "frozen" in name]
    assert all(untouched) and len(untouched) == 4
    return states


def furthest(one, other):
    return max(
        (a - b).abs().max().item()
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("bucket_cap_mb", "overlap"), [(ONE_BUCKET, False), (MANY_BUCKETS, False), (MANY_BUCKETS, True)]
)
def test_ranks_equal_one_process_after_every_step(transport, world_size, bucket_cap_mb, overlap):
    results = launch(train, bucket_cap_mb, overlap, world_size=world_size, transport=transport)
    alone = train(None)
    assert len(alone) == 11
    assert furthest(alone, results[0]) <= 1e-12
    for states in results[1:]:
        assert furthest(states, results[0]) == 0


@pytest.mark.parametrize("optimizer", [SGD, torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_any_optimizer_and_both_kinds_of_zero_grad(optimizer, set_to_none):
    results = launch(train, ONE_BUCKET, None, optimizer, set_to_none, world_size=3)
    assert furthest(train(None, optimizer=optimizer), results[0]) <= 1e-12


def test_ranks_may_run_out_of_samples():
    """103 samples, 17 a step, 4 ranks: the last step has one sample, and three ranks none."""
    results = launch(train, batch_size=17, world_size=4)
    assert furthest(train(None, batch_size=17), results[0]) <= 1e-12


def against_ddp(comm, weight_by_batch):
    torch.manual_seed(comm.rank)
    ours = mlp([64, 32, 10]).double()
    torch.manual_seed(comm.rank)
    theirs = DistributedDataParallel(mlp([64, 32, 10]).double())
    ours = DataParallel(ours, comm, weight_by_batch=weight_by_batch)
    x, y, _, _ = digits(torch.float64)
    worst = 0.0
    for model in (ours, theirs):
        model.steps = []
        opt = Adam(model.parameters(), lr=1e-2)
        for bx, by in batches(RankSampler(160, comm.rank, comm.world_size, 32), x[:160], y[:160]):
            opt.zero_grad()
            cross_entropy(model(bx), by).backward()
            opt.step()
            model.steps.append([p.detach().clone() for p in model.parameters()])
    worst = furthest(ours.steps, theirs.steps)
    return worst, list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("weight_by_batch", [True, False])
def test_equal_shards_give_what_ddp_gives(weight_by_batch):
    for worst, same_names in launch(against_ddp, weight_by_batch, world_size=2, transport="torch"):
        assert worst <= 1e-12
        assert same_names


def accumulate(comm, micro_batches):
    torch.manual_seed(comm.rank)
    model = DataParallel(Odd(), comm)
    x, y = problem(96)
    mine = slice(comm.rank, None, comm.world_size)
    pieces = list(zip(x[mine].chunk(micro_batches), y[mine].chunk(micro_batches), strict=True))
    with model.no_sync():
        for bx, by in pieces[:-1]:
            (nn.functional.cross_entropy(model(bx), by) / micro_batches).backward()
    before = comm.ledger.bytes_sent
    bx, by = pieces[-1]
    (nn.functional.cross_entropy(model(bx), by) / micro_batches).backward()
    return [p.grad for p in model.parameters() if p.grad is not None], comm.ledger.bytes_sent - before, before


def test_no_sync_adds_up_and_sends_once():
    results = launch(accumulate, 4, world_size=2, algorithm="ring")
    at_once = launch(accumulate, 1, world_size=2, algorithm="ring")
    torch.manual_seed(0)
    model = Odd()
    nn.functional.cross_entropy(model(problem(96)[0]), problem(96)[1]).backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    for (grads, sent, before), (_, sent_at_once, before_at_once) in zip(results, at_once, strict=True):
        assert (sent, before) == (sent_at_once, before_at_once)
        for grad, reference in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, reference, rtol=1e-12, atol=1e-12)


def bytes_of_a_step(comm):
    model = DataParallel(mlp([64, 128, 10]), comm, bucket_cap_mb=0.02)
    start = comm.ledger.bytes_sent
    cross_entropy(model(torch.randn(8, 64)), torch.randint(0, 10, (8,))).backward()
    flats = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    return comm.ledger.bytes_sent - start, len(flats)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_a_step_sends_the_gradients_once(world_size):
    num_parameters = 64 * 128 + 128 + 128 * 10 + 10
    numbers = num_parameters + 4 + 4  # and a flag for each of four parameters, the samples, and what ranks compare
    for sent, num_buckets in launch(bytes_of_a_step, world_size=world_size, algorithm="ring"):
        assert num_buckets == 2
        assert sent == pytest.approx(2 * (world_size - 1) / world_size * numbers * 4, abs=2 * 2 * 4 * num_buckets)


def sometimes_used(comm):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(2, 1, bias=False)})
    model.forward = lambda x: model["a"](x) if comm.rank == 0 else model["a"](x) + model["b"](x)
    wrapped = DataParallel(model, comm)
    wrapped(torch.ones(3, 2)).mean().backward()
    return model["a"].weight.grad.tolist(), model["b"].weight.grad.tolist()


def test_a_parameter_that_one_rank_uses_is_averaged():
    assert launch(sometimes_used, world_size=2) == [([[1.0, 1.0]], [[0.5, 0.5]])] * 2


def batch_norm(comm):
    torch.manual_seed(comm.rank)
    model = DataParallel(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), comm)
    for _ in range(3):
        model(torch.randn(8, 4)).sum().backward()
    seen_by_next_pass = model.module[1].running_mean.clone()
    model.eval()
    model(torch.randn(8, 4))
    kept = torch.equal(seen_by_next_pass, model.module[1].running_mean)
    model.train()
    model(torch.zeros(8, 4))
    return model.module[1].running_mean, kept, model.module[1].num_batches_tracked.item()


def test_buffers_follow_rank_0():
    (first, kept, count), (second, _, _) = launch(batch_norm, world_size=2)
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
    assert kept and count == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    def fn(comm):
        model = DataParallel(nn.Linear(4, 2).to(dtype), comm)
        model(torch.full((300, 4), comm.rank + 1.0, dtype=dtype)).sum(1).mean().backward()
        return model.module.weight.grad

    for grad in launch(fn, world_size=3):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad, torch.full((2, 4), 2.0, dtype=dtype), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda comm: DataParallel("model", comm), "module is a str"),
        (lambda comm: DataParallel(nn.Linear(2, 2), None), "comm is a NoneType"),
        (lambda comm: DataParallel(nn.Linear(2, 2), comm, bucket_cap_mb=0), "bucket_cap_mb=0"),
        (lambda comm: DataParallel(nn.Linear(2, 2).requires_grad_(False), comm), "nothing to train"),
        (lambda comm: DataParallel(nn.Linear(2, 2, device="meta"), comm), "parameter weight is on meta"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(RankFailed) as caught:
        launch(make, world_size=1)
    assert says in caught.value.reason


def test_other_modules_on_other_ranks_are_a_mismatch():
    with pytest.raises(CollectiveMismatch, match="DataParallel"):
        launch(lambda comm: DataParallel(nn.Linear(2, 2 + comm.rank), comm), world_size=2) and None


def plain_mean(comm):
    """Uneven shares, a layer used past the wrapper, and one accumulated pass more on rank 0."""
    net = DataParallel(nn.Sequential(nn.Linear(1, 1, bias=False)), comm, weight_by_batch=False)
    net(torch.full((3 + comm.rank, 1), comm.rank + 1.0)).mean().backward()
    uneven = net.module[0].weight.grad.item()
    net.zero_grad()
    net.module[0](torch.full((2, 1), comm.rank + 1.0)).mean().backward()
    past = net.module[0].weight.grad.item()
    net.zero_grad()
    with net.no_sync():
        for _ in range(1 - comm.rank):
            net(torch.ones(1, 1)).mean().backward()
    net(torch.full((2, 1), comm.rank + 1.0)).mean().backward()
    return uneven, past, net.module[0].weight.grad.item()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_without_weights_it_is_the_plain_mean_over_ranks(transport):
    assert launch(plain_mean, world_size=2, transport=transport) == [(1.5, 1.5, 2.0)] * 2


def change_on_one_rank(comm):
    net = DataParallel(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), comm)
    if comm.rank == 0:
        net.module[1] = nn.Linear(2, 2)
    net(torch.ones(3, 2)).mean().backward()


def look_on_one_rank_in_training_mode(comm):
    net = DataParallel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), comm)
    if comm.rank == 0:
        net(torch.ones(3, 2))
    net(torch.ones(3, 2)).mean().backward()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "fn",
    [
        change_on_one_rank,
        look_on_one_rank_in_training_mode,
        lambda comm: DataParallel(nn.Linear(2, 2), comm, weight_by_batch=comm.rank == 0),
    ],
)
def test_what_only_one_rank_does_is_a_mismatch(fn, transport):
    with pytest.raises(CollectiveMismatch):
        launch(fn, world_size=2, transport=transport)


def return_early(comm):
    net = DataParallel(nn.Linear(2, 2), comm)
    for _ in range(2 - comm.rank):
        net(torch.ones(3, 2)).mean().backward()


def another_call(comm):
    net = DataParallel(nn.Linear(2, 2), comm)
    net(torch.ones(3, 2)).mean().backward() if comm.rank == 0 else comm.all_reduce(torch.ones(7))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("fn", "other"), [(return_early, "return from the function"), (another_call, "shape (7,)")])
def test_a_rank_that_is_elsewhere_is_named(fn, other, transport):
    with pytest.raises(CollectiveMismatch) as caught:
        launch(fn, world_size=2, transport=transport)
    assert "all_reduce(" in caught.value.calls[0] and other in caught.value.calls[1]


def slow_links(comm, overlap):
    torch.manual_seed(0)
    model = DataParallel(nn.Sequential(*[nn.Linear(100, 100) for _ in range(4)]), comm, 0.05, overlap)
    with comm.compute("forward and backward"):
        model(torch.randn(64, 100)).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_overlap_changes_the_order_and_not_the_result():
    plain, overlapped = (
        launch(slow_links, overlap, world_size=2, links=Links(2e-3, 1e8), trace=True) for overlap in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain[0], overlapped[0], strict=True))
    assert plain.ledgers[0].bytes_sent == overlapped.ledgers[0].bytes_sent


# --- fit --------------------------------------------------------------------------------------------------------------


def run_fit(comm=None, progress=False, epochs=2):
    torch.manual_seed(comm.rank if comm else 0)
    model = mlp([64, 32, 10]).double()
    if comm:
        model = DataParallel(model, comm)
    x, y, x_test, y_test = digits(torch.float64)
    opt = Adam(model.parameters(), lr=1e-2)
    return fit(
        model,
        opt,
        cross_entropy,
        (x[:500], y[:500]),
        batch_size=64,
        epochs=epochs,
        validation=(x_test, y_test),
        progress=progress,
    )


def test_fit_sees_the_same_on_one_and_on_many():
    alone = run_fit()
    assert isinstance(alone, History) and len(alone.losses) == 16 and len(alone.accuracies) == 2
    assert alone.accuracies[-1] > 0.7 and alone.samples_per_s > 0
    for history in launch(run_fit, world_size=3):
        torch.testing.assert_close(history.losses, alone.losses, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(history.epoch_losses, alone.epoch_losses, rtol=1e-10, atol=1e-10)
        assert history.accuracies == alone.accuracies


def test_fit_shows_progress_of_rank_0_only(capsys):
    launch(run_fit, world_size=2, progress=True, epochs=100)
    out, err = capsys.readouterr()
    assert "samples_per_s" in err and "[rank 0]" in err and "[rank 1]" not in err
    assert out == ""


def test_fit_tells_each_step_and_refuses_negative_epochs():
    model, seen = mlp([64, 10]), []
    x, y, _, _ = digits()
    arguments = (model, SGD(model.parameters(), lr=0.1), cross_entropy, (x[:100], y[:100]))
    history = fit(*arguments, batch_size=32, progress=False, on_step=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert [loss for _, loss in seen] == pytest.approx(history.losses)
    with pytest.raises(ValueError, match="epochs=-1"):
        fit(*arguments, batch_size=32, epochs=-1)
    with pytest.raises(ValueError, match="batch_size"):
        fit(*arguments, batch_size=0)


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass; the second may be the first once more."""

    def __init__(self, shared, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8).double(), nn.Linear(8, 1).double()
        self.block = nn.Linear(8, 8).double()
        self.again = self.block if shared else nn.Linear(8, 8).double()
        self.reentrant = reentrant

    def forward(self, x):
        h = self.first(x)
        for block in (self.block, self.again):
            h = torch.tanh(checkpoint(block, h, use_reentrant=self.reentrant))
        return self.last(h)


def checkpointed_gradients(comm, model, overlap):
    net = DataParallel(model, comm, bucket_cap_mb=MANY_BUCKETS, overlap=overlap)
    x = torch.linspace(-1, 1, 32, dtype=torch.float64).view(8, 4)
    for _ in range(2):
        net.zero_grad()
        net(x[comm.rank :: comm.world_size]).square().mean().backward()
    return [parameter.grad.clone() for parameter in net.parameters()]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_checkpointed_blocks_are_averaged_or_refused(shared, reentrant, overlap):
    model = Checkpointed(shared, reentrant)
    if shared and reentrant and overlap:
        with pytest.raises(RankFailed, match="a gradient has grown after it was put into its bucket"):
            launch(checkpointed_gradients, model, overlap, world_size=2)
        return
    expected = launch(checkpointed_gradients, model, overlap, world_size=1)[0]
    for gradients in launch(checkpointed_gradients, model, overlap, world_size=2):
        for found, right in zip(gradients, expected, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)
