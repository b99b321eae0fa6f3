"""Sequences cut over ranks: attention exact with its gradients, and models that equal one process after every step."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lessons_lib import CollectiveMismatch, RankFailed, launch
from lessons_lib.comm import Mesh
from lessons_lib.memory import Meter
from lessons_lib.models import GPT
from lessons_lib.parallel import (
    DataParallel,
    FullySharded,
    all_to_all_attention,
    average_gradients,
    clip_grad_norm_,
    context_parallel,
    join_sequence,
    ring_attention,
    sequence_positions,
    share_of_mean,
    split_sequence,
)
from lessons_lib.schedules import count, ring_of_keys

ATTENTIONS = [ring_attention, all_to_all_attention]
BALANCES = ["zigzag", "straight"]
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def inputs(length, key_length, heads=12, key_heads=12, dtype=torch.float64):
    """q, k, v and a gradient of the answer, the same on every rank."""
    generator = torch.Generator().manual_seed(length)
    sizes = [(heads, length), (key_heads, key_length), (key_heads, key_length), (heads, length)]
    return [torch.randn(2, *size, 5, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def differentiated(attend, q, k, v, gradient):
    q, k, v = (each.detach().requires_grad_() for each in (q, k, v))
    answer = attend(q, k, v)
    return answer.detach(), *torch.autograd.grad(answer, (q, k, v), gradient)


def exact(comm, attention):
    """The largest difference to torch's own attention, of answers and gradients, over lengths that do not divide."""
    worst = 0.0
    for length, key_length, key_heads in [(1, 1, 12), (13, 13, 12), (24, 24, 12), (11, 11, 6), (7, 12, 6)]:
        if attention is all_to_all_attention and key_heads % comm.world_size:
            key_heads = 12
        whole = inputs(length, key_length, key_heads=key_heads)
        for causal in {False, length == key_length}:
            plain = partial(F.scaled_dot_product_attention, is_causal=causal, enable_gqa=True)
            expected = differentiated(plain, *whole)
            for balance in BALANCES:
                split = partial(split_sequence, comm=comm, balance=balance, dim=2)
                own = partial(attention, comm=comm, causal=causal, balance=balance)
                for mine, theirs in zip(differentiated(own, *map(split, whole)), map(split, expected), strict=True):
                    assert mine.shape == theirs.shape
                    worst = max(worst, *(mine - theirs).abs().flatten().tolist(), 0.0)
                whole_again = join_sequence(split(whole[0]), comm, balance, dim=2)
                torch.testing.assert_close(whole_again, whole[0], rtol=0, atol=0)
    return worst


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    ("world_size", "transport"), [(1, "torch"), (2, "shared_memory"), (3, "torch"), (4, "shared_memory")]
)
def test_answers_and_gradients_are_those_of_one_process(attention, world_size, transport):
    assert max(launch(exact, attention, world_size=world_size, transport=transport)) < 1e-13


def in_half_precision(comm):
    """Errors against float64, of ours and of torch's attention, in bfloat16; and dtypes under autocast."""
    whole = inputs(32, 32)
    expected = differentiated(partial(F.scaled_dot_product_attention, is_causal=True), *whole)
    half = [each.bfloat16() for each in whole]
    theirs = differentiated(partial(F.scaled_dot_product_attention, is_causal=True), *half)
    split = partial(split_sequence, comm=comm, dim=2)
    mine = differentiated(partial(ring_attention, comm=comm), *map(split, half))
    for own, other, right in zip(mine, theirs, expected, strict=True):
        assert own.dtype == torch.bfloat16
        assert (own - split(right)).abs().max() <= 2 * (other - right).abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        exact = differentiated(partial(ring_attention, comm=comm), *(split(each).float() for each in whole))
    torch.testing.assert_close(exact[1].double(), split(expected[1]), rtol=1e-4, atol=1e-5)


def test_half_precision_is_added_up_in_float32():
    launch(in_half_precision, world_size=2)


