"""Exercises of lesson 08: accumulation over unequal parts, recomputation, the bytes of a model, loss scaling."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lessons_lib.exercises.core import Exercise, Outcome, edit
from lessons_lib.memory import Meter

# --- 1: accumulate ----------------------------------------------------------------------------------------------------


def accumulate(model, parts):
    """Leave in `.grad` of every parameter the gradient of the mean loss over a batch that comes in parts.

    model: maps x (n, features) to logits (n, classes); its `.grad` may hold something old: replace it.
    parts: a list of (x, y), of different lengths. y: classes (n,), int64; -100 says that a sample has
        no label, and such samples do not count. (cross_entropy leaves -100 out by itself.)
    The loss is the cross entropy, averaged over the labelled samples of all parts. Returns it, a float.
    Memory: the activations of one part at a time.
    """
    num_labelled = sum((y != -100).sum() for _, y in parts)
    model.zero_grad()
    mean = 0.0
    for x, y in parts:
        loss = cross_entropy(model(x), y, reduction="sum") / num_labelled
        loss.backward()
        mean += loss.item()
    return mean


def _one_backward(model, parts):
    """Right values, but one backward at the end keeps the activations of all parts until then. Call backward after
    every part: it frees that part's activations."""
    model.zero_grad()
    num_labelled = sum((y != -100).sum() for _, y in parts)
    loss = sum(cross_entropy(model(x), y, reduction="sum") for x, y in parts) / num_labelled
    loss.backward()
    return loss.item()


def _put_together(model, parts):
    """Right values, but the whole batch goes through the model at once: the memory that parts are there to save. Go
    through them one by one."""
    model.zero_grad()
    x, y = (torch.cat(each) for each in zip(*parts, strict=True))
    loss = cross_entropy(model(x), y)
    loss.backward()
    return loss.item()


def _accumulated(fn, model, parts):
    """What `fn` returns, the gradients that it leaves, and the bytes on top of model and data at the peak."""
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with Meter(*model.parameters(), *(p.grad for p in model.parameters()), *sum(parts, ())) as meter:
        before = meter.now
        loss = fn(model, parts)
    gradients = {"returned loss": loss} | {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return Outcome(gradients, {"bytes on top of model and data, at the peak": meter.peak - before})


def _parts(lengths, unlabelled, seed):
    """Parts of the given lengths, each with so many samples without a label."""
    random = torch.Generator().manual_seed(seed)
    parts = []
    for length, without in zip(lengths, unlabelled, strict=True):
        x = torch.randn(length, 20, generator=random, dtype=torch.float64)
        y = torch.randint(5, (length,), generator=random)
        y[:without] = -100
        parts.append((x, y))
    return parts


def _accumulate_cases():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 5)).double()
    lengths = [((60, 60, 50, 40, 9), (0, 0, 0, 0, 0)), ((60, 60, 50, 40, 9), (10, 0, 45, 3, 8))]
    lengths += [((60, 60, 60, 30), (5, 60, 0, 7))]
    return [(model, _parts(*each, seed=seed)) for seed, each in enumerate(lengths)]


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
            ', reduction="sum") / num_labelled',
            ") * len(y) / sum(len(each) for _, each in parts)",
            "You weight each part's mean by its number of samples. Those labelled -100 are not in the mean: the weight "
            "is the number of labelled ones.",
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
            " / num_labelled",
            "",
            "The sums are right, the division is missing: divide by the number of labelled samples in all parts.",
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
        _one_backward,
        _put_together,
    ],
    [
        "The loss of the whole batch is a sum over samples, divided by how many are labelled. Only the sum falls into "
        "parts.",
        "First count the labelled samples of all parts: (y != -100).sum(). Then one backward for each part.",
        'cross_entropy(model(x), y, reduction="sum") / num_labelled, and backward; zero_grad once, before the loop.',
    ],
    outcome=_accumulated,
    slack=1.3,
)


# --- 2: checkpoint ----------------------------------------------------------------------------------------------------


