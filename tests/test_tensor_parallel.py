"""Tensor and sequence parallelism: equal to one process at every step, whatever is split, dropped or tied."""

import gc
import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.distributed import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lessons_lib import CollectiveMismatch, RankFailed, launch
from lessons_lib.comm import Mesh
from lessons_lib.models import GPT
from lessons_lib.parallel import (
    DataParallel,
    PipelineParallel,
    clip_grad_norm_,
    full_optimizer_state_dict,
    full_state_dict,
    gpt_plan,
    load_full_optimizer_state_dict,
    parallel_cross_entropy,
    parallelize,
    split_layers,
)
from lessons_lib.parallel.tensor.parts import part_of, whole_of
from lessons_lib.schedules import one_f_one_b, zb_h1

VOCABULARY = 31
OPTIMISERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}
PLAIN, SEQUENCE = {}, {"sequence_parallel": True}
AGAIN = SEQUENCE | {"gather_again": True}


def gpt(seed, **options):
    torch.manual_seed(seed)
    sizes = {"width": 24, "num_layers": 2, "num_heads": 12, "context": 24} | options
    return GPT(VOCABULARY, **sizes).double()


def batches(num_steps, rows=3, context=12):
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(VOCABULARY, (2, rows, context), generator=generator) for _ in range(num_steps)]


def full_of(parameter):
    return whole_of(parameter.detach(), parameter) if part_of(parameter) else parameter.detach()


def loss_of(logits, y, comm=None):
    """The loss of whole logits, or of this rank's."""
    if logits.shape[-1] == VOCABULARY:
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())
    return parallel_cross_entropy(logits, y, comm, VOCABULARY)


def assert_equal(ours, theirs, what, relative=1e-10):
    """Close beside the tensor's largest number: a gradient that is zero but for rounding has no digits to compare."""
    error, scale = (ours - theirs).abs().max(), max(theirs.abs().max(), 1e-3)
    assert error <= relative * scale, f"{what}: {error / scale:.1e}"


def assert_same_state(module, reference):
    full, whole = full_state_dict(module), reference.state_dict()
    assert list(full) == list(whole)
    for name, value in whole.items():
        assert_equal(full[name], value, name)


def draw_apart(comm, seed):
    """Rank 0 draws as one process would; the others have drawn differently before."""
    torch.manual_seed(seed + 1000 * comm.rank)


def train_beside_one_process(comm, split, seed, model, optimiser="adam", passes=1, frozen=(), num_steps=6, context=12):
    """Six steps of both, compared after each: loss, norm of the gradient, weights."""
    reference, net = gpt(0, **model), gpt(comm.rank, **model)
    for each in (reference, net):
        for name in frozen:
            each.get_submodule(name).requires_grad_(False)
    options = {name: value for name, value in split.items() if name != "gather_logits"}
    parallelize(net, comm, gpt_plan(net, split.get("gather_logits", False)), **options)
    pairs = [(reference, OPTIMISERS[optimiser](reference.parameters())), (net, OPTIMISERS[optimiser](net.parameters()))]
    for step in range(num_steps):
        for number, (x, y) in enumerate(
            batches(passes * num_steps, context=context)[step * passes : (step + 1) * passes]
        ):
            torch.manual_seed(seed + 10 * step + number)
            loss = loss_of(reference(x), y) / passes
            draw_apart(comm, seed + 10 * step + number)
            own = loss_of(net(x), y, comm) / passes
            assert_equal(own, loss, "loss")
            loss.backward()
            own.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        assert_equal(clip_grad_norm_(net.parameters(), 0.5, comm), norm, "norm")
        for _, optimizer in pairs:
            optimizer.step()
            optimizer.zero_grad()
        assert_same_state(net, reference)


def several(comm):
    torch.set_num_threads(1)
    apart = {"tied": False, "dropout": 0.2}
    train_beside_one_process(comm, {}, 1, {}, "adam")
    train_beside_one_process(comm, {"gather_logits": True}, 2, apart, "sgd", passes=2)
    train_beside_one_process(comm, SEQUENCE, 3, {"dropout": 0.1}, "adam", passes=2)
    train_beside_one_process(comm, AGAIN | {"gather_logits": True}, 4, apart, "sgd")
    train_beside_one_process(comm, AGAIN, 5, {}, "adam", frozen=("blocks.0.norm1", "blocks.1.mlp.up", "embed"))
    if comm.world_size < 4:
        train_beside_one_process(comm, {}, 6, {"num_experts": 3, "dropout": 0.1}, "adam")


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_step_equals_one_process(world_size):
    launch(several, world_size=world_size)


