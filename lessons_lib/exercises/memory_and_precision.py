"""Exercises of lesson 08: accumulation over unequal parts, recomputation, the bytes of a model, loss scaling."""

import traceback
from random import Random

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.functional import cross_entropy

from lessons_lib.exercises.cases import spread
from lessons_lib.exercises.core import Exercise, Outcome, edit
from lessons_lib.memory import Meter

# --- 1: accumulate ----------------------------------------------------------------------------------------------------


def accumulate(model, parts):
    """Leave in `.grad` of every parameter the gradient of the mean loss over a batch that comes in parts.

    model: maps x (n, features) to logits (n, classes); all its parameters are trained. Their `.grad` may be None
        or hold something old: replace it, and change nothing else of the model.
    parts: a list of (x, y), of different lengths, also 0. y: classes (n,), int64; -100 says that a sample has
        no label, and such samples do not count. (cross_entropy leaves -100 out by itself.)
    The loss is the cross entropy, averaged over the labelled samples of all parts. Returns it, a float (or a
        tensor of no dimension without its graph). At least one sample has a label.
    Memory: the activations of one part at a time. Time: every sample goes once through the model and back.
    """
    num_labelled = sum((y != -100).sum() for _, y in parts)
    model.zero_grad()
    mean = 0.0
    for x, y in parts:
        loss = cross_entropy(model(x), y, reduction="sum") / num_labelled
        loss.backward()
        mean = mean + loss.item()
    return mean


def _accumulated(fn, model, parts, old):
    """What `fn` returns and leaves in the model, and the bytes on top of model and data at the peak."""
    samples, parameters = {"forward": 0, "backward": 0}, list(model.parameters())
    for p in parameters:
        p.grad = None if old is None else torch.full_like(p, old)

    def count(way, tensor):
        samples[way] += len(tensor)

    def watch(model, inputs, logits):
        count("forward", logits)
        if logits.requires_grad:
            logits.register_hook(lambda grad: count("backward", grad))

    model.register_forward_hook(watch)
    with Meter(*parameters, *(p.grad for p in parameters if p.grad is not None), *sum(parts, ())) as meter:
        before = meter.now
        loss = fn(model, parts)
    value = {"returned loss": loss} | {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    value |= {f"{name} afterwards": [p.detach(), p.requires_grad] for name, p in model.named_parameters()}
    value["whether the modules are in training mode"] = [module.training for module in model.modules()]
    hooks = [kept for module in model.modules() for name, kept in vars(module).items() if name.endswith("hooks")]
    value["hooks on the model"] = sum(map(len, hooks))
    given = sum(len(y) for _, y in parts)
    faults = [f"takes {n} samples {way} through the model, of {given}" for way, n in samples.items() if n > given]
    if isinstance(loss, torch.Tensor) and loss.requires_grad:
        faults.append("returns the loss with its graph, which keeps what it was computed from: `.item()` gives a float")
    costs = {"bytes on top of model and data, at the peak": meter.peak - before} if given > 100 else {}
    return Outcome(value, costs, tuple(faults))


def _parts(lengths, unlabelled, like, seed):
    """Parts of the given lengths for a model, each with so many samples without a label."""
    random = torch.Generator().manual_seed(seed)
    weights = list(like.parameters())
    parts = []
    for length, without in zip(lengths, unlabelled, strict=True):
        x = torch.randn(length, weights[0].shape[1], generator=random, dtype=weights[0].dtype)
        y = torch.randint(len(weights[-1]), (length,), generator=random)
        y[torch.randperm(length, generator=random)[:without]] = -100
        parts.append((x, y))
    return parts


def _accumulate_cases():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        deep = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 5)).double()
        flat = nn.Linear(7, 3).eval()
    cases = [
        (deep, (60, 60, 50, 40, 9), (0, 0, 0, 0, 0), 1.0),
        (flat, (4, 1), (0, 0), None),
        (flat, (1,), (0,), -2.0),
        (flat, (3, 0, 5), (3, 0, 1), 1.0),
        (flat, (2, 2, 2, 2, 2, 2, 2), (1, 0, 2, 2, 0, 1, 2), float("nan")),
        (deep, (60, 60, 60, 30), (5, 60, 0, 7), None),
        (deep, (60, 60, 50, 40, 9), (10, 0, 45, 3, 8), 1.0),
    ]
    return [(model, _parts(*sizes, like=model, seed=seed), old) for seed, (model, *sizes, old) in enumerate(cases)]