def checkpoint(block, x):
    """block(x), of which autograd keeps the input only; the backward pass computes the rest again.

    block: an nn.Module from one tensor to one tensor; all its parameters are trained. x: its input, which may
    need a gradient or not. Without torch.utils.checkpoint, please.
    The gradients of x and of the parameters are those of block(x), also where the block draws random numbers
    (dropout): the second run has to draw the same, and must not disturb the random numbers of the program.
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


def _recompute(block, x, backward):
    """A checkpoint whose backward is `backward(x, random state of the forward pass, gradient)`."""

    class Recompute(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *parameters):
            ctx.random_state = torch.get_rng_state()
            ctx.save_for_backward(x)
            return block(x)

        @staticmethod
        def backward(ctx, grad):
            x = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                return backward(x, ctx.random_state, grad)

    return Recompute.apply(x, *block.parameters())


def _again(block, x, state):
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        return block(x)


def _not_at_all(block, x):
    """Right values, but everything inside the block is kept. Run it where autograd does not record (in the forward of a
    torch.autograd.Function), and keep x alone."""
    return block(x)


def _without_gradients(block, x):
    """no_grad keeps nothing, and so there is no way back. A torch.autograd.Function runs its forward without recording
    and has a backward of its own: run the block again there."""
    with torch.no_grad():
        return block(x)


def _another_mask(block, x):
    """The second run draws another dropout mask, so these are the gradients of another function. Store
    torch.get_rng_state() in the forward pass and set it for the second run."""

    def backward(x, state, grad):
        with torch.random.fork_rng(devices=[]):
            return torch.autograd.grad(block(x), [x, *block.parameters()], grad)

    return _recompute(block, x, backward)


def _seed_left_behind(block, x):
    """The gradients are right, but afterwards the program draws old random numbers again. Put the state back: `with
    torch.random.fork_rng(devices=[]):` round the second run does."""

    def backward(x, state, grad):
        torch.set_rng_state(state)
        return torch.autograd.grad(block(x), [x, *block.parameters()], grad)

    return _recompute(block, x, backward)


def _input_alone(block, x):
    """The parameters of the block get no gradient. Hand them to `apply` as well, and return their gradients: backward
    returns one for each argument of forward."""

    def backward(x, state, grad):
        return *torch.autograd.grad(_again(block, x, state), [x], grad), *[None for _ in block.parameters()]

    return _recompute(block, x, backward)


def _ones_for_grad(block, x):
    """You differentiate the sum of the outputs. The gradient that backward receives has to go in:
    torch.autograd.grad(y, inputs, grad)."""

    def backward(x, state, grad):
        return torch.autograd.grad(_again(block, x, state).sum(), [x, *block.parameters()])

    return _recompute(block, x, backward)


def _a_run_for_each(block, x):
    """The block runs three times. One call of torch.autograd.grad gives the gradients of x and of all parameters:
    torch.autograd.grad(y, [x, *block.parameters()], grad)."""

    def backward(x, state, grad):
        of_x = torch.autograd.grad(_again(block, x, state), [x], grad)
        return *of_x, *torch.autograd.grad(_again(block, x, state), list(block.parameters()), grad)

    return _recompute(block, x, backward)


def _counted_twice(block, x):
    """The parameters' gradients come twice: y.backward adds to their .grad, and autograd adds what you return.
    torch.autograd.grad returns gradients and touches no .grad."""

    def backward(x, state, grad):
        _again(block, x, state).backward(grad)  # adds to the parameters' .grad
        return x.grad, *[p.grad.clone() for p in block.parameters()]

    return _recompute(block, x, backward)


def _mask_off(block, x):
    """In eval mode dropout does nothing, so the second run is another function. Leave the mode alone and set the random
    state of the forward pass instead."""

    def backward(x, state, grad):
        block.eval()
        found = torch.autograd.grad(block(x), [x, *block.parameters()], grad)
        block.train()
        return found

    return _recompute(block, x, backward)


def _checkpointed(fn, batch, dropout, needs_grad):
    """Output, gradients, the next random number; what is kept between the passes; how often the block ran."""
    block = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Dropout(dropout), nn.Linear(64, 8)).double()
    x = torch.randn(batch, 8, dtype=torch.float64, requires_grad=needs_grad)
    grad, runs = torch.randn(batch, 8, dtype=torch.float64), []
    block.register_forward_hook(lambda *_: runs.append(1))
    with Meter(*block.parameters()) as meter:
        before = meter.now
        x = x + 0 if needs_grad else x.clone()
        if needs_grad:
            x.retain_grad()
        y = fn(block, x)
        if not isinstance(y, torch.Tensor):
            return Outcome(y)
        kept = meter.now - before - y.untyped_storage().nbytes()
        torch.rand(3)  # a program draws on between the passes
        y.backward(grad)
    value = {"output": y.detach(), "gradient of x": x.grad}
    value |= {f"gradient of parameter {name}": p.grad for name, p in block.named_parameters()}
    value["next random number"] = torch.rand(())
    cost = {"bytes kept from forward to backward, x and all": kept, "runs of the block": len(runs)}
    return Outcome(value, cost)


checkpoint = Exercise(
    checkpoint,
    [(128, 0.0, True), (64, 0.0, False), (64, 0.5, True)],
    [
        _not_at_all,
        _without_gradients,
        _another_mask,
        _seed_left_behind,
        _input_alone,
        _ones_for_grad,
        _a_run_for_each,
        _counted_twice,
        _mask_off,
    ],
    [
        "Start from the lesson's `Recompute`. What differs between its two runs if the block draws random numbers?",
        "ctx.random_state = torch.get_rng_state() before the first run; torch.set_rng_state(ctx.random_state) before "
        "the second.",
        "with torch.enable_grad(), torch.random.fork_rng(devices=[]): set the state, y = block(x). Then return "
        "torch.autograd.grad(y, [x, *block.parameters()], grad), and call apply(x, *block.parameters()).",
    ],
    outcome=_checkpointed,
    may_be_cheaper=True,  # autograd may stop the second run as soon as it has what it needs
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


training_memory = Exercise(
    training_memory,
    [(1, 8, 100, 10), (12, 768, 50257, 1024), (48, 1600, 50257, 1024), (36, 4096, 50257, 2048)],
    [
        edit(
            "2 + 2 + 4 + 4 + 4",
            "2 + 2 + 4 + 4",
            "12 bytes: 2 + 2 + 4 + 4. The master weights are missing, the float32 copy in which small steps survive.",
        ),
        edit("2 + 2 + 4 + 4 + 4", "2 + 4 + 4 + 4", "14 bytes: 2 + 4 + 4 + 4. The gradients are missing: 2 bytes each."),
        edit(
            "2 + 2 + 4 + 4 + 4",
            "2 + 4 + 4 + 4 + 4",
            "18 bytes: you have gradients of 4 bytes. Here they are 16-bit numbers, as the weights of the model are.",
        ),
        edit(
            "2 + 2 + 4 + 4 + 4",
            "4 + 4 + 4 + 4 + 4",
            "20 bytes: you have weights and gradients of 4 bytes *and* master weights. The model's own weights and "
            "gradients are 16-bit numbers.",
        ),
        edit(
            "2 + 2 + 4 + 4 + 4",
            "2 + 2 + 4",
            "8 bytes: 2 + 2 + 4. Adam keeps two moments for every parameter and you need both.",
        ),
        edit(
            "2 + 2 + 4 + 4 + 4",
            "2",
            "2 bytes are enough to use the model. Training needs gradients, master weights, moments.",
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
        edit(
            "parameters * (2 + 2 + 4 + 4 + 4)",
            "parameters * 16 / 2**30",
            "The count is right. The second number is asked for in bytes, not in units of 2³⁰.",
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

    grads: a list of float16 tensors, gradients of scale · loss.
    good_steps: good steps since the scale last changed.
    If all numbers are finite: the gradients of the loss in float32, and one good step more. When good_steps
    has thus reached growth_interval (or passed it), the scale doubles and good_steps is 0 again.
    Otherwise: None (the step is skipped), half of the scale, and 0 good steps.
    """
    if not all(g.isfinite().all() for g in grads):
        return None, scale / 2, 0
    unscaled = [g.float() / scale for g in grads]
    good_steps += 1
    if good_steps >= growth_interval:
        return unscaled, scale * 2, 0
    return unscaled, scale, good_steps


