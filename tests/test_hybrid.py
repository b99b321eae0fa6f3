"""Five kinds of parallelism at once: a GPT with experts on every mesh of eight ranks equals one process (lesson 18)."""

from itertools import product
from math import prod

import pytest
import torch
from torch import nn

from lessons_lib import Mesh, launch
from lessons_lib.memory import Meter
from lessons_lib.models import GPT
from lessons_lib.parallel import (
    ExpertParallel,
    PipelineParallel,
    average_gradients,
    clip_grad_norm_,
    context_parallel,
    full_state_dict,
    gpt_plan,
    parallel_cross_entropy,
    parallelize,
    split_layers,
    split_sequence,
)
from lessons_lib.schedules import chunk_bounds, one_f_one_b, zbv

AXES = ("dp", "ep", "pp", "cp", "tp")
MESHES = [dict(zip(AXES, sizes, strict=True)) for sizes in product((1, 2, 4, 8), repeat=5) if prod(sizes) == 8]
VOCABULARY, WIDTH, HEADS, CONTEXT, EXPERTS, TOP_K = 31, 16, 8, 16, 8, 2
ROWS, BYTES = 16, 8  # sequences per step; bytes of a number
MAX_NORM = 0.1  # of gradients that are longer at every step
OPTIMISERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9),
}


def gpt(seed, **options):
    torch.manual_seed(seed)
    sizes = {"num_layers": 2, "num_heads": HEADS, "context": CONTEXT, "num_experts": EXPERTS}
    return GPT(VOCABULARY, WIDTH, **(sizes | options)).double()


def num_layers(sizes):
    """Enough for every stage to have something."""
    return max(2, sizes["pp"] - 2)


def num_parts(sizes):
    """Micro-batches."""
    return 2 if sizes["pp"] > 1 else 1


def batches(num_steps, padded=False):
    generator = torch.Generator().manual_seed(7)
    found = torch.randint(VOCABULARY, (num_steps, 2, ROWS, CONTEXT), generator=generator)
    if padded:
        found[:, 1, 3:, 5:] = -100
    return found


def alone(optimiser="adam", num_steps=4, freeze=None, padded=False, **options):
    """One process: for each step the loss, the norm, and all weights after it, named by the number of their layer."""
    model, steps = gpt(0, **options), []
    layers = nn.Sequential(*model.stages())
    optimizer = OPTIMISERS[optimiser](model.parameters())
    for number, (x, y) in enumerate(batches(num_steps, padded)):
        if freeze is not None and number == 2:
            model.blocks[freeze].requires_grad_(False)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        assert norm > MAX_NORM
        optimizer.step()
        state = {name: p.detach().clone() for name, p in layers.named_parameters(remove_duplicate=False)}
        steps.append((loss.item(), norm.item(), state))
    return steps


def split(model, mesh, make=one_f_one_b, stages_per_rank=1, sequence_parallel=False):
    parallelize(model, mesh["tp"], gpt_plan(model), sequence_parallel=sequence_parallel)
    context_parallel(model, mesh["cp"])
    for block in model.blocks:
        if hasattr(block.mlp, "experts"):
            block.mlp = ExpertParallel(block.mlp, mesh["ep"])
    num_ranks = mesh.sizes["pp"]
    stages = split_layers(model.stages(), num_ranks * stages_per_rank)
    return PipelineParallel(stages, mesh["pp"], make(num_ranks, num_parts(mesh.sizes)))


def gradients_of(net, mesh, x, y):
    """One step's gradients, those of the mean over all tokens, and the loss."""
    shares = mesh.sizes["dp"] * mesh.sizes["ep"]
    number, num_real = mesh.coordinates["dp"] * mesh.sizes["ep"] + mesh.coordinates["ep"], (y != -100).sum().item()
    x, y = (split_sequence(whole.chunk(shares)[number], mesh["cp"]) for whole in (x, y))
    divisor = num_real / (shares * mesh.sizes["cp"] * num_parts(mesh.sizes))  # one for all, whatever is padding

    def loss_fn(logits, y):
        return parallel_cross_entropy(logits, y, mesh["tp"], VOCABULARY, reduction="sum") / divisor

    loss = net.step(x, y, loss_fn)
    average_gradients(net.parameters(), mesh, ("dp", "ep", "cp"))
    return loss


def trained(comm, meshes, *args, **options):
    """For each pair of a mesh and what is expected there, what `train` says."""
    return [train(comm, sizes, expected, *args, **options) for sizes, expected in meshes]


