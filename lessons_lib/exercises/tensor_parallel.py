"""Exercises of lesson 15: a layer split by outputs, one split by inputs, heads, and the loss of a split vocabulary."""

import torch
from torch.nn import functional as F

from lessons_lib.exercises.cases import drawn, spread
from lessons_lib.exercises.core import Exercise, edit, on_ranks
from lessons_lib.schedules.schedule import chunk_bounds

BYTES = ["bytes sent by all ranks", "bytes received by a rank", "messages sent by all ranks"]


def own_part(whole, comm, dim):
    """This rank's part of a tensor along `dim`."""
    start, stop = chunk_bounds(whole.shape[dim], comm.world_size)[comm.rank]
    return whole.narrow(dim, start, stop - start)


# --- column: outputs are split ---------------------------------------------------------------------------------------


def column(comm, x, weight, gradient):
    """One pass, forward and backward, through a linear layer whose outputs are split: (y, input_gradient).

    x: (B, I), the same on all ranks.
    weight: (O_k, I), this rank's rows of the whole weight; other ranks may have more or fewer rows, or none.
    gradient: (B, O_k), of the loss by this rank's outputs. No argument changes.
    y: (B, O_k), x times the transpose of weight: this rank's outputs.
    input_gradient: (B, I), of the loss by x, to which the outputs of all ranks belong; the same on every rank.
    Communication: the bytes and messages of one all-reduce of (B, I).
    """
    y = x @ weight.T
    input_gradient = gradient @ weight
    comm.all_reduce(input_gradient)
    return y, input_gradient


def _gathers_the_outputs(comm, x, weight, gradient):
    """Nobody has asked for the other ranks' outputs: `y` is this rank's own part, and only the gradient is needed by
    all."""
    y, input_gradient = x @ weight.T, gradient @ weight
    comm.all_reduce(input_gradient)
    sizes = torch.zeros(comm.world_size, dtype=torch.int64)
    sizes[comm.rank] = len(weight)
    comm.all_reduce(sizes)
    whole = y.new_zeros(len(x), int(sizes.sum()))
    start = int(sizes[: comm.rank].sum())
    whole[:, start : start + len(weight)] = y
    comm.all_reduce(whole)
    return whole, input_gradient


def _run_column(comm, fn, batch, inputs, outputs, dtype, turn):
    x, weight = drawn(batch, inputs, seed=turn, dtype=dtype), drawn(outputs, inputs, seed=9 + turn, dtype=dtype)
    gradient = drawn(batch, outputs, seed=17 + turn, dtype=dtype)
    y, input_gradient = fn(comm, spread(x), own_part(weight, comm, 0), own_part(gradient, comm, 1))
    return {"y": y, "input_gradient": input_gradient}


column = Exercise(
    column,
    cases=[
        (2, 3, 5, 8, torch.float64),
        (3, 4, 6, 7, torch.float32),
        (1, 2, 3, 4, torch.float64),
        (4, 5, 3, 2, torch.float64),  # two ranks have no outputs
    ],
    outcome=lambda fn, world_size, *case: on_ranks(
        _run_column, fn, *case, world_size=world_size, costs=BYTES, num_calls=2
    ),
    slack=1.1,
    mistakes=[
        edit(
            "comm.all_reduce(input_gradient)",
            "pass",
            "`gradient @ weight` knows only what came back through this rank's outputs. x went to all outputs, so what "
            "comes back through them adds up: over the ranks too.",
        ),
        edit(
            "comm.all_reduce(input_gradient)",
            'comm.all_reduce(input_gradient, op="mean")',
            "Each rank sends back another part of the gradient, so the parts are added. A mean is N times too small.",
        ),
        edit(
            "gradient @ weight",
            "gradient @ weight + 0 * x.sum()",
            "comm.all_reduce(input_gradient)",
            "comm.all_reduce(input_gradient)\n    comm.all_reduce(y)",
            "The ranks' outputs are different columns of one result: there is nothing to add up forward.",
        ),
        edit(
            "comm.all_reduce(input_gradient)",
            "comm.all_reduce(input_gradient)\n    comm.all_reduce(input_gradient)",
            "After the first all-reduce every rank has the sum already; the second one adds N equal sums.",
        ),
        edit(
            "comm.all_reduce(input_gradient)",
            "comm.broadcast(input_gradient)",
            "A broadcast gives all ranks what rank 0 has: what came back through rank 0's outputs alone.",
        ),
        _gathers_the_outputs,
    ],
    hints=[
        "Forward needs nobody: each output needs all of x, which is here, and one row of the weight.",
        "Backward: x has gone to the outputs of all ranks. What does one rank's `gradient @ weight` leave out?",
        "`input_gradient = gradient @ weight`, and then one all-reduce of it, with the default sum.",
    ],
)