def _unscales_late(grads, scale, good_steps, growth_interval):
    """The step that doubles the scale divides by the new one. Its gradients were made with the old scale: divide before
    you change it."""
    found, new_scale, good_steps = scaler_step.reference(grads, scale, good_steps, growth_interval)
    return found and [g.float() / new_scale for g in grads], new_scale, good_steps


def _scaler_cases():
    small = [torch.tensor([0.5, -3.0]), torch.tensor([[2.0**-24]])]
    infinite = [torch.tensor([0.5, -3.0]), torch.tensor([[float("inf")]])]
    undefined = [torch.tensor([0.5, 1.0]), torch.tensor([[float("nan")]])]
    cases = [(small, 1024.0, 0, 3), (small, 1024.0, 2, 3), (infinite, 1024.0, 1, 3), (undefined, 8.0, 2, 3)]
    cases += [(small, 1024.0, 3, 3), (small, 65536.0, 3, 2000)]
    return [([g.half() for g in grads], *rest) for grads, *rest in cases]


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
            "g.float() / scale",
            "g.float() * scale",
            "You multiply by the scale a second time. The loss was multiplied, so the gradients are divided.",
        ),
        _unscales_late,
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
            "not all(g.isfinite().all() for g in grads)",
            "not grads[0].isfinite().all()",
            "You look at the first tensor only. One infinite number anywhere spoils the step.",
        ),
        edit(
            "scale / 2, 0",
            "scale, 0",
            "The step is skipped, but the scale stays, and the next step overflows as well. Halve it.",
        ),
        edit(
            "scale / 2, 0",
            "scale / 2, good_steps",
            "After an overflow the counting starts again: good_steps is 0, or the scale would grow back too soon.",
        ),
        edit(
            "None, scale / 2",
            "[g.float() / scale for g in grads], scale / 2",
            "You hand out gradients that are not finite; one step with them makes every weight nan. Return None.",
        ),
        edit(
            "unscaled, scale * 2, 0",
            "unscaled, scale, good_steps",
            "The scale never grows. When good_steps reaches growth_interval it doubles, and the counting starts at 0.",
        ),
        edit(
            "scale * 2, 0",
            "scale * 2, good_steps",
            "When the scale has doubled, the counting starts again: good_steps is 0.",
        ),
        edit(
            "good_steps >= growth_interval",
            "good_steps > growth_interval",
            "One step late: this good step counts too. Add it before you compare with growth_interval.",
        ),
    ],
    [
        "Three ways out: not finite; finite and time to grow; finite.",
        "all(g.isfinite().all() for g in grads) decides. If not: return None, scale / 2, 0.",
        "Unscale with g.float() / scale, add 1 to good_steps; if that reaches growth_interval: scale · 2 and 0.",
    ],
    atol=0.0,
)