def train(comm, sizes, expected, optimiser="adam", freeze=None, padded=False, model_options=None, **options):
    """The largest relative difference to `expected`, and what was counted of the last step."""
    model_options = {"num_layers": num_layers(sizes)} | (model_options or {})
    mesh, model = Mesh(comm, **sizes), gpt(comm.rank, **model_options)
    for parameter in model.parameters():
        comm.broadcast(parameter.detach())
    net = split(model, mesh, **options)
    travelled, data = count_travellers(net), batches(len(expected), padded)
    optimizer, worst = OPTIMISERS[optimiser](net.parameters()), 0.0
    for number, ((x, y), (loss, norm, state)) in enumerate(zip(data, expected, strict=True)):
        if freeze is not None and number == 2:
            freeze_block(net, freeze)
        before = sent(comm)
        travelled.clear()
        optimizer.zero_grad()
        own_loss = gradients_of(net, mesh, x, y)
        counted = {axis: size - before.get(axis, 0) for axis, size in sent(comm).items()}
        comm.all_reduce(own_loss, op="mean")
        own_norm = clip_grad_norm_(net.parameters(), MAX_NORM, mesh)
        optimizer.step()
        worst = max([worst, abs(own_loss.item() / loss - 1), abs(own_norm.item() / norm - 1)])
        for name, weight in full_state_dict(net.stages).items():
            whole = state[name.partition(".")[2]]
            worst = max(worst, ((weight - whole).abs().max() / whole.abs().max()).item())
    held = [(name, p.numel()) for name, p in net.named_parameters()]
    counted = {axis: counted.get(axis, 0) for axis in AXES}
    return worst, counted, held, sum(travelled), resident(net, optimizer), mesh.coordinates


def resident(net, optimizer):
    """Bytes of memory behind this rank's parameters, gradients and the state of its optimiser, each memory once."""
    parameters = list(net.parameters())
    state = [tensor for each in optimizer.state.values() for tensor in each.values()]
    gradients = [p.grad for p in parameters if p.grad is not None]  # a frozen one has none
    return [Meter(*tensors).now for tensors in (parameters, gradients, state)]


def freeze_block(net, number):
    for name, parameter in net.stages.named_parameters():
        if name.split(".")[1] == str(number + 1):
            parameter.requires_grad_(False)
            parameter.grad = None


def sent(comm):
    return {name: ledger.bytes_sent for name, ledger in comm.ledger.groups.items()}


def count_travellers(net):
    """A list to which each forward pass of experts adds how many tokens leave this rank."""
    found = []

    def note(layer, args, output):
        starts = torch.arange(layer.num_experts) * layer.comm.world_size // layer.num_experts
        assert layer.num_experts % layer.comm.world_size == 0
        found.append(layer.counts[layer.comm.rank][starts != layer.comm.rank].sum().item())

    for layer in net.modules():
        if isinstance(layer, ExpertParallel):
            layer.register_forward_hook(note)
    return found


