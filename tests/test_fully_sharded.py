"""Weights, gradients and state in shares: equal to one process at every step, in bytes and memory as promised."""

import copy
from time import monotonic

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from lessons_lib import Links, launch
from lessons_lib.memory import Meter
from lessons_lib.models import GPT
from lessons_lib.parallel import FullySharded, clip_grad_norm_

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
OPTIMISERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def gpt(seed, **options):
    torch.manual_seed(seed)
    return GPT(31, 16, num_layers=3, num_heads=2, context=8, **options).double()


def loss_of(logits, targets):
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch(step, rows=12):
    return torch.randint(31, (2, rows, 8), generator=torch.Generator().manual_seed(step))


class Pair:
    """The same training in one process and on this rank."""

    def __init__(self, comm, make=gpt, optimiser="adam", before=lambda model: None, **options):
        self.comm, self.alone, model = comm, make(0), make(comm.rank)
        before(self.alone)
        before(model)
        self.net = FullySharded(model, comm, **options)
        self.optimizers = [OPTIMISERS[optimiser](each.parameters()) for each in (self.alone, self.net)]

    def share(self, tensor):
        return tensor.tensor_split(self.comm.world_size)[self.comm.rank]

    def backward(self, step, rows=12):
        x, y = batch(step, rows)
        loss = loss_of(self.alone(x), y)
        loss.backward()
        loss_of(self.net(self.share(x)), self.share(y)).backward()

    def step(self, clip=None):
        if clip:
            norm = nn.utils.clip_grad_norm_(self.alone.parameters(), clip)
            torch.testing.assert_close(clip_grad_norm_(self.net.parameters(), clip, self.comm), norm, **TIGHT)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def compare(self):
        ours, alone = self.net.state_dict(), self.alone.state_dict()
        assert ours.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(ours[name], value, **TIGHT, msg=lambda text, name=name: f"{name}: {text}")

    def compare_gradients(self):
        """Of each parameter this rank's piece."""
        for (name, piece), other in zip(self.net.named_parameters(), self.alone.parameters(), strict=True):
            assert (piece.grad is None) == (other.grad is None), name
        norms = [clip_grad_norm_(self.net.parameters(), 1e9, self.comm)]
        norms += [nn.utils.clip_grad_norm_(self.alone.parameters(), 1e9)]
        torch.testing.assert_close(*norms, **TIGHT)


def six_steps(comm, optimiser, **options):
    pair = Pair(
        comm, optimiser=optimiser, before=lambda model: model.blocks[1].attention.requires_grad_(False), **options
    )
    for step in range(6):
        if step % 2:  # every second step adds up two batches, one of them without a reduction
            with pair.net.no_sync() if step > 2 else torch.enable_grad():
                pair.backward(100 + step)
        pair.backward(step, rows=12 if step % 2 else 12 - step)
        pair.compare_gradients()
        pair.step(clip=0.5)
        pair.compare()


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_every_step_equals_one_process(world_size):
    optimiser = ["adam", "sgd"][world_size % 2]
    launch(six_steps, optimiser, reshard_after_forward=world_size != 4, prefetch=world_size != 2, world_size=world_size)


def test_every_step_equals_one_process_over_torch():
    launch(six_steps, "adam", world_size=3, transport="torch")