def on_many_ranks(comm):
    torch.set_num_threads(1)
    train_beside_one_process(comm, {}, 1, {"num_heads": 24, "dropout": 0.1}, num_steps=2)
    train_beside_one_process(comm, SEQUENCE, 1, {"num_heads": 24, "num_layers": 1}, num_steps=2, context=24)


def test_steps_equal_one_process_on_eight_ranks():
    launch(on_many_ranks, world_size=8)


def over_torch(comm):
    train_beside_one_process(comm, AGAIN, 1, {"dropout": 0.1}, num_steps=3)
    train_beside_one_process(comm, {"gather_logits": True}, 2, {"dropout": 0.1}, num_steps=3)


def test_steps_equal_one_process_over_torch():
    launch(over_torch, world_size=2, transport="torch")


# --- a module of the user's ------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """As people write it: it asks its input for its shape, has dropout on its weights and knows its number of heads."""

    def __init__(self, drop):
        super().__init__()
        self.num_heads = 6
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(12, 12) for _ in range(3))
        self.out_proj, self.drop = nn.Linear(12, 12), nn.Dropout(drop)

    def forward(self, x):
        rows, length, _ = x.shape
        q, k, v = (
            layer(x).view(rows, length, self.num_heads, -1).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = self.drop((q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3))
        return self.out_proj((weights @ v).transpose(1, 2).reshape(rows, length, -1))


class Encoder(nn.Module):
    """Like `nn.TransformerEncoderLayer(norm_first=True)`, with q, k and v apart."""

    def __init__(self, hidden, drop):
        super().__init__()
        self.self_attn, self.dropout1, self.dropout2 = SelfAttention(drop), nn.Dropout(drop), nn.Dropout(drop)
        self.linear1, self.dropout, self.linear2 = nn.Linear(12, hidden), nn.Dropout(drop), nn.Linear(hidden, 12)
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)

    def forward(self, x):
        x = x + self.dropout1(self.self_attn(self.norm1(x)))
        return x + self.dropout2(self.linear2(self.dropout(torch.relu(self.linear1(self.norm2(x))))))


ENCODER_PLAN = {
    "*self_attn": "heads",
    "*.[qkv]_proj": "column",
    "*.out_proj": "row",
    "*self_attn.drop": ("dropout", 1),
    "*linear1": "column",
    "*linear2": "row",
    "*.dropout": "dropout",
}
ON_POSITIONS = {"*norm?": "sequence", "*dropout[12]": "sequence", "0": "scatter", "2": "gather"}


def encoder(seed, hidden=37, drop=0.2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Identity(), Encoder(hidden, drop), nn.Identity()).double()


def loss_against(x, net):
    return (net(x) - x.flip(0)).pow(4).mean()


def assert_trains_alike(comm, net, reference, x, num_steps=3):
    pairs = [OPTIMISERS["sgd"](each.parameters()) for each in (net, reference)]
    for step in range(num_steps):
        torch.manual_seed(step)
        loss_against(x, reference).backward()
        draw_apart(comm, step)
        loss_against(x, net).backward()
        for optimizer in pairs:
            optimizer.step()
            optimizer.zero_grad()
        assert_same_state(net, reference)