# --- row: inputs are split -------------------------------------------------------------------------------------------


def row(comm, x, weight, bias):
    """The whole output of a linear layer whose inputs are split, on every rank.

    x: (..., I_k), this rank's inputs, with any dimensions before the last; other ranks may have more, fewer or none.
    weight: (O, I_k), this rank's columns of the whole weight.
    bias: (O,), the same on all ranks. No argument changes.
    Returns (..., O): what one process with the whole x and weight would give. It shares no memory with an argument.
    Communication: the bytes and messages of one all-reduce of the output.
    """
    y = x @ weight.T
    comm.all_reduce(y)
    return y + bias


def _gathers_the_inputs(comm, x, weight, bias):
    """Right, and every rank has gathered all inputs and the whole weight, which were split because they are large. Let
    each rank multiply what it has: the products are to be added."""
    sizes = torch.zeros(comm.world_size, dtype=torch.int64)
    sizes[comm.rank] = x.shape[-1]
    comm.all_reduce(sizes)
    start, total = int(sizes[: comm.rank].sum()), int(sizes.sum())
    inputs, columns = x.new_zeros(*x.shape[:-1], total), weight.new_zeros(len(weight), total)
    inputs[..., start : start + x.shape[-1]] = x
    columns[:, start : start + x.shape[-1]] = weight
    comm.all_reduce(inputs)
    comm.all_reduce(columns)
    return inputs @ columns.T + bias


def _run_row(comm, fn, shape, outputs, dtype, turn):
    x, weight = drawn(*shape, seed=turn, dtype=dtype), drawn(outputs, shape[-1], seed=9 + turn, dtype=dtype)
    return fn(comm, own_part(x, comm, x.dim() - 1), own_part(weight, comm, 1), drawn(outputs, seed=5, dtype=dtype))


row = Exercise(
    row,
    cases=[
        (2, (3, 8), 5, torch.float64),
        (3, (2, 3, 7), 4, torch.float32),
        (1, (2, 4), 3, torch.float64),
        (4, (5, 2), 6, torch.float64),  # two ranks have no inputs
        (3, (9,), 4, torch.float64),
    ],
    outcome=lambda fn, world_size, *case: on_ranks(
        _run_row, fn, *case, world_size=world_size, costs=BYTES, num_calls=2
    ),
    slack=1.1,
    mistakes=[
        edit(
            "x @ weight.T",
            "x @ weight.T + bias",
            "return y + bias",
            "return y",
            "Every rank has added the bias before the sum, so it is there N times. It belongs behind the all-reduce, "
            "once.",
        ),
        edit(
            "comm.all_reduce(y)",
            "pass",
            "Each rank has the contribution of its own inputs alone. What is the whole sum over inputs made of?",
        ),
        edit(
            "comm.all_reduce(y)",
            'comm.all_reduce(y, op="mean")',
            "The inputs are split, so the products are parts of one sum. A mean is N times too small.",
        ),
        edit(
            "return y + bias",
            "return y + bias if comm.rank == 0 else y",
            "Rank 0 alone has the bias now, and the ranks go on with different numbers. After the all-reduce every "
            "rank adds it to its own copy of the sum.",
        ),
        edit(
            "return y + bias",
            "return y + bias / comm.world_size",
            "A share of the bias on each rank would be right before the sum. After it nobody adds up any more.",
        ),
        _gathers_the_inputs,
    ],
    hints=[
        "Write y as a sum over all inputs, and cut that sum into the ranks' parts.",
        "Which collective gives all ranks the sum of the parts? And how often may the bias be in it?",
        "`y = x @ weight.T`, an all-reduce of y, and `y + bias` after it.",
    ],
)


# --- heads: attention is split ---------------------------------------------------------------------------------------