def formula(sizes, held, travelled):
    """The bytes that all ranks together send along each axis in one step.

    An all-reduce of M bytes over N ranks takes 2 (N - 1) M in all, whatever the algorithm, and to tell n whole numbers
    N (N - 1) 8 n.

    Args:
        sizes: {axis: how many ranks}.
        held: for each rank [(name, numbers) of each parameter].
        travelled: how many tokens leave the ranks for experts elsewhere.
    """
    dp, ep, pp, cp, tp = sizes.values()
    layers = num_layers(sizes)
    tokens = ROWS * CONTEXT
    stream = tokens * WIDTH * BYTES  # activations of all tokens between two layers
    passes = num_parts(sizes) / pp  # of a layer, in each group of one stage
    # Along tp: attention twice a block and pass, each token's experts as well; the tables; three numbers a token.
    along_tp = stream * (layers * (2 + 2 * TOP_K) + 2) + 3 * tokens * BYTES
    # Along cp: keys and values of a layer forward, and backward once more with their gradient.
    along_cp = 3 * layers * 2 * stream * (cp - 1)
    # Along ep: tokens there and back, their gradients too; how many they are.
    along_ep = 4 * travelled * WIDTH * BYTES + 8 * (ep - 1) * BYTES * passes * layers * (EXPERTS + 3)
    # Along pp: activations and gradients between stages, the loss, the gradient of the table that two stages hold.
    along_pp = 2 * (pp - 1) * stream * tp + (8 // pp) * (pp - 1) * BYTES
    along_pp += 2 * VOCABULARY * WIDTH * BYTES * dp * ep * cp * (pp > 1)
    found = {"tp": 2 * (tp - 1) * along_tp, "cp": along_cp, "ep": along_ep, "pp": along_pp, "dp": 0}
    for axis in ("dp", "ep", "cp"):  # the average: all gradients that the ranks share, and a number for each
        shared = [n for each in held for name, n in each if axis != "ep" or ".experts." not in name]
        n = sizes[axis]
        found[axis] += 2 * (n - 1) * (BYTES * sum(shared) + 4 * len(shared)) / n
    return found


def residents(sizes, place, optimiser):
    """The bytes of parameters, gradients and optimiser state that lie on one rank.

    Args:
        sizes: {axis: how many ranks}.
        place: the rank's {axis: coordinate}.
        optimiser: Adam keeps two numbers for each parameter and a count (float32) for each tensor, SGD one number.
    """
    tp, width, num_experts = sizes["tp"], WIDTH, EXPERTS // sizes["ep"]
    first, stop = chunk_bounds(VOCABULARY, tp)[place["tp"]]
    table, square = (stop - first) * width, 4 * width * width // tp
    attention = square + 3 * width // tp + width  # q, k and v are cut with their biases; that of the output is whole
    expert = 2 * square + 4 * width // tp + width  # up and down, each with its bias
    block = 4 * width + attention + EXPERTS * width + num_experts * expert  # with two norms and a router
    numbers = [table + CONTEXT * width, *[block] * num_layers(sizes), 2 * width + table]
    tensors = [2, *[4 + 8 + 1 + 4 * num_experts] * num_layers(sizes), 3]
    cuts = [stage * len(numbers) // sizes["pp"] for stage in range(sizes["pp"] + 1)]
    own = slice(*cuts[place["pp"] : place["pp"] + 2])
    is_tied = sizes["pp"] == 1  # else the first and the last stage have a table each
    parameters = BYTES * (sum(numbers[own]) - is_tied * table)
    counts = 4 * (sum(tensors[own]) - is_tied)
    return [parameters, parameters, 2 * parameters + counts if optimiser == "adam" else parameters]


@pytest.fixture(scope="module")
def references():
    """{(optimiser, how many layers): one process's steps}."""
    return {(name, layers): alone(name, num_layers=layers) for name in OPTIMISERS for layers in (2, 6)}


# Each mesh is trained once: every other one with Adam or with SGD, four or five in one launch.
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("first", range(0, len(MESHES), 9))
def test_every_mesh_equals_one_process_at_every_step_and_sends_and_keeps_what_formulas_say(
    first, optimiser, references
):
    chosen = MESHES[first : first + 9][optimiser == "sgd" :: 2]
    meshes = [(sizes, references[optimiser, num_layers(sizes)]) for sizes in chosen]
    ranks = launch(trained, meshes, optimiser, world_size=8, timeout_s=300)
    for sizes, results in zip(chosen, zip(*ranks, strict=True), strict=True):
        worst, counted, held, travelled, kept, places = zip(*results, strict=True)
        assert max(worst) < 1e-10, sizes
        together = {axis: sum(each[axis] for each in counted) for axis in AXES}
        assert together == formula(sizes, held, sum(travelled)), sizes
        assert [*kept] == [residents(sizes, place, optimiser) for place in places], sizes


def sizes_of(**sizes):
    return dict.fromkeys(AXES, 1) | sizes


def compared(sizes, launch_options=None, same=None, **options):
    """Train on a mesh with SGD and compare; `same` holds what one process is told too."""
    same = {"freeze": None, "padded": False} | (same or {})
    expected = alone("sgd", **same)
    world_size = prod(sizes.values())
    ranks = launch(train, sizes, expected, "sgd", **same, **options, world_size=world_size, **(launch_options or {}))
    assert max(worst for worst, *_ in ranks) < 1e-10


def test_with_padding_one_divisor_makes_the_mean_over_tokens():
    compared(sizes_of(ep=2, pp=2, cp=2), same={"padded": True})


def test_over_torch_with_the_axes_in_another_order():
    compared({"tp": 2, "pp": 2, "cp": 1, "ep": 1, "dp": 1}, {"transport": "torch"})


def test_a_zero_bubble_program_with_two_stages_per_rank():
    compared(sizes_of(pp=2, tp=2), make=zbv, stages_per_rank=2)


def test_a_block_that_is_frozen_midway():
    compared(sizes_of(ep=2, pp=2), same={"freeze": 1})