def own_encoder(comm):
    torch.set_num_threads(1)
    x = torch.randn(2, 6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    net = parallelize(encoder(comm.rank), comm, ENCODER_PLAN)
    assert_trains_alike(comm, net, encoder(0), x)
    for again in (False, True):
        net = parallelize(encoder(comm.rank), comm, ENCODER_PLAN | ON_POSITIONS, True, again)
        assert_trains_alike(comm, net, encoder(0), x)


@pytest.mark.parametrize("world_size", [2, 3])
def test_an_encoder_of_the_user_trains_as_one_process_with_dropout_inside_and_outside(world_size):
    launch(own_encoder, world_size=world_size)


def beside_torch(comm):
    mesh = init_device_mesh("cpu", (comm.world_size,))
    x = torch.randn(2, 6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own, theirs, alone = (encoder(0, hidden=36, drop=0.0) for _ in range(3))
    parallelize(own, comm, ENCODER_PLAN)
    columns = dict.fromkeys(("1.self_attn.?_proj", "1.linear1"), ColwiseParallel())
    parallelize_module(theirs, mesh, columns | dict.fromkeys(("1.self_attn.out_proj", "1.linear2"), RowwiseParallel()))
    theirs[1].self_attn.num_heads //= comm.world_size
    for each in (own, theirs, alone):
        loss_against(x, each).backward()
        torch.optim.SGD(each.parameters(), lr=0.1).step()
    assert_same_state(own, alone)
    for (name, ours), parameter in zip(full_state_dict(own).items(), theirs.parameters(), strict=True):
        other = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        assert_equal(ours, other.detach(), name)


def test_it_computes_what_parallelize_module_computes():
    launch(beside_torch, world_size=2, transport="torch")


def torchs_layer(seed):
    torch.manual_seed(seed)
    return nn.TransformerEncoderLayer(12, 2, 37, dropout=0.1, batch_first=True).double()


def layer_of_torch(comm):
    net, reference = torchs_layer(comm.rank), torchs_layer(0)
    with pytest.raises(
        ValueError, match=r"self_attn is a MultiheadAttention: an nn.Linear is needed: its weights of q"
    ):
        parallelize(net, comm, {"self_attn": "column"})
    with pytest.raises(ValueError, match="out_proj is a NonDynamicallyQuantizableLinear"):
        parallelize(net, comm, {"self_attn.out_proj": "row"})
    parallelize(net, comm, {"linear1": "column", "linear2": "row", "dropout": "dropout"})
    x = torch.randn(2, 6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_trains_alike(comm, net, reference, x)
    with torch.no_grad():  # where torch would take its fast path, which does not call the layers
        assert_equal(net.eval()(x), reference.eval()(x), "evaluation")
    assert net.linear1.weight.shape[0] < 37


def test_an_encoder_layer_of_torch_keeps_its_packed_attention_whole_and_splits_the_rest():
    launch(layer_of_torch, world_size=2)


# --- bytes, calls and memory -----------------------------------------------------------------------------------------


def moved(comm, split, passes=("forward", "backward")):
    """Calls of collectives, and bytes sent, forward and backward."""
    net, (x, y) = gpt(0), batches(1)[0]
    parallelize(net, comm, gpt_plan(net), **split)
    found, state = [], {}

    def spent(work):
        calls, sent = dict(comm.ledger.calls), comm.ledger.bytes_sent
        result = work()
        new = {name: count - calls.get(name, 0) for name, count in comm.ledger.calls.items()}
        found.append(({name: count for name, count in new.items() if count}, comm.ledger.bytes_sent - sent))
        return result

    state["loss"] = spent(lambda: loss_of(net(x), y, comm))
    spent(lambda: state["loss"].backward())
    return found


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_one_all_reduce_a_pair_and_pass_and_the_bytes_are_those_of_the_formula(world_size):
    num_layers, targets = 2, 3 * 12 * 8  # bytes of one number per target
    stream, width = targets * 24, 24 * 8
    each = 2 * (world_size - 1)  # bytes that all ranks send in an all-reduce of one byte
    pairs = 2 * num_layers

    forward, backward = zip(*launch(moved, PLAIN, world_size=world_size, algorithm="ring"), strict=True)
    assert all(calls == {"all_reduce": pairs + 1 + 2} for calls, _ in forward)
    assert all(calls == {"all_reduce": pairs + 1} for calls, _ in backward)
    assert sum(sent for _, sent in forward) == each * ((pairs + 1) * stream + 3 * targets)
    assert sum(sent for _, sent in backward) == each * (pairs + 1) * stream

    for split, more in ((SEQUENCE, 0), (AGAIN, pairs + 1)):
        forward, backward = zip(*launch(moved, split, world_size=world_size, algorithm="ring"), strict=True)
        norms_and_biases = 2 * (2 * num_layers + 1) + 2 * num_layers
        assert all(
            calls == {"all_gather": pairs + 1, "reduce_scatter": pairs, "all_reduce": 1 + 2} for calls, _ in forward
        )
        expected = {"all_gather": pairs + 1 + more, "reduce_scatter": pairs + 1, "all_reduce": norms_and_biases}
        assert all(calls == expected for calls, _ in backward)
        half = (world_size - 1) * stream
        assert sum(sent for _, sent in forward) == half * (2 * pairs + 1 + 2) + each * 3 * targets
        assert sum(sent for _, sent in backward) == half * (2 * pairs + 2 + more) + each * norms_and_biases * width


def resident(comm, split):
    """Bytes of parameters of a rank, and bytes that a block more keeps for backward: every memory once."""
    kept, found = [], {}

    def note(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for num_layers in (1, 3):
        net, (x, y) = gpt(0, num_layers=num_layers, width=48), batches(1, rows=4, context=24)[0]
        parallelize(net, comm, gpt_plan(net), **split)
        found.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = loss_of(net(x), y, comm)
        own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
        kept.append(sum(size for memory, size in found.items() if memory not in own))
        del loss
    return sum(p.nbytes for p in net.parameters()), (kept[1] - kept[0]) / 2


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_memory_is_what_the_docstrings_say(world_size):
    stream = 4 * 24 * 48 * 8
    cut = 8 * (VOCABULARY * 48 + 3 * (4 * 48 * 48 + 3 * 48 + 2 * 4 * 48 * 48 + 4 * 48))
    whole = 8 * (24 * 48 + 3 * (6 * 48) + 2 * 48)
    for split, numbers in ((PLAIN, 4 + 12 / world_size), (SEQUENCE, 2 + 14 / world_size), (AGAIN, 16 / world_size)):
        if world_size == 1 and split is AGAIN:
            continue
        ranks = launch(resident, split, world_size=world_size)
        for parameters, kept in ranks:
            assert parameters == pytest.approx(cut / world_size + whole, rel=0.01)
            assert kept == pytest.approx(numbers * stream, rel=0.1), split
        assert sum(parameters for parameters, _ in ranks) == cut + world_size * whole


def left_behind(comm):
    """Tensors alive after passes of each kind, while nobody collects garbage."""
    gc.disable()
    numbers = []
    for split in (PLAIN, SEQUENCE, AGAIN):
        net, (x, y) = gpt(0), batches(1)[0]
        parallelize(net, comm, gpt_plan(net), **split)
        for needs_backward in (True, False, True, False):
            loss = loss_of(net(x), y, comm)
            if needs_backward:
                loss.backward()
            del loss
            numbers.append(sum(type(each) in (torch.Tensor, nn.Parameter) for each in gc.get_objects()))
    return numbers


def test_nothing_is_left_of_a_pass():
    numbers = launch(left_behind, world_size=2)[0]
    assert all(len(set(numbers[first : first + 4])) == 1 for first in (0, 4, 8)), numbers


# --- with other strategies -------------------------------------------------------------------------------------------


def with_data_parallel(comm):
    torch.set_num_threads(1)
    mesh = Mesh(comm, dp=2, tp=2)
    for split in (PLAIN, SEQUENCE):
        reference, net = gpt(0), gpt(comm.rank)
        parallelize(net, mesh["tp"], gpt_plan(net), **split)
        wrapped = DataParallel(net, mesh["dp"])
        pairs = [OPTIMISERS["adam"](each.parameters()) for each in (reference, net)]
        for x, y in batches(3, rows=5):
            rows = slice(0, 3) if mesh.coordinates["dp"] == 0 else slice(3, 5)
            loss_of(reference(x), y).backward()
            loss_of(wrapped(x[rows]), y[rows], mesh["tp"]).backward()
            norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            assert_equal(clip_grad_norm_(net.parameters(), 0.5, mesh), norm, "norm")
            for optimizer in pairs:
                optimizer.step()
                optimizer.zero_grad()
            assert_same_state(net, reference)
        with pytest.raises(ValueError, match="is split over ranks of comm"):
            DataParallel(net, mesh["tp"])


def test_it_goes_with_data_parallelism_on_another_axis_and_refuses_the_same_one():
    launch(with_data_parallel, world_size=4)


def with_a_pipeline(comm, make):
    torch.set_num_threads(1)
    mesh = Mesh(comm, pp=2, tp=2)
    for split in (PLAIN, AGAIN):
        reference, net = gpt(0), gpt(comm.rank)
        parallelize(net, mesh["tp"], gpt_plan(net), **split)
        stages = split_layers(net.stages(), 2)
        pipe = PipelineParallel(stages, mesh["pp"], make(2, 3))
        pairs = [OPTIMISERS["adam"](each.parameters()) for each in (reference, pipe)]
        for x, y in batches(3, rows=6):
            loss = loss_of(reference(x), y)
            loss.backward()
            assert_equal(pipe.step(x, y, lambda logits, y: loss_of(logits, y, mesh["tp"])), loss.detach(), "loss")
            for optimizer in pairs:
                optimizer.step()
                optimizer.zero_grad()
            mine = set(pipe.parameters())
            for (name, ours), (_, theirs) in zip(net.named_parameters(), reference.named_parameters(), strict=True):
                if ours in mine:
                    assert_equal(full_of(ours), theirs.detach(), name)


@pytest.mark.parametrize("make", [one_f_one_b, zb_h1])
def test_it_goes_with_a_pipeline_on_another_axis(make):
    launch(with_a_pipeline, make, world_size=4)


def one_stage(comm):
    """A part of a model, split alone, under `parallelize` of its own."""
    net, reference = gpt(comm.rank, dropout=0.1).blocks, gpt(0, dropout=0.1).blocks
    parallelize(net, comm, gpt_plan(net))
    x = torch.randn(2, 12, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_trains_alike(comm, net, reference, x)


def test_a_part_of_a_model_can_be_split_alone():
    launch(one_stage, world_size=3)


# --- code as people write it -----------------------------------------------------------------------------------------


def one_loss(net, comm, number=0, length=12):
    x, y = batches(4)[number][:, :, :length]
    return loss_of(net(x), y, comm)


def two_backward_passes(net, comm):
    loss = one_loss(net, comm)
    loss.backward(retain_graph=True)
    loss.backward()


def evaluation_in_between(net, comm):
    loss = one_loss(net.eval(), comm)
    with torch.no_grad():
        one_loss(net, comm, 1)
    loss.backward()


def an_exception_in_forward(net, comm):
    hook = net.blocks[1].register_forward_pre_hook(lambda *args: {}["missing"])
    with pytest.raises(KeyError):
        one_loss(net, comm)
    hook.remove()
    torch.manual_seed(5 + 1000 * (comm.rank if comm else 0))
    one_loss(net, comm).backward()


def frozen_midway(net, comm):
    net.blocks[0].requires_grad_(False)
    one_loss(net, comm).backward()
    net.blocks[0].requires_grad_(True)
    net.head.norm.requires_grad_(False)
    one_loss(net, comm, 1).backward()


def checkpointed(net, comm):
    x, y = batches(1)[0]
    stream = net.embed(x)
    for block in net.blocks:
        stream = checkpoint(block, stream, use_reentrant=False)
    loss_of(net.head(stream), y, comm).backward()


def gradients_asked_for(net, comm):
    parameters = list(net.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(one_loss(net, comm), parameters), strict=True):
        parameter.grad = gradient


def blocks_called_twice(net, comm):
    x, y = batches(1)[0]
    loss_of(net.head(net.blocks(net.blocks(net.embed(x)))), y, comm).backward()


def other_lengths(net, comm):
    for length in (12, 6, 2):
        one_loss(net, comm, length=length).backward()


WAYS = [
    two_backward_passes,
    evaluation_in_between,
    an_exception_in_forward,
    frozen_midway,
    checkpointed,
    gradients_asked_for,
    blocks_called_twice,
    other_lengths,
]


def every_way(comm):
    torch.set_num_threads(1)
    for split in (PLAIN, SEQUENCE, AGAIN):
        for way in WAYS:
            reference, net = gpt(0, dropout=0.1), gpt(comm.rank, dropout=0.1)
            parallelize(net, comm, gpt_plan(net), **split)
            torch.manual_seed(3)
            way(reference, None)
            draw_apart(comm, 3)
            way(net, comm)
            for (name, ours), theirs in zip(net.named_parameters(), reference.parameters(), strict=True):
                assert (ours.grad is None) == (theirs.grad is None)
                if ours.grad is not None:
                    whole = whole_of(ours.grad, ours) if part_of(ours) else ours.grad
                    assert_equal(whole, theirs.grad, f"{way.__name__}, {split}, {name}")


def test_gradients_are_those_of_one_process_however_the_loop_is_written():
    launch(every_way, world_size=2)


def other_batches(comm):
    net = gpt(0)
    parallelize(net, comm, gpt_plan(net))
    with pytest.raises(CollectiveMismatch, match=r"checksum .*: the same batch is needed"):
        one_loss(net, comm, comm.rank)
    positions = gpt(0)
    parallelize(positions, comm, gpt_plan(positions), sequence_parallel=True)
    with pytest.raises(ValueError, match="assign=True: a parameter that is cut needs assign=False"):
        positions.load_state_dict(full_state_dict(positions), assign=True)
    positions.blocks[0].norm1.weight = nn.Parameter(torch.ones(24, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="weight of a LayerNorm is new: change the old one in place"):
        one_loss(positions, comm)
    with pytest.raises(TypeError, match="belongs to its own rank and cannot be copied"):
        deepcopy(net)
    net.blocks[0].register_forward_hook(lambda module, args, output: F.dropout(output, 0.3))
    with pytest.raises(RuntimeError, match="GPT drew random numbers, though it has no dropout"):
        one_loss(net, comm)


def test_what_would_be_wrong_in_silence_raises_on_every_rank():
    launch(other_batches, world_size=2)


# --- saving and loading ----------------------------------------------------------------------------------------------


def train_some(comm, net, steps):
    optimizer = OPTIMISERS["adam"](net.parameters())
    return optimizer, [one_step(comm, net, optimizer, *batches(6)[step]) for step in steps]


def one_step(comm, net, optimizer, x, y):
    loss = loss_of(net(x), y, comm)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def saved(comm):
    net = gpt(comm.rank)
    parallelize(net, comm, gpt_plan(net))
    optimizer, _ = train_some(comm, net, range(3))
    return full_state_dict(net), full_optimizer_state_dict(optimizer), net.state_dict()


def resumed(comm, state, of_optimizer):
    net = gpt(comm.rank)
    parallelize(net, comm, gpt_plan(net))
    net.load_state_dict(state)
    optimizer = OPTIMISERS["adam"](net.parameters())
    load_full_optimizer_state_dict(optimizer, of_optimizer)
    losses = [one_step(comm, net, optimizer, *batches(6)[step]) for step in range(3, 6)]
    own = net.state_dict()
    net.load_state_dict(own)
    return losses, full_state_dict(net)


def part_of_another(comm, part):
    net = gpt(comm.rank)
    parallelize(net, comm, gpt_plan(net))
    net.load_state_dict(part)


def test_what_four_ranks_save_goes_on_in_one_process_and_on_any_number_of_ranks(tmp_path):
    torch.set_num_threads(1)
    state, of_optimizer, _ = launch(saved, world_size=4)[0]
    torch.save((state, of_optimizer), tmp_path / "state.pt")
    state, of_optimizer = torch.load(tmp_path / "state.pt")
    alone = gpt(1)
    alone.load_state_dict(state)
    optimizer = OPTIMISERS["adam"](alone.parameters())
    optimizer.load_state_dict(deepcopy(of_optimizer))  # torch goes on with the very tensors
    expected = [one_step(None, alone, optimizer, *batches(6)[step]) for step in range(3, 6)]
    for world_size in (2, 3):
        losses, end = launch(resumed, state, of_optimizer, world_size=world_size)[0]
        assert losses == pytest.approx(expected, rel=1e-10)
        for name, value in alone.state_dict().items():
            assert_equal(end[name], value, name)


def test_the_part_of_another_rank_is_refused(tmp_path):
    part = launch(saved, world_size=2)[0][2]
    torch.save(part, tmp_path / "part.pt")
    with pytest.raises(RankFailed, match="is the part of rank 0 of 2, this is rank 1 of 2: save full_state_dict"):
        launch(part_of_another, torch.load(tmp_path / "part.pt"), world_size=2)


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(comm):
    def refuses(message, module, plan, error=ValueError, **options):
        with pytest.raises(error, match=message):
            parallelize(module, comm, plan, **options)

    net, own = gpt(0), encoder(0)
    refuses("module is a str", "net", {"": "column"}, TypeError)
    refuses("plan={}: a dict", net, {})
    refuses(
        r"plan\['blocks.9.up'\]='column' names no module: there are embed, embed.tokens", net, {"blocks.9.up": "column"}
    )
    refuses(r"plan\['head'\]='columns': one of column, gathered column, row", net, {"head": "columns"})
    refuses("plan names blocks.0.mlp.up twice, as 'column' and as 'row'", net, {"*up": "column", "blocks.0*up": "row"})
    refuses("blocks.0 is a Block: an nn.Linear is needed", net, {"blocks.0": "row"})
    refuses("embed.tokens.weight is tied to head.logits.weight: both must be cut", net, {"embed.tokens": "vocabulary"})
    three = gpt(0, num_heads=3)
    refuses("blocks.0.attention has num_heads=3: a multiple of the 2 ranks", three, gpt_plan(three))
    refuses(r"1.self_attn has {'num_heads': 6}: name it in the plan, as 'heads'", own, {"*_proj": "column"})
    refuses("1.linear1 is a Linear: an nn.Dropout is needed", own, {"1.linear1": "dropout"})
    refuses(
        "plan does not name 1.dropout1, which sequence_parallel=True needs", own, ENCODER_PLAN, sequence_parallel=True
    )
    refuses(
        "1.self_attn is 'heads', 1.self_attn.drop in it 'sequence'",
        own,
        ENCODER_PLAN | ON_POSITIONS | {"*self_attn.drop": "sequence"},
        sequence_parallel=True,
    )
    batch_norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    refuses("1 has batch norm", batch_norm, {"1": "sequence"})
    table = nn.Embedding(5, 3, max_norm=1.0)
    refuses("module has max_norm=1.0", table, {"": "vocabulary"})
    refuses("module has 1 rows: at least one for each of 2 ranks", nn.Embedding(1, 3), {"": "vocabulary"})
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *args: None)
    refuses("module has hooks, which would be lost", hooked, {"": "column"})
    refuses("is a ParametrizedLinear", nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), {"": "column"})
    refuses("module is a DataParallel: split the module first", DataParallel(gpt(0), comm), {"*.up": "column"})
    torch.testing.assert_close(net.state_dict(), gpt(0).state_dict())  # nothing has been changed so far
    parallelize(net, comm, gpt_plan(net))
    refuses("is split over ranks of comm already: another axis", net, {"embed": "whole"})
    x, y = batches(1)[0]
    with pytest.raises(IndexError, match="tokens from 0 to 31: 0 to 30 are in the vocabulary"):
        net(torch.tensor([[0, 31]]))
    with pytest.raises(ValueError, match="x has 5 numbers: this rank's 48 are needed, or all 96"):
        net.blocks[0].mlp.down(torch.zeros(1, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"logits has shape \(3, 12, 31\): \(3, 12, 1[56]\) is needed"):
        parallel_cross_entropy(torch.zeros(3, 12, 31), y, comm, 31)
    with pytest.raises(ValueError, match="reduction='avg'"):
        parallel_cross_entropy(net(x), y, comm, 31, reduction="avg")
    with pytest.raises(IndexError, match="target from 0 to 40"):
        parallel_cross_entropy(net(x[:1, :2]), torch.tensor([[0, 40]]), comm, 31)
    positions = gpt(0)
    parallelize(positions, comm, gpt_plan(positions), sequence_parallel=True)
    with pytest.raises(ValueError, match="has 7 positions along dimension 1: a multiple of the 2 ranks"):
        positions(x[:, :7])
    assert_equal(loss_of(net(x), y, comm), loss_of(gpt(0)(x), y), "training can go on")


def test_what_cannot_be_right_is_refused_on_every_rank_and_changes_nothing():
    launch(refused, world_size=2)
