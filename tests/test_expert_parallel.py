"""Experts on their ranks: layers and models that equal one process after every step, whatever the router chooses."""

import copy
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lessons_lib import CollectiveMismatch, launch
from lessons_lib.comm import Mesh
from lessons_lib.models import GPT, MixtureOfExperts
from lessons_lib.parallel import (
    DataParallel,
    ExpertParallel,
    PipelineParallel,
    average_gradients,
    clip_grad_norm_,
    context_parallel,
    share_of_mean,
    split_layers,
    split_sequence,
)
from lessons_lib.schedules import chunk_bounds, count, expert_routing, one_f_one_b

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
OPTIMISERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def layer(num_experts, top_k=2, seed=0):
    torch.manual_seed(seed)
    return MixtureOfExperts(8, num_experts, top_k).double()


def tokens(sizes, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(sizes), 8, generator=generator, dtype=torch.float64)


def one_layer(comm, num_experts, top_k, sizes, is_hot):
    """Answers, gradients, counts and bytes of a layer whose ranks have `sizes` tokens, beside one process."""
    whole, mine = layer(num_experts, top_k), ExpertParallel(layer(num_experts, top_k, seed=comm.rank), comm)
    if is_hot:  # expert 0 is everybody's first choice
        for each in (whole, mine):
            each.router.weight.data[0] = 0
            each.router.weight.data[1:] *= 1e-3
            each.router.weight.data[1:].sub_(each.router.weight.data[1:].mean(0))
    x = tokens(sizes).requires_grad_()
    own = x.detach().split(sizes)[comm.rank].clone().requires_grad_()
    chosen = whole.route(x)[0].split(sizes)
    answer = whole(x)
    answer.square().sum().backward()
    sent = [comm.ledger.bytes_sent]
    result = mine(own)
    sent.append(comm.ledger.bytes_sent)
    result.square().sum().backward()
    sent.append(comm.ledger.bytes_sent)
    torch.testing.assert_close(result, answer.detach().split(sizes)[comm.rank], **TIGHT)
    torch.testing.assert_close(own.grad, x.grad.split(sizes)[comm.rank], **TIGHT)
    for number, expert in mine.experts.items():
        for ours, theirs in zip(expert.parameters(), whole.experts[int(number)].parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, **TIGHT)  # the sum over ranks
    comm.all_reduce(mine.router.weight.grad)
    torch.testing.assert_close(mine.router.weight.grad, whole.router.weight.grad, **TIGHT)
    expected = torch.stack([torch.bincount(each.flatten(), minlength=num_experts) for each in chosen])
    assert torch.equal(mine.counts, expected)
    program = expert_routing([each.tolist() for each in chosen], num_experts)
    rows = count(program, block_bytes=lambda block: 64 * len(program.work[block[1]][block[2]])).bytes_sent[comm.rank]
    assert sent[1] - sent[0] == rows + 8 * (num_experts + 3) * (comm.world_size - 1)
    assert sent[2] - sent[1] == rows
    return [*mine.experts]


def layers(comm):
    size = comm.world_size
    for num_experts in (1, 2, 3, 5, 8):
        for sizes in ([4] * size, [3 + 2 * rank for rank in range(size)], [0] * (size - 1) + [7]):
            held = one_layer(comm, num_experts, min(2, num_experts), sizes, is_hot=num_experts == 5)
        assert held == [str(n) for n in range(*chunk_bounds(num_experts, size)[comm.rank])]
    one_layer(comm, 4, 1, [5] * size, is_hot=False)


@pytest.mark.parametrize(("world_size", "transport"), [(1, "torch"), (2, "torch"), (3, "torch"), (4, "shared_memory")])
def test_a_layer_equals_one_process_and_moves_what_it_says(world_size, transport):
    launch(layers, world_size=world_size, transport=transport)


def gpt(seed, num_experts, **options):
    torch.manual_seed(seed)
    return GPT(31, 16, num_layers=2, num_heads=2, context=8, num_experts=num_experts, **options).double()


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def compare(model, reference, what, **limits):
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        mine, other = what(parameter), what(theirs[name])
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, **(TIGHT | limits))