def moved(comm, **options):
    """What a second step sends, by the ledger and by the docstring's formula."""
    net = FullySharded(gpt(0).float(), comm, **options)
    x, y = batch(0)
    for _ in range(2):
        before = comm.ledger.bytes_sent
        loss_of(net(x), y).backward()
    sent_bytes = comm.ledger.bytes_sent - before
    num_gathers = 2 if options.get("reshard_after_forward", True) else 1
    gathered_bytes = 2 if "dtype" in options else 4
    promised = 0
    for unit in net._passes.units:
        for flat in unit.flats:
            chunk = -(-sum(flat.layout.numels) // comm.world_size)
            promised += num_gathers * chunk * gathered_bytes + (chunk + len(flat.parameters) + 4) * 4
    return sent_bytes, (comm.world_size - 1) * promised


@pytest.mark.parametrize(
    "options", [{}, {"reshard_after_forward": False}, {"dtype": torch.bfloat16}, {"prefetch": True}], ids=str
)
def test_bytes_are_what_the_docstring_says(options):
    for world_size in (2, 3):
        for sent_bytes, promised in launch(moved, **options, world_size=world_size):
            assert sent_bytes == promised
    for sent_bytes, promised in launch(moved, **options, world_size=2, transport="torch"):
        assert sent_bytes == promised


def stored(comm, reshard):
    """What lies on this rank between steps, and the most in a step, in units of the bytes of all weights."""
    torch.manual_seed(0)
    layers = [nn.Linear(256, 256, bias=False) for _ in range(8)]
    net = FullySharded(nn.Sequential(*layers), comm, reshard_after_forward=reshard)
    optimizer, x = torch.optim.Adam(net.parameters(), foreach=False), torch.randn(1, 256)
    weights_bytes = 8 * 256 * 256 * 4
    of_others = [
        view for shared in comm.transport._buffers.values() for view in shared.views
    ]  # each counts on its rank
    with Meter(*net.parameters(), *of_others) as meter:
        before = meter.now
        net(x).sum().backward()
    optimizer.step()
    kept = [net.parameters(), [p.grad for p in net.parameters()]]
    kept += [[state[key] for state in optimizer.state.values()] for key in ("exp_avg", "exp_avg_sq")]
    kept = [Meter(*tensors).now / weights_bytes for tensors in kept]
    return kept, kept[0] + (meter.peak - before) / weights_bytes


def test_memory_is_what_the_docstring_says():
    for world_size in (2, 4):
        for reshard in (True, False):
            for kept, most in launch(stored, reshard, world_size=world_size):
                assert kept == [pytest.approx(1 / world_size, rel=0.01)] * 4
                # Pieces; the gradients that autograd makes of a unit, and their staging; whole weights, and in stage 3
                # also the gradients of pieces, which in stage 2 come while whole weights go.
                promised = 1 / world_size + 2 / 8 + (1 / 8 + 1 / world_size if reshard else 1)
                assert most == pytest.approx(promised, rel=0.1), (world_size, reshard)


def in_bfloat16(comm):
    """Masters in float32, gathers and blocks in bfloat16, sums in float32: rebuilt by hand in one process."""
    alone, model = gpt(0).float(), gpt(0).float()
    net = FullySharded(model, comm, dtype=torch.bfloat16)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (alone, net)]
    for step in range(3):
        x, y = batch(step)
        total = [torch.zeros_like(p) for p in alone.parameters()]
        for xs, ys in zip(x.chunk(comm.world_size), y.chunk(comm.world_size), strict=True):
            low = gpt(0).bfloat16()
            low.load_state_dict(alone.state_dict())
            loss_of(low(xs), ys).backward()
            for each, p in zip(total, low.parameters(), strict=True):
                each += p.grad.float() / comm.world_size
        for p, gradient in zip(alone.parameters(), total, strict=True):
            p.grad = gradient
        output = net(x.chunk(comm.world_size)[comm.rank])
        assert output.dtype == torch.bfloat16
        loss_of(output, y.chunk(comm.world_size)[comm.rank]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, value in net.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_mixed_precision_keeps_masters_and_sums_in_float32():
    launch(in_bfloat16, world_size=2)


def made_on_meta(comm, allowance_bytes):
    """A model that never lies on one rank: the most bytes while it is made and trained."""
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(32)])
    whole_bytes = sum(p.nbytes for p in model.parameters())
    torch.manual_seed(comm.rank)
    with Meter() as meter:
        net = FullySharded(model, comm, prefetch=False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.ones(1, 256)).square().sum().backward()
        optimizer.step()
    assert meter.peak < allowance_bytes < whole_bytes, meter.peak
    spread = net.state_dict()["3.weight"].std().item()
    with torch.device("meta"):
        odd = nn.Sequential(nn.Linear(2, 2), nn.TransformerEncoderLayer(4, 2))
        own = nn.Module()
        own.scale = nn.Parameter(torch.zeros(3))
    FullySharded(odd, comm)
    with pytest.raises(ValueError, match=r"a Module on the meta device has no reset_parameters"):
        FullySharded(own, comm)
    FullySharded(own, comm, initialise=lambda layer: nn.init.ones_(layer.scale))
    return spread