accumulate = Exercise(
    accumulate,
    _accumulate_cases,
    [
        edit(
            'cross_entropy(model(x), y, reduction="sum") / num_labelled',
            "cross_entropy(model(x), y)",
            "`backward` adds to .grad, so this is the sum of the parts' means: too large by about the number of parts, "
            "as if the learning rate were. Every part must count by its share of the labelled samples.",
        ),
        edit(
            ', reduction="sum") / num_labelled',
            ") / len(parts)",
            "You divide by the number of parts: a mean of means. A sample in a short part then counts more than one in "
            "a long part. Weight each part by its labelled samples.",
        ),
        edit(
            "sum((y != -100).sum() for _, y in parts)",
            "sum(len(y) for _, y in parts)",
            "You divide by the number of all samples. Those labelled -100 add nothing to the sum and must not count in "
            "the denominator either.",
        ),
        edit(
            ', reduction="sum")',
            ") * (y != -100).sum()",
            "Right, except for a part without any label: its mean is 0/0 = nan, and the loss with it. Take the sum of "
            'the losses (reduction="sum") and divide that by the number of labelled samples in all parts.',
        ),
        edit(
            "model.zero_grad()",
            "pass",
            "What was in .grad before is still in it: call model.zero_grad() once, at the start.",
        ),
        edit(
            "loss.backward()",
            "model.zero_grad(); loss.backward()",
            "You clear .grad before every part, so only the last one is left. Clear once, before the first.",
        ),
        edit(
            "mean = 0.0",
            "parts, mean = [tuple(map(torch.cat, zip(*parts)))], 0.0",
            "Right values, but the whole batch goes through the model at once: the memory that parts are there to "
            "save. Go through them one by one.",
        ),
        edit(
            "loss.backward()\n        mean = mean + loss.item()\n    return mean",
            "mean = mean + loss\n    mean.backward()\n    return mean.item()",
            "Right values, but one backward at the end keeps the activations of all parts until then. Call backward "
            "after every part: it frees that part's activations.",
        ),
    ],
    [
        "The loss of the whole batch is a sum over samples, divided by how many are labelled. Which of the two falls "
        "into parts?",
        "First count the labelled samples of all parts: (y != -100).sum(). Then one backward for each part.",
        'cross_entropy(model(x), y, reduction="sum") / num_labelled, and backward; zero_grad once, before the loop.',
    ],
    outcome=_accumulated,
    slack=1.3,
    may_be_cheaper=True,  # half a part at a time needs less
)


# --- 2: checkpoint ----------------------------------------------------------------------------------------------------


def checkpoint(block, x):
    """block(x), of which autograd keeps the input only; the backward pass computes the rest again.

    block: an nn.Module from one tensor to one tensor; all its parameters are trained. x: its input, which may
    need a gradient or not, and stays as it is. Without torch.utils.checkpoint: write what it does.
    The gradients of x and of the parameters are those of block(x), also where the block draws random numbers of
    torch (dropout): the second run has to draw the same, and must not disturb the random numbers of the program.
    The block runs once forward and once more in the backward pass, in the mode (training or not) it is in.
    """

    class Recompute(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *parameters):
            ctx.random_state = torch.get_rng_state()
            ctx.save_for_backward(x)
            return block(x)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            x = x.detach().requires_grad_()
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                torch.set_rng_state(ctx.random_state)
                y = block(x)
            return torch.autograd.grad(y, [x, *block.parameters()], grad)

    return Recompute.apply(x, *block.parameters())