def heads(comm, x, q, k, v, out, num_heads):
    """Attention, not causal, of which each rank computes its own heads; the whole result on every rank.

    x: (T, D), the same on all ranks.
    q, k, v, out: (D, D), the whole weights of linear layers without bias, as torch stores them (outputs, inputs).
        Head h is in rows h d to (h + 1) d - 1 of q, k and v, with d = D / num_heads, and in the same columns of out.
        Rank r computes the heads r H / N to (r + 1) H / N - 1 and no others: their weights may be nan. No argument
        changes.
    num_heads: H, which divides D.
    Returns (T, D). Raises ValueError on every rank if H is no multiple of the number of ranks.
    Communication: the bytes and messages of one all-reduce of (T, D).
    """
    if num_heads % comm.world_size:
        raise ValueError(f"num_heads={num_heads}: a multiple of {comm.world_size} is needed")
    size, own_heads = len(q) // comm.world_size, num_heads // comm.world_size
    own = slice(comm.rank * size, (comm.rank + 1) * size)
    parts = [(x @ weight[own].T).unflatten(1, (own_heads, -1)).transpose(0, 1) for weight in (q, k, v)]
    answers = F.scaled_dot_product_attention(*parts).transpose(0, 1).flatten(1)
    y = answers @ out[:, own].T
    comm.all_reduce(y)
    return y


def _run_heads(comm, fn, length, width, num_heads, dtype, others, turn):
    x = drawn(length, width, seed=turn, dtype=dtype)
    q, k, v, out = drawn(4, width, width, seed=3 + turn, dtype=dtype)
    start, stop = comm.rank * width // comm.world_size, (comm.rank + 1) * width // comm.world_size
    for rows in (q, k, v, out.T):
        rows[:start] *= others
        rows[stop:] *= others
    try:
        return fn(comm, x, q, k, v, out, num_heads)
    except ValueError as error:
        return f"{type(error).__name__}"


heads = Exercise(
    heads,
    cases=[
        (2, 5, 8, 4, torch.float64, 1),
        (3, 4, 12, 6, torch.float32, 1),
        (2, 3, 6, 3, torch.float64, 1),  # heads that do not divide
        (4, 3, 8, 2, torch.float64, 1),  # fewer heads than ranks
        (1, 3, 4, 2, torch.float64, 1),
        (4, 2, 8, 4, torch.float64, 1),
        (2, 3, 8, 4, torch.float64, torch.nan),  # what other heads need
    ],
    outcome=lambda fn, world_size, *case: on_ranks(
        _run_heads, fn, *case, world_size=world_size, costs=BYTES, num_calls=2
    ),
    slack=1.1,
    mistakes=[
        edit(
            "num_heads // comm.world_size",
            "num_heads",
            "This rank's rows hold H / N heads. Cut into H pieces, each head would be N times too narrow: pieces of "
            "heads would look at one another.",
        ),
        edit(
            "slice(comm.rank * size, (comm.rank + 1) * size)",
            "slice(comm.rank, None, comm.world_size)",
            "Every N-th row tears heads apart. A head is d rows one after the other.",
        ),
        edit(
            "out[:, own].T",
            "out[own]",
            "torch stores weights as (outputs, inputs). The heads are the *inputs* of `out`: its columns.",
        ),
        edit(
            "comm.all_reduce(y)",
            "pass",
            "Each rank has what its own heads add to the result. The others' part is missing.",
        ),
        edit(
            "comm.all_reduce(y)",
            'comm.all_reduce(y, op="mean")',
            "The heads' contributions through `out` add up. A mean is N times too small.",
        ),
        edit(
            "if num_heads % comm.world_size:",
            "if num_heads < comm.world_size:",
            "3 heads on 2 ranks are as impossible here as 1 on 2: a head would be torn apart. Ask for the remainder.",
        ),
    ],
    hints=[
        "Heads do not talk to each other before `out`: that layer adds them up.",
        "Rank r's rows of q, k and v are r D/N to (r + 1) D/N - 1, cut into H / N heads; `out` is cut by columns.",
        "`(x @ q[own].T).unflatten(1, (H // N, -1)).transpose(0, 1)` is (heads, T, d), which "
        "`scaled_dot_product_attention` takes. Back again, times `out[:, own].T`, and one all-reduce.",
    ],
)


# --- vocabulary_loss: cross-entropy over a split vocabulary ----------------------------------------------------------