def test_a_model_too_large_for_a_rank_is_made_block_by_block():
    spread = launch(made_on_meta, 6_500_000, world_size=4, transport="torch")
    assert spread == [pytest.approx(1 / 16 / 3**0.5, rel=0.05)] * 4


def goes_on(comm, state):
    pair = Pair(comm)
    if state is not None:
        model, optimizer = copy.deepcopy(state)
        pair.alone.load_state_dict(model)
        pair.net.load_state_dict(model)
        pair.optimizers[0].load_state_dict(copy.deepcopy(optimizer))
        pair.net.load_optimizer_state_dict(pair.optimizers[1], optimizer)
    for step in range(2):
        pair.backward(step)
        pair.step()
        pair.compare()
    ours = pair.net.optimizer_state_dict(pair.optimizers[1])
    theirs = pair.optimizers[0].state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for number, expected in theirs["state"].items():
        for key, value in expected.items():
            torch.testing.assert_close(ours["state"][number][key], value, **TIGHT)
    return pair.net.state_dict(), ours


def test_a_state_goes_on_on_another_number_of_ranks():
    state = None
    for world_size in (3, 2, 4):
        state = launch(goes_on, state, world_size=world_size)[0]
    assert state[1]["state"][0]["step"] == 6


class Patient(nn.Linear):
    """Computes until one more message has come to this rank, so that a gather beside it is sure to be seen."""

    def __init__(self, comm):
        super().__init__(4, 4)
        self.comm = comm

    def forward(self, x):
        spans, start_s = self.comm.trace.spans, monotonic()
        num_spans = len(spans)
        while not any(span.kind == "copy" for span in spans[num_spans:]) and monotonic() - start_s < 10:
            pass
        return super().forward(x)


def traced(comm):
    net = FullySharded(nn.Sequential(Patient(comm), Patient(comm), nn.Linear(4, 4)), comm, prefetch=True)
    net._passes._order = net._passes.units  # as after a first pass
    net(torch.ones(1, 4)).sum().backward()


def test_the_next_gather_runs_while_a_unit_computes():
    spans = launch(traced, world_size=2, trace=True, links=Links(latency_s=0.05)).trace.spans
    labels = {span.label for span in spans if span.kind == "compute"}
    assert labels == {f"{way} {number}" for way in ("forward", "backward") for number in range(3)}
    for number in (0, 1):
        (computing,) = [s for s in spans if s.rank == 0 and s.label == f"forward {number}"]
        assert any(
            s.rank == 0 and s.kind == "copy" and computing.start_s < s.start_s < s.end_s < computing.end_s
            for s in spans
        )


def beside_torch(comm):
    """The same six steps by torch's own tool."""
    ours, theirs = FullySharded(gpt(0), comm), gpt(0)
    for block in theirs.blocks:
        fully_shard(block)
    fully_shard(theirs)
    optimizers = [torch.optim.Adam(each.parameters(), lr=1e-2) for each in (ours, theirs)]
    for step in range(6):
        x, y = (tensor.chunk(comm.world_size)[comm.rank] for tensor in batch(step))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()
    for value, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other.full_tensor(), **TIGHT)


def test_steps_are_those_of_fully_shard():
    launch(beside_torch, world_size=2, transport="torch")