def _checkpointed(fn, shape, dropout, needs_grad, training=True, times=1):
    """Output, gradients, the next random number; what is kept between the passes; how often the block ran."""
    block = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Dropout(dropout), nn.Linear(64, 8)).train(training)
    *batch, length = shape
    x, grad = torch.randn(*batch, 8, length).mT.requires_grad_(needs_grad), torch.randn(*shape, 8)
    runs, passes, faults = [], [], []

    def watch(block, inputs, output):
        runs.append(1)
        if any(f.f_code.co_filename == torch.utils.checkpoint.__file__ for f, _ in traceback.walk_stack(None)):
            faults.append("leaves the work to torch.utils.checkpoint: write what it does")
        if output.requires_grad:
            output.register_hook(lambda grad: passes.append(1))

    block.register_forward_hook(watch)
    for p in block.parameters():
        p.grad = torch.ones_like(p)  # of another part of the batch
    with Meter(*block.parameters()) as meter:
        before, y = meter.now, x * 1
        first = y
        for _ in range(times):
            y = fn(block, y)
        if not isinstance(y, torch.Tensor):
            return Outcome(y)
        kept = meter.now - before - y.untyped_storage().nbytes()
        torch.rand(3)  # a program draws on between the passes
        y.backward(grad)
    value = {"output": y.detach(), "gradient of x": x.grad}
    value |= {f"gradient of parameter {name}, with what was there": p.grad for name, p in block.named_parameters()}
    value["next random number"] = torch.rand(())
    value["x afterwards"] = [first.detach(), first.requires_grad, first.is_leaf]
    value["whether the modules are in training mode"] = [module.training for module in block.modules()]
    costs = {"bytes kept from forward to backward, x and all": kept, "runs of the block": len(runs)}
    return Outcome(value, costs | {"backward passes through the block": len(passes)}, tuple(faults))


def _no_gradients(block, x):
    """no_grad keeps nothing, and so there is no way back. A torch.autograd.Function runs its forward without recording
    and has a backward of its own: run the block again there."""
    with torch.no_grad():
        return block(x)


checkpoint = Exercise(
    checkpoint,
    [
        ((128,), 0.0, True),
        ((64,), 0.0, False),
        ((64,), 0.5, True),
        ((3, 20), 0.5, True, False),
        ((16, 8), 0.3, False, True, 3),
        ((64,), 0.5, True, True, 2),
    ],
    [
        _no_gradients,
        edit(
            "return Recompute.apply(x, *block.parameters())",
            "return block(x)",
            "Right values, but everything inside the block is kept. Run it where autograd does not record (in the "
            "forward of a torch.autograd.Function), and keep x alone.",
        ),
        edit(
            "torch.set_rng_state(ctx.random_state)",
            "pass",
            "The second run draws another dropout mask, so these are the gradients of another function. Store "
            "torch.get_rng_state() in the forward pass and set it for the second run.",
        ),
        edit(
            ", torch.random.fork_rng(devices=[])",
            "",
            "The gradients are right, but afterwards the program draws old random numbers again. Put the state back: "
            "`with torch.random.fork_rng(devices=[]):` round the second run does.",
        ),
        edit(
            "(x, *block.parameters())",
            "(x)",
            "[x, *block.parameters()]",
            "[x]",
            "The parameters of the block get no gradient. Hand them to `apply` as well, and return their gradients: "
            "backward returns one for each argument of forward.",
        ),
        edit(
            "y = block(x)",
            "y = block(x).sum()",
            "block.parameters()], grad)",
            "block.parameters()])",
            "You differentiate the sum of the outputs. The gradient that backward receives has to go in: "
            "torch.autograd.grad(y, inputs, grad).",
        ),
        edit(
            "return torch.autograd.grad(y, [x, *block.parameters()], grad)",
            "y.backward(grad); return x.grad, *(p.grad.clone() for p in block.parameters())",
            "The parameters' gradients come twice: y.backward adds to their .grad, and autograd adds what you return. "
            "torch.autograd.grad returns gradients and touches no .grad.",
        ),
        edit(
            "y = block(x)",
            "block.eval(); y = block(x); block.train()",
            "In eval mode dropout does nothing, so the second run is another function. Leave the mode alone and set "
            "the random state of the forward pass instead.",
        ),
    ],
    [
        "Start from the lesson's `Recompute`. What differs between its two runs if the block draws random numbers?",
        "ctx.random_state = torch.get_rng_state() before the first run; torch.set_rng_state(ctx.random_state) before "
        "the second.",
        "with torch.enable_grad(), torch.random.fork_rng(devices=[]): set the state, y = block(x). Then return "
        "torch.autograd.grad(y, [x, *block.parameters()], grad), and call apply(x, *block.parameters()).",
    ],
    outcome=_checkpointed,
    slack=1.05,
)