def vocabulary_loss(comm, logits, target, vocabulary):
    """The mean cross-entropy of logits that are split by tokens, and its gradient: (loss, gradient).

    logits: (n, V_k), n ≥ 1, those of tokens start to stop - 1, V_k ≥ 1, where start, stop =
        chunk_bounds(vocabulary, comm.world_size)[comm.rank]. They may be as large as 10,000 or as small as -10,000, and
        the result is finite all the same. No argument changes.
    target: (n,), whole numbers from 0 to vocabulary - 1, the same on all ranks.
    loss: a tensor () of the dtype of logits, the same on every rank: the mean over the n targets.
    gradient: (n, V_k), of the loss by this rank's logits.
    Communication: the bytes of all-reduces of three numbers for each target in the dtype of logits, and a tenth.
    """
    start, stop = chunk_bounds(vocabulary, comm.world_size)[comm.rank]
    largest = logits.amax(1)
    comm.all_reduce(largest, op="max")
    shifted = logits - largest[:, None]
    rows = torch.arange(len(target))[(target >= start) & (target < stop)]
    columns = target[rows] - start
    found = torch.zeros_like(largest)
    found[rows] = shifted[rows, columns]
    sums = torch.stack([shifted.exp().sum(1), found])
    comm.all_reduce(sums)
    gradient = shifted.exp() / sums[0][:, None]
    gradient[rows, columns] -= 1
    return (sums[0].log() - sums[1]).mean(), gradient / len(target)


def _gathers_the_logits(comm, logits, target, vocabulary):
    """Right, and all V logits of each target have travelled and lie on every rank. The largest logit, the sum of
    exponentials and the target's logit are enough: three numbers."""
    start, stop = chunk_bounds(vocabulary, comm.world_size)[comm.rank]
    whole = logits.new_zeros(len(target), vocabulary)
    whole[:, start:stop] = logits
    comm.all_reduce(whole)
    gradient = whole.softmax(1)
    gradient[torch.arange(len(target)), target] -= 1
    return F.cross_entropy(whole, target), (gradient / len(target))[:, start:stop]


def _run_loss(comm, fn, num_targets, vocabulary, scale, middle, dtype, turn):
    logits = middle + scale * drawn(num_targets, vocabulary, seed=turn, dtype=dtype)
    target = torch.arange(num_targets) * (3 + turn) % vocabulary
    loss, gradient = fn(comm, own_part(logits, comm, 1), target, vocabulary)
    return {"loss": loss, "gradient": gradient}


vocabulary_loss = Exercise(
    vocabulary_loss,
    cases=[
        (2, 6, 7, 1.0, 0.0, torch.float64),
        (3, 5, 11, 1.0, 0.0, torch.float32),
        (2, 4, 9, 3000.0, 0.0, torch.float64),
        (2, 3, 8, 1.0, -1e4, torch.float64),
        (1, 3, 5, 1.0, 0.0, torch.float64),
        (4, 8, 50, 1.0, 0.0, torch.float64),
    ],
    outcome=lambda fn, world_size, *case: on_ranks(
        _run_loss, fn, *case, world_size=world_size, costs=BYTES[:1], num_calls=2
    ),
    slack=1.1,
    may_be_cheaper=True,
    mistakes=[
        edit(
            "logits - largest[:, None]",
            "logits - 0 * largest[:, None]",
            "exp(3000) is infinite. Subtract the largest logit first: it cancels in the loss.",
        ),
        edit(
            'comm.all_reduce(largest, op="max")',
            "other = largest.clone()\n    comm.all_reduce(other)",
            "Each rank has subtracted its own largest logit, so the ranks add up exponentials on different scales. The "
            "largest of all ranks is needed.",
        ),
        edit(
            "target[rows] - start",
            "target[rows] % logits.shape[1]",
            "Token v is column v - start of this rank's logits.",
        ),
        edit(
            "comm.all_reduce(sums)",
            "comm.all_reduce(sums[0])",
            "Only the rank that owns the target knows its logit: the others have put 0 there. Add it up too.",
        ),
        edit(
            "gradient / len(target)",
            "gradient",
            "The loss is the mean over the n targets, so its gradient is divided by n.",
        ),
        _gathers_the_logits,
    ],
    hints=[
        "The loss is ln Σ exp(l_v − m) + m − l_y. Which of these numbers need other ranks?",
        "Three numbers per target: m is a maximum over ranks, the sum of exponentials and the target's logit are sums, "
        "where a rank that does not own the target gives 0.",
        "The gradient by l_v is (softmax_v − [v = y]) / n, and after the sums each rank has all that its own v need.",
    ],
)