def train(comm, num_experts, optimiser="adam", is_uneven=False, passes=1, **axes):
    """Six steps, each compared with one process: loss, norm, gradients and weights. Experts differ at the start."""
    mesh = Mesh(comm, **axes)
    reference, model = gpt(0, num_experts), gpt(mesh["ep"].rank, num_experts)
    start = {name: value for name, value in reference.state_dict().items() if "mlp" not in name}
    model.load_state_dict(start, strict=False)
    for each in (reference, model):
        each.blocks[0].mlp.experts[0].up.weight.requires_grad_(False)
    for block in model.blocks:
        block.mlp = ExpertParallel(block.mlp, mesh["ep"])
    if "cp" in axes:
        context_parallel(model, mesh["cp"])
    dp = [axis for axis in axes if axis != "cp"]
    part, num_parts = mesh[tuple(dp)].rank, mesh[tuple(dp)].world_size
    sizes = [1 + rank % 2 for rank in range(num_parts)] if is_uneven else [2] * num_parts
    ours, alone = OPTIMISERS[optimiser](model.parameters()), OPTIMISERS[optimiser](reference.parameters())
    generator = torch.Generator().manual_seed(7)
    for number in range(6 * passes):
        x, y = torch.randint(31, (2, sum(sizes), 8), generator=generator)
        loss = loss_of(reference(x), y)
        loss.backward()
        own = [each.split(sizes)[part] for each in (x, y)]
        own = [split_sequence(each, mesh["cp"]) for each in own] if "cp" in axes else own
        share = share_of_mean(loss_of(model(own[0]), own[1]), own[1].numel(), comm)
        share.backward()
        comm.all_reduce(total := share.detach().clone(), "mean")
        torch.testing.assert_close(total, loss.detach(), **TIGHT)
        if (number + 1) % passes:
            continue
        average_gradients(model.parameters(), mesh, tuple(axes))
        norm = clip_grad_norm_(model.parameters(), 0.5, mesh)
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5), **TIGHT)
        compare(model, reference, lambda each: each.grad)
        for optimizer in (ours, alone):
            optimizer.step()
            optimizer.zero_grad()
        compare(model, reference, lambda each: each, rtol=1e-9)


def trained(comm, cases):
    for case in cases:
        train(comm, **case)


@pytest.mark.parametrize(
    ("world_size", "transport", "cases"),
    [
        (2, "torch", [{"num_experts": 4, "ep": 2}]),
        (3, "shared_memory", [{"num_experts": 5, "ep": 3, "optimiser": "sgd", "passes": 2, "is_uneven": True}]),
        (4, "shared_memory", [{"num_experts": 3, "dp": 2, "ep": 2, "is_uneven": True}, {"num_experts": 3, "ep": 4}]),
        (8, "shared_memory", [{"num_experts": 4, "dp": 2, "cp": 2, "ep": 2}]),
    ],
)
def test_every_step_equals_one_process(world_size, transport, cases):
    launch(trained, cases, world_size=world_size, transport=transport)