# --- 3: the memory of a model -----------------------------------------------------------------------------------------


def training_memory(num_layers, width, vocabulary, context):
    """The parameters of a GPT, and the bytes of mixed-precision Adam for them: a pair of ints.

    Embeddings: `vocabulary` rows for tokens and `context` rows for places, each `width` numbers; the output
    layer is the token embedding once more, without a bias. After the last block comes one layer norm.
    Each of the num_layers blocks: four linear layers width -> width (query, key, value, output), one
    width -> 4 width and one back, all with a bias; and two layer norms with a weight and a bias each.
    Bytes: 16-bit weights and gradients; master weights and both moments of Adam in float32. No activations.
    """
    attention = 4 * (width * width + width)
    mlp = (width * 4 * width + 4 * width) + (4 * width * width + width)
    norm = 2 * width
    block = attention + mlp + 2 * norm
    parameters = (vocabulary + context) * width + num_layers * block + norm
    return parameters, parameters * (2 + 2 + 4 + 4 + 4)


def _memory_cases():
    draw = Random(0)
    drawn = [tuple(draw.randint(1, most) for most in (50, 5000, 60000, 5000)) for _ in range(6)]
    gpts = [(12, 768, 50257, 1024), (48, 1600, 50257, 1024), (36, 4096, 50257, 2048), (96, 12288, 50257, 2048)]
    return [(1, 8, 100, 10), *gpts, (0, 8, 100, 10), (2, 1, 3, 5), (1, 1, 1, 1), (3, 5, 7, 11), *drawn]


training_memory = Exercise(
    training_memory,
    _memory_cases,
    [
        edit(
            "2 + 2 + 4 + 4 + 4",
            "2 + 2 + 4 + 4",
            "12 bytes: 2 + 2 + 4 + 4. The master weights are missing, the float32 copy in which small steps survive.",
        ),
        edit(
            "2 + 2 + 4 + 4 + 4",
            "4 + 4 + 4 + 4 + 4",
            "20 bytes: you have weights and gradients of 4 bytes *and* master weights. The model's own weights and "
            "gradients are 16-bit numbers.",
        ),
        edit(
            "(vocabulary + context)",
            "(2 * vocabulary + context)",
            "You count the token embedding twice. The output layer is the same matrix, so it stands once in memory.",
        ),
        edit(
            "(vocabulary + context)",
            "vocabulary",
            "The embeddings of the places are missing: `context` rows of `width` numbers.",
        ),
        edit(
            "4 * (width * width + width)",
            "4 * width * width",
            "(width * 4 * width + 4 * width) + (4 * width * width + width)",
            "8 * width * width",
            "The biases of the linear layers are missing: one number for each output, 9 · width in a block.",
        ),
        edit(
            "mlp + 2 * norm",
            "mlp",
            "The layer norms of the blocks are missing: two a block, each with a weight and a bias of `width` numbers.",
        ),
        edit(
            "num_layers * block + norm",
            "num_layers * block",
            "The layer norm after the last block is missing: a weight and a bias of `width` numbers.",
        ),
    ],
    [
        "A linear layer from a to b has a · b weights and b biases. How many numbers has a block, how many the rest?",
        "A block: 4 (w² + w) for attention, 8 w² + 5 w for the two layers, 4 w for its norms. w is the width.",
        "Outside the blocks: (vocabulary + context) · w + 2 w. And 2 + 2 + 4 + 4 + 4 bytes for each of them all.",
    ],
)