def gpt(seed, **options):
    torch.manual_seed(seed)
    return GPT(31, 24, num_layers=2, num_heads=12, context=16, **options).double()


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def batches(num_rows, length, num_steps, masked=False):
    generator = torch.Generator().manual_seed(7)
    made = [torch.randint(31, (2, num_rows, length), generator=generator) for _ in range(num_steps)]
    for _, targets in made if masked else []:
        targets[:, : length // 3] = -1  # a prompt, which whole ranks hold nothing else of
        targets[1:, length // 2 :] = -1
    return made


OPTIMISERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def trained(comm, dp, cases):
    for case in cases:
        train(comm, dp, *case)


def train(comm, dp, attention, balance, length, masked, way="data parallel", optimiser="adam", passes=1, **options):
    """Six steps, each compared with one process: loss, norm, gradients, weights, and what evaluation says."""
    mesh = Mesh(comm, dp=dp, cp=comm.world_size // dp)
    cp, everybody = mesh["cp"], mesh["dp", "cp"]
    reference, model = gpt(0, **options), gpt(comm.rank if way == "data parallel" else 0, **options)
    for each in (reference, model):
        each.blocks[1].mlp.up.weight.requires_grad_(False)
    net = context_parallel(model, cp, attention, balance)
    net = DataParallel(net, everybody) if way == "data parallel" else net
    ours, alone = OPTIMISERS[optimiser](model.parameters()), OPTIMISERS[optimiser](reference.parameters())
    for number, batch in enumerate(batches(2 * dp, length, 6 * passes, masked)):
        x, y = (split_sequence(part.chunk(dp)[mesh.coordinates["dp"]], cp, balance) for part in batch)
        loss = loss_of(reference(batch[0]), batch[1])
        loss.backward()
        count = (y >= 0).sum().item()
        weight = {"weight": count} if masked and way == "data parallel" else {}
        mine = loss_of(net(x, **weight), y)
        share = share_of_mean(mine, count, everybody)
        (mine if way == "data parallel" else share).backward()
        total = share.detach().clone()
        everybody.all_reduce(total, "mean")
        torch.testing.assert_close(total, loss.detach(), **TIGHT)
        if way == "average":
            average_gradients(model.parameters(), mesh, ("dp", "cp"))
        if (number + 1) % passes == 0:
            norm, expected = clip_grad_norm_(model.parameters(), 0.5, mesh), None
            expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            torch.testing.assert_close(norm, expected, **TIGHT)
            compare(model, reference, lambda each: each.grad)
            for optimizer in (ours, alone):
                optimizer.step()
                optimizer.zero_grad()
            compare(model, reference, lambda each: each, rtol=1e-9)
            with torch.no_grad():
                logits = join_sequence(net(x), cp, balance)
                whole = reference(batch[0].chunk(dp)[mesh.coordinates["dp"]])
                torch.testing.assert_close(logits, whole, rtol=1e-9, atol=1e-11)


def compare(model, reference, what, **limits):
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        mine, other = what(mine), what(other)
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, **(TIGHT | limits))


CASES = [
    (ring_attention, "zigzag", 12, False),
    (ring_attention, "zigzag", 13, True),
    (ring_attention, "straight", 13, False, "data parallel", "sgd", 2),
    (ring_attention, "straight", 13, True, "average"),
    (all_to_all_attention, "zigzag", 13, True, "data parallel", "sgd"),
    (all_to_all_attention, "straight", 16, False, "average"),
]


@pytest.mark.parametrize(
    ("world_size", "dp", "transport", "cases"),
    [
        (2, 1, "torch", CASES[:3]),
        (3, 1, "shared_memory", CASES),
        (4, 2, "shared_memory", CASES[1:5]),
        (8, 2, "shared_memory", CASES[1:2]),
    ],
)
def test_every_step_equals_one_process(world_size, dp, transport, cases):
    launch(trained, dp, cases, world_size=world_size, transport=transport)


def moved(comm, attention, causal, balance):
    """Bytes sent forward and backward."""
    split = partial(split_sequence, comm=comm, balance=balance, dim=2)
    q, k, v = (split(each).requires_grad_() for each in inputs(24, 24, key_heads=6)[:3])
    sent = [comm.ledger.bytes_sent]
    answer = attention(q, k, v, comm, causal, balance)
    sent.append(comm.ledger.bytes_sent)
    answer.sum().backward()
    sent.append(comm.ledger.bytes_sent)
    return sent[1] - sent[0], sent[2] - sent[1], q.nbytes, k.nbytes + v.nbytes


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_bytes_are_those_of_the_docstring(transport):
    for balance, causal in [("zigzag", True), ("straight", False)]:
        for forward, backward, _, keys in launch(
            moved, ring_attention, causal, balance, world_size=3, transport=transport
        ):
            assert (forward, backward) == (2 * keys, 4 * keys)
        for forward, backward, q, keys in launch(
            moved, all_to_all_attention, causal, balance, world_size=3, transport=transport
        ):
            assert forward == backward == (2 * q + keys) * 2 / 3
    straight = launch(moved, ring_attention, True, "straight", world_size=3, transport=transport)
    counts = [
        count(ring_of_keys(3, True, "straight", late), block_bytes=straight[0][3]).bytes_sent for late in (False, True)
    ]
    assert [each[0] for each in straight] == counts[0] and [each[1] for each in straight] == counts[1]


def at_most(comm, attention):
    """The most bytes alive forward and backward, in units of q's bytes, and those of the scores of a pair of chunks."""
    length, width = 768, 64
    size = 1, 12, len(sequence_positions(length, comm)), width
    q, k, v = (torch.randn(size, requires_grad=True) for _ in range(3))
    attention(q, k, v, comm).sum().backward()  # the transport gets its own memory, which stays
    q.grad = k.grad = v.grad = None
    with Meter(q, k, v) as meter:
        answer = attention(q, k, v, comm)
        forward, gradient = meter.peak, torch.ones_like(answer)
        meter.peak = meter.now
        answer.backward(gradient)
    scores = 12 * (length // (2 * comm.world_size)) ** 2 * q.element_size()
    return forward / q.nbytes, meter.peak / q.nbytes, scores / q.nbytes


def within(measured, expected, waiting):
    """Within a tenth of the docstring's, or of that with what a neighbour has not taken yet."""
    return 0.9 * expected <= measured <= 1.1 * (expected + waiting)


@pytest.mark.parametrize("world_size", [3, 4])
def test_memory_is_that_of_the_docstring(world_size):
    for forward, backward, scores in launch(at_most, ring_attention, world_size=world_size, transport="torch"):
        assert within(forward, 8 + max(2, scores + 0.5), waiting=2)
        assert within(backward, 16 + max(2, 2 * scores + 0.5), waiting=4)
    for forward, backward, _ in launch(at_most, all_to_all_attention, world_size=world_size, transport="torch"):
        assert forward == pytest.approx(10, rel=0.1) and backward == pytest.approx(13, rel=0.1)


def as_people_write_it(comm):
    """Two backward passes, checkpoints, a failed step, wrapping again, copies and files: each equals one process."""
    x, y = batches(3, 13, 1)[0]
    part = partial(split_sequence, comm=comm)
    reference, model = gpt(0), context_parallel(gpt(0), comm, balance="straight")
    net = DataParallel(context_parallel(model, comm), comm)  # the second cut counts
    one, two = loss_of(reference(x), y), loss_of(net(part(x)), part(y))
    for loss in (one, two):
        loss.backward(retain_graph=True)
        loss.backward()
    compare(model, reference, lambda each: each.grad)
    for each in (model, reference):
        each.zero_grad()
    with pytest.raises(ZeroDivisionError):
        1 / (0 * net(part(x)).sum().item())
    with torch.no_grad():
        torch.testing.assert_close(join_sequence(net(part(x)), comm), reference(x), **TIGHT)
    model = context_parallel(gpt(0), comm)
    for reentrant in (False, True):
        for each in (model, reference):
            each.zero_grad()
        hidden = model.embed(part(x))
        for block in model.blocks:
            hidden = checkpoint(block, hidden, use_reentrant=reentrant)
        share_of_mean(loss_of(model.head(hidden), part(y)), part(y).numel(), comm).backward()
        loss_of(reference(x), y).backward()
        for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
            comm.all_reduce(mine.grad, "mean")
            torch.testing.assert_close(mine.grad, other.grad, **TIGHT)
    alone = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), gpt(1)]
    alone[2].load_state_dict(model.state_dict())
    for each in alone:
        torch.testing.assert_close(each(x), reference(x), **TIGHT)


def test_training_code_as_people_write_it_equals_one_process():
    launch(as_people_write_it, world_size=2)


def weighed_twice(comm):
    """A loss that is a share of the mean, of modules that weigh too: over the same ranks, or over others."""
    mesh, length = Mesh(comm, dp=2, cp=2), 2 + comm.rank
    x = torch.randn(length, 3, generator=torch.Generator().manual_seed(comm.rank))
    ways = (("dp", "cp"), True, True), ("cp", True, True), ("dp", True, False), ("cp", False, False)
    for wrap in (DataParallel, FullySharded):
        for axes, does_weigh, is_refused in ways:
            net = wrap(torch.nn.Linear(3, 1), mesh[axes], weight_by_batch=does_weigh)
            loss = net(x).square().mean()
            share = share_of_mean(loss, length, mesh["cp"])
            assert share.item() == pytest.approx(loss.item() * 2 * length / (5 if comm.rank < 2 else 9))  # to report it
            if is_refused:
                with pytest.raises(RuntimeError, match="each rank would count twice"):
                    (share + 0.1 * loss).backward()
            else:
                share.backward()


def test_a_loss_is_not_weighed_twice():
    launch(weighed_twice, world_size=4)


def outputs_of_several_kinds(comm):
    """Hidden numbers and logits, both with a loss; the hidden ones lead to the logits too, and count once each way."""

    class Both(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            hidden = self.model.blocks(self.model.embed(tokens))
            return {"hidden": hidden, "logits": [self.model.head(hidden)]}

    def losses(net, x, y):
        out = net(x)
        return loss_of(out["logits"][0], y) + out["hidden"].square().mean()

    x, y = batches(3, 13, 1)[0]
    reference, model = Both(gpt(0)), Both(gpt(0))
    net = DataParallel(context_parallel(model, comm), comm)
    losses(reference, x, y).backward()
    losses(net, split_sequence(x, comm), split_sequence(y, comm)).backward()
    compare(model, reference, lambda each: each.grad)


def test_each_output_is_weighed_once():
    launch(outputs_of_several_kinds, world_size=3)


def refused(comm, error, said, call):
    with pytest.raises(error) as caught:
        call(comm)
    assert said in str(caught.value), str(caught.value)


def attended(comm, shape=(1, 4, 4, 3), keys=None, attention=ring_attention, dtype=None, **options):
    q, k = torch.zeros(shape, dtype=dtype), torch.zeros(keys or shape)
    return attention(q, k, k, comm, **options)


@pytest.mark.parametrize(
    ("error", "said", "call"),
    [
        (ValueError, "balance='even': one of 'zigzag', 'straight'", lambda comm: attended(comm, balance="even")),
        (ValueError, "(batch, heads, positions, width) is needed", lambda comm: attended(comm, (4, 4, 3))),
        (TypeError, "q is a torch.int64", lambda comm: attended(comm, dtype=torch.int64)),
        (ValueError, "k is torch.float32", lambda comm: attended(comm, dtype=torch.float64)),
        (ValueError, "k has 3 heads: a divisor of the 4 heads", lambda comm: attended(comm, keys=(1, 3, 4, 3))),
        (ValueError, "q, k and v have shapes", lambda comm: attended(comm, keys=(2, 4, 4, 3))),
        (
            ValueError,
            "q has 3 heads: a multiple of the 2 ranks",
            lambda comm: attended(comm, (1, 3, 4, 3), attention=all_to_all_attention),
        ),
        (ValueError, "positions by rank", lambda comm: attended(comm, keys=(1, 4, 5, 3))),
        (
            ValueError,
            "q has 5 positions on rank 0: 3 are needed of 6 over 2 ranks, balance='zigzag'",
            lambda comm: attended(comm, (1, 4, 1 if comm.rank else 5, 3)),
        ),
        (ValueError, "k has no position", lambda comm: attended(comm, (1, 4, 0, 3))),
        (CollectiveMismatch, "ring_attention with batch 2", lambda comm: attended(comm, (1 + comm.rank, 4, 4, 3))),
        (CollectiveMismatch, "with causal 1", lambda comm: attended(comm, causal=bool(comm.rank))),
        (ValueError, "tokens has 18 positions", lambda comm: context_parallel(gpt(0), comm)(torch.zeros(1, 9).long())),
        (
            ValueError,
            "tokens were cut with balance='straight', the model with 'zigzag'",
            lambda comm: context_parallel(gpt(0), comm)(split_sequence(torch.zeros(1, 8).long(), comm, "straight")),
        ),
        (ValueError, "without an Attention", lambda comm: context_parallel(torch.nn.Linear(2, 2), comm)),
        (TypeError, "comm is a str", lambda comm: context_parallel(gpt(0), "cp")),
        (ValueError, "x has a graph", lambda comm: join_sequence(torch.ones(1, 2, requires_grad=True), comm)),
    ],
)
def test_bad_input_is_refused_on_every_rank(error, said, call):
    launch(refused, error, said, call, world_size=2)


def one_rank_fails(comm):
    if comm.rank == 1:
        raise RuntimeError("out of tokens")
    attended(comm)


def test_nothing_hangs_when_a_rank_fails():
    with pytest.raises(RankFailed, match="out of tokens"):
        launch(one_rank_fails, world_size=3)