def with_data_parallel(comm):
    """DataParallel over dp, with uneven shares, and the rest of the mean over ep by hand."""
    mesh = Mesh(comm, dp=2, ep=2)
    reference, model = gpt(0, 3), gpt(comm.rank, 3)
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        mine.data.copy_(other.data)
    for block in model.blocks:
        block.mlp = ExpertParallel(block.mlp, mesh["ep"])
    with pytest.raises(ValueError, match="is split over ranks of comm: a comm of ranks that hold the same"):
        DataParallel(model, comm)
    net = DataParallel(model, mesh["dp"])
    sizes = [1, 1, 3, 3]
    x, y = torch.randint(31, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    loss_of(reference(x), y).backward()
    own = [each.split(sizes)[comm.rank] for each in (x, y)]
    loss_of(net(own[0]), own[1]).backward()
    average_gradients(model.parameters(), mesh, "ep")
    compare(model, reference, lambda each: each.grad)


def test_data_parallel_refuses_ranks_with_other_experts_and_works_along_the_others():
    launch(with_data_parallel, world_size=4)


def as_people_write_it(comm):
    """Evaluation, two backward passes, checkpoints, saving and loading, autocast, and frozen or missing experts."""
    sizes = [5, 2]
    whole, mine = layer(3), ExpertParallel(layer(3, seed=comm.rank), comm)
    x = tokens(sizes)
    own = x.split(sizes)[comm.rank]
    with torch.no_grad():
        torch.testing.assert_close(mine(own), whole(x).split(sizes)[comm.rank], **TIGHT)
    for run in (lambda net, x: net(x), lambda net, x: checkpoint(net, x, use_reentrant=False)):
        for net in (mine, whole):
            net.zero_grad()
        for net, given in ((mine, own), (whole, x)):  # x needs no gradient, and an expert here has none
            loss = run(net, given).square().sum()
            loss.backward(retain_graph=True)
            loss.backward()
        compare(mine, whole, lambda each: each.grad if each.shape != (3, 8) else None)
    other = layer(3, seed=9)
    mine.load_state_dict(other.state_dict())
    torch.testing.assert_close(mine(own), other(x).split(sizes)[comm.rank], **TIGHT)
    saved = {name: value.clone() for name, value in mine.state_dict().items()}
    assert saved.keys() <= other.state_dict().keys()
    mine.load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*experts\.7"):
        mine.load_state_dict({**saved, "experts.7.up.bias": torch.zeros(32)})
    with pytest.raises(TypeError, match="belongs to its own rank"):
        copy.deepcopy(mine)
    with torch.autocast("cpu", torch.bfloat16):
        assert mine.float()(own.float()).dtype == torch.float32
    frozen = ExpertParallel(layer(1, 1), comm)  # rank 0 has none
    for parameter in frozen.experts.parameters():
        parameter.requires_grad_(False)
    frozen(own).sum().backward()
    for _, each in frozen.experts.named_parameters():
        assert each.grad is None


def test_training_code_as_people_write_it_equals_one_process():
    launch(as_people_write_it, world_size=2)


def never_cleared(comm):
    """A loop that forgets zero_grad() is refused by all ranks; each way to clear gradients will do."""
    mesh, model, layers = Mesh(comm, ep=2), gpt(0, 4), gpt(0, 4, tied=False).stages()
    for block in [*model.blocks, *layers[1:-1]]:
        block.mlp = ExpertParallel(block.mlp, mesh["ep"])
    pipe = PipelineParallel(split_layers(layers, 1), comm.split(comm.rank), one_f_one_b(1, 1))
    x, y = torch.randint(31, (2, 4, 8), generator=torch.Generator().manual_seed(1))
    ways = (lambda: loss_of(model(x), y).backward()), (lambda: pipe.step(x, y, loss_of))
    for net, backward in zip((model, pipe), ways, strict=True):
        optimizer = OPTIMISERS["sgd"](net.parameters())
        for set_to_none in (True, False):
            for _ in range(2):  # accumulating before the average is right
                backward()
            average_gradients(net.parameters(), mesh, "ep")
            clip_grad_norm_(net.parameters(), 0.1, mesh)
            optimizer.step()
            with pytest.raises(RuntimeError, match=r"would add a sum: clear them first by zero_grad"):
                backward()
            optimizer.zero_grad(set_to_none)


def test_a_sum_over_ranks_is_not_added_to_their_mean():
    launch(never_cleared, world_size=2)


def resident(comm):
    mine = ExpertParallel(layer(8), comm)
    return sum(each.nbytes for each in mine.experts.parameters())


def test_a_rank_keeps_its_share_of_the_experts():
    one, *many = (launch(resident, world_size=size) for size in (1, 2, 4))
    assert all(each == one[0] / len(ranks) for ranks in many for each in ranks)
    assert all(len(first) < len(second) for first, second in pairwise([one, *many]))


def refused(comm, error, said, call):
    with pytest.raises(error) as caught:
        call(comm)
    assert said in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("error", "said", "call"),
    [
        (TypeError, "layer is a Linear", lambda comm: ExpertParallel(torch.nn.Linear(2, 2), comm)),
        (TypeError, "layer is a ExpertParallel", lambda comm: ExpertParallel(ExpertParallel(layer(2), comm), comm)),
        (TypeError, "comm is a int", lambda comm: ExpertParallel(layer(2), 2)),
        (CollectiveMismatch, "ExpertParallel", lambda comm: ExpertParallel(layer(2 + comm.rank), comm)),
        (CollectiveMismatch, "top_k=2", lambda comm: ExpertParallel(layer(3, 1 + comm.rank), comm)),
        (
            CollectiveMismatch,
            "x.requires_grad=1",
            lambda comm: ExpertParallel(layer(2), comm)(tokens([1]).requires_grad_(bool(comm.rank))),
        ),
    ],
)
def test_bad_input_is_refused_on_every_rank(error, said, call):
    launch(refused, error, said, call, world_size=2)