# --- 4: a loss scaler -------------------------------------------------------------------------------------------------


def scaler_step(grads, scale, good_steps, growth_interval):
    """What a loss scaler makes of the gradients of one step: (gradients or None, new scale, new good_steps).

    grads: a list of float16 tensors of any shape, gradients of scale · loss; they stay as they are.
    good_steps: good steps since the scale last changed.
    If all numbers are finite: the gradients of the loss in float32, and one good step more. When good_steps
    has thus reached growth_interval (or passed it), the scale doubles and good_steps is 0 again.
    Otherwise: None (the step is skipped), half of the scale, and 0 good steps.
    """
    if not all(g.isfinite().all() for g in grads):
        return None, scale / 2, 0
    unscaled = [g.float() / scale for g in grads]
    if good_steps + 1 >= growth_interval:
        return unscaled, scale * 2, 0
    return unscaled, scale, good_steps + 1


def _scaler_cases():
    inf, nan = float("inf"), float("nan")
    small, largest = [[0.5, -3.0], [[2.0**-24]]], [[65504.0, 65504.0], [-65504.0]]
    cases = [(small, 1024.0, 0, 3), (small, 1024.0, 2, 3)]
    cases += [([[0.5, -3.0], [[inf]]], 1024.0, 1, 3), ([[0.5, 1.0], [[nan]]], 8.0, 2, 3)]
    cases += [(small, 1024.0, 3, 3), (small, 65536.0, 3, 2000), (small, 3.0, 0, 1), (small, 65536.0, 4, 5)]
    cases += [([[1.0, -inf, 2.0], [1.0]], 1.0, 2, 3), ([[nan, 1.0], [1.0]], 0.5, 0, 1), ([inf, [1.0]], 7.0, 5, 9)]
    cases += [(largest, 65536.0, 0, 2), ([[inf, -inf]], 2.0, 1, 2), ([[], 2.0, [[1.0, 2.0, 3.0]]], 4.0, 1, 7)]
    return [([spread(torch.tensor(g).half()) for g in grads], *rest) for grads, *rest in cases]


scaler_step = Exercise(
    scaler_step,
    _scaler_cases,
    [
        edit(
            "g.float() / scale",
            "(g / scale).float()",
            "You divide in float16, where the small gradients vanish again that the scale has saved: g.float() first.",
        ),
        edit(
            "g.float() / scale",
            "g.float()",
            "The gradients are still those of scale · loss. Divide by the scale.",
        ),
        edit(
            "    if good_steps + 1 >= growth_interval:\n        return unscaled",
            "    if good_steps + 1 >= growth_interval:\n        return [g / 2 for g in unscaled]",
            "The step that doubles the scale divides by the new one. Its gradients were made with the old scale: "
            "divide before you change it.",
        ),
        edit(
            "not all(g.isfinite().all() for g in grads)",
            "any(g.isnan().any() for g in grads)",
            "You look for nan. Overflow shows as inf first: isfinite() finds both.",
        ),
        edit(
            "not all(g.isfinite().all() for g in grads)",
            "any(g.isinf().any() for g in grads)",
            "You look for inf. An inf can have become nan on the way (inf − inf, inf · 0): isfinite() finds both.",
        ),
        edit(
            "scale / 2, 0",
            "scale / 2, good_steps",
            "After an overflow the counting starts again: good_steps is 0, or the scale would grow back too soon.",
        ),
        edit(
            "scale * 2, 0",
            "scale * 2, good_steps + 1",
            "When the scale has doubled, the counting starts again: good_steps is 0.",
        ),
        edit(
            "good_steps + 1 >= growth_interval",
            "good_steps >= growth_interval",
            "One step late: this good step counts too. Add it before you compare with growth_interval.",
        ),
    ],
    [
        "There are three ways out. Which of them has to be looked at first, and what does each do to the scale?",
        "all(g.isfinite().all() for g in grads) decides. If not: return None, scale / 2, 0.",
        "Unscale with g.float() / scale, add 1 to good_steps; if that reaches growth_interval: scale · 2 and 0.",
    ],
    atol=0.0,
)
