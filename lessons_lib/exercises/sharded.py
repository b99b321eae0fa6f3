"""Exercises of lesson 14: shard Adam, gather on use, clip across shards, and the bytes of a step."""

import math

import torch

from lessons_lib.exercises.cases import drawn
from lessons_lib.exercises.core import Exercise, Outcome, edit, on_ranks
from lessons_lib.memory import Meter
from lessons_lib.schedules import chunk_bounds

# --- 1: sharded_adam: every rank steps its chunk ---------------------------------------------------------------------


def sharded_adam(comm, w, g, m, v, step, lr):
    """Do one step of Adam: this rank its chunk, and all ranks end with all new weights.

    w: (P,) weights, equal on all ranks; changed in place.
    g: (P,) the gradient of the whole batch, equal on all ranks. It stays as it is.
    m, v: the first and second moments of this rank's chunk of the P numbers, and of no others; changed in place.
        Rank r has the numbers `chunk_bounds(P, comm.world_size)[r]`, a pair (start, stop).
    step: which step this is, from 1; the corrections are 1 - 0.9**step and 1 - 0.999**step.
    lr: the learning rate. epsilon is 1e-8, added to the root of the corrected v.
    Only weights travel, each number once to every other rank.
    """
    start, stop = chunk_bounds(len(w), comm.world_size)[comm.rank]
    own, gradient = w[start:stop], g[start:stop]
    m.mul_(0.9).add_(0.1 * gradient)
    v.mul_(0.999).add_(0.001 * gradient**2)
    corrected_m, corrected_v = m / (1 - 0.9**step), v / (1 - 0.999**step)
    own -= lr * corrected_m / (corrected_v.sqrt() + 1e-8)
    comm.all_gather(w, own)


def _steps_everything(comm, w, g, m, v, step, lr):
    """Right, but by all-reduce: a tensor that is zero outside of its chunk travels twice as far as the chunks
    themselves. Every rank has its new chunk: `comm.all_gather(w, own)` puts them together."""
    start, stop = chunk_bounds(len(w), comm.world_size)[comm.rank]
    m.mul_(0.9).add_(0.1 * g[start:stop])
    v.mul_(0.999).add_(0.001 * g[start:stop] ** 2)
    change = torch.zeros_like(w)
    change[start:stop] = lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    comm.all_reduce(change)
    w -= change


def _stepped(comm, fn, numel, lr, dtype, turn):
    """Two steps of one rank, and where the weights lie afterwards."""
    start, stop = chunk_bounds(numel, comm.world_size)[comm.rank]
    w, g = drawn(numel, seed=turn, dtype=dtype), drawn(numel, seed=9 + turn, dtype=dtype)
    m, v = drawn(stop - start, seed=5, dtype=dtype) * (turn > 0), drawn(stop - start, seed=6, dtype=dtype) ** 2 * turn
    if numel > 3:
        g[3] = 0.0
    tensors, step = (w, g, m, v), 1 + 3 * turn
    views = [tensor.view(-1) for tensor in tensors]
    fn(comm, w, g, m, v, step, lr)
    return dict(zip(("w", "g", "m", "v"), views, strict=True))


def _run_adam(fn, world_size, numel, lr, dtype=torch.float64):
    costs = ["bytes sent by all ranks", "bytes received by a rank"]
    return on_ranks(_stepped, fn, numel, lr, dtype, world_size=world_size, costs=costs, num_calls=2)


sharded_adam = Exercise(
    sharded_adam,
    cases=[(2, 12, 0.1), (4, 61, 0.01), (1, 7, 0.1), (3, 2, 0.1), (3, 50, 1e-3)],
    outcome=_run_adam,
    rtol=1e-9,
    atol=1e-12,
    mistakes=[
        _steps_everything,
        edit(
            "comm.all_gather(w, own)",
            "pass",
            "Each rank has stepped its own chunk, and nobody else knows: the replicas differ from now on. Gather the "
            "chunks into everybody's w.",
        ),
        edit(
            "gradient = w[start:stop], g[start:stop]",
            "gradient = w[start:stop], g[: stop - start]",
            "The chunk of the weights begins at `start`, and so must that of the gradient: `g[start:stop]`.",
        ),
        edit(
            "m / (1 - 0.9**step), v / (1 - 0.999**step)",
            "m, v",
            "Without the corrections the first step is 3.16 times too long: m and v start at 0 (lesson 03).",
        ),
        edit(
            "m.mul_(0.9).add_(0.1 * gradient)",
            "m = 0.9 * m + 0.1 * gradient",
            "`m = …` makes a new tensor, and the caller's moments stay what they were: the next step begins without "
            "memory. Change them in place.",
        ),
        edit(
            "(corrected_v.sqrt() + 1e-8)",
            "(corrected_v + 1e-8).sqrt()",
            "epsilon is added to the root, not under it: where a gradient is 0 the difference is large.",
        ),
    ],
    hints=[
        "Adam treats every number by itself. What does a rank need to step its own chunk, and what of it has it got?",
        "`start, stop = chunk_bounds(len(w), comm.world_size)[comm.rank]`; then Adam as in lesson 03 on the slices.",
        "`own = w[start:stop]` is a view: change it in place, then `comm.all_gather(w, own)`.",
    ],
)


# --- 2: gather_on_use: one layer at a time ---------------------------------------------------------------------------


def gather_on_use(comm, shards, shapes, x):
    """Return the output of a stack of layers, x -> tanh(x W.T), whose weights are sharded over the ranks.

    shards: for each layer this rank's shard of W, 1-D: of the flattened W's numbers those of
        `chunk_bounds(rows * columns, comm.world_size)[comm.rank]`. They stay as they are.
    shapes: for each layer (rows, columns) of its W.
    x: (n, columns of the first W); it stays as it is. Without layers the output is x.
    Memory: one whole W at a time. Each shard travels once to every other rank.
    """
    for shard, shape in zip(shards, shapes, strict=True):
        whole = shard.new_empty(shape)
        comm.all_gather(whole, shard)
        x = torch.tanh(x @ whole.T)
        del whole
    return x


def _all_at_once(comm, shards, shapes, x):
    """Right, and for a moment every rank holds the whole model: that is what sharding was to avoid. Gather a layer,
    use it and let it go before the next one."""
    wholes = [shard.new_empty(shape) for shard, shape in zip(shards, shapes, strict=True)]
    for whole, shard in zip(wholes, shards, strict=True):
        comm.all_gather(whole, shard)
    for whole in wholes:
        x = torch.tanh(x @ whole.T)
    return x


def _one_more(comm, shards, shapes, x):
    """Two whole layers at a time: the old one is still there when the next one is gathered. `del whole` before the end
    of the loop lets it go."""
    whole = None
    for shard, shape in zip(shards, shapes, strict=True):
        gathered = shard.new_empty(shape)
        comm.all_gather(gathered, shard)
        whole = gathered
        x = torch.tanh(x @ whole.T)
    return x


def _used(comm, fn, shapes, dtype, turn):
    shards = []
    for number, (rows, columns) in enumerate(shapes):
        start, stop = chunk_bounds(rows * columns, comm.world_size)[comm.rank]
        shards.append((0.3 * drawn(rows * columns, seed=number + 10 * turn, dtype=dtype))[start:stop].clone())
    x = drawn(3, shapes[0][1] if shapes else 4, seed=77 + turn, dtype=dtype)
    with Meter(x, *shards) as meter:
        before = meter.now
        output = fn(comm, list(shards), list(shapes), x)
    return output, meter.peak - before


def _run_use(fn, world_size, shapes, dtype=torch.float32):
    costs = ["bytes sent by all ranks", "bytes received by a rank"]
    ran = on_ranks(_used, fn, shapes, dtype, world_size=world_size, costs=costs, num_calls=2)
    peak = max(bytes_ for turns in ran.value.values() for _, bytes_ in turns)
    cost = {"bytes on top of shards and x, at the peak": peak} if world_size == 1 and shapes else {}
    return Outcome({rank: [output for output, _ in turns] for rank, turns in ran.value.items()}, ran.cost | cost)


gather_on_use = Exercise(
    gather_on_use,
    cases=[
        (3, [(5, 4), (7, 5), (2, 7)]),
        (1, [(64, 64)] * 4),  # alone, a rank's memory is its own
        (4, [(3, 3), (1, 3)], torch.float64),
        (2, []),
        (3, [(1, 2), (4, 1)]),
    ],
    outcome=_run_use,
    slack=1.1,
    may_be_cheaper=True,
    mistakes=[
        _all_at_once,
        _one_more,
        edit(
            "x @ whole.T",
            "x @ whole.T.contiguous()",
            "That is a second copy of W. `x @ whole.T` reads the one that is there.",
        ),
        edit(
            "x = torch.tanh(x @ whole.T)",
            "x = x @ whole.T",
            "The layer ends with a tanh.",
        ),
        edit(
            "comm.all_gather(whole, shard)",
            "start, stop = chunk_bounds(whole.numel(), comm.world_size)[comm.rank]\n"
            "        whole.zero_().view(-1)[start:stop] = shard\n"
            "        comm.all_reduce(whole)",
            "Right, but an all-reduce of a tensor that is mostly zero moves twice the bytes: it adds up first and then "
            "hands out. `comm.all_gather` hands out at once.",
        ),
    ],
    hints=[
        "Which collective puts the shards of all ranks one after the other? And how large is what it fills?",
        "In the loop: an empty tensor of the layer's shape, `comm.all_gather(whole, shard)`, then the layer itself.",
        "A name keeps its tensor alive until it gets another one: `del whole` at the end of each turn.",
    ],
)


# --- 3: clip_shards: one norm ----------------------------------------------------------------------------------------


def clip_shards(comm, gradients, max_norm):
    """Scale the gradient of the whole model so that its 2-norm is at most `max_norm`; return its norm before.

    gradients: this rank's pieces of it, 1-D, of one dtype, some perhaps empty, at least one; changed in place. Every
        number of the gradient lies on exactly one rank.
    max_norm: above 0. A gradient whose norm is no larger stays as it is, to the bit; also one of length 0.
    Returns the norm, a float or a tensor of no dimension, the same on every rank.
    One number per rank travels, in an all-reduce or an all-gather.
    """
    squares = gradients[0].new_zeros(())
    for gradient in gradients:
        squares += gradient.square().sum()
    comm.all_reduce(squares)
    norm = squares.sqrt()
    if norm > max_norm:
        for gradient in gradients:
            gradient *= max_norm / norm
    return norm


def _gathers(comm, gradients, max_norm):
    """Right, but all numbers travel where one per rank would do: the squares can be added up before they leave."""
    flat = torch.cat(gradients)
    sizes = torch.zeros(comm.world_size, dtype=torch.int64)
    comm.all_gather(sizes, torch.tensor([len(flat)]))
    padded = flat.new_zeros(int(sizes.max()))
    padded[: len(flat)] = flat
    everyone = flat.new_zeros(comm.world_size * len(padded))
    comm.all_gather(everyone, padded)
    norm = everyone.norm()
    if norm > max_norm:
        for gradient in gradients:
            gradient *= max_norm / norm
    return norm


def _clipped(comm, fn, sizes, scale, max_norm, dtype, turn):
    gradients = [drawn(size, seed=31 * comm.rank + k, dtype=dtype) * scale for k, size in enumerate(sizes[comm.rank])]
    gradients = [gradient * (1 + turn * comm.rank) for gradient in gradients]
    given = list(gradients)
    if max_norm is None:  # just above the norm
        max_norm = (1 + 1e-9) * clip_shards.reference(comm, gradients, math.inf).item()
    norm = fn(comm, given, max_norm)
    norm = norm.item() if isinstance(norm, torch.Tensor) and norm.dim() == 0 else norm
    is_same = len(given) == len(gradients) and all(a is b for a, b in zip(given, gradients, strict=True))
    return {"norm": norm, "gradients": gradients, "the list is as it was": is_same}


def _run_clip(fn, sizes, scale, max_norm, dtype=torch.float64):
    costs = ["bytes received by a rank"]
    return on_ranks(_clipped, fn, sizes, scale, max_norm, dtype, world_size=len(sizes), costs=costs, num_calls=2)


clip_shards = Exercise(
    clip_shards,
    cases=[
        ([[5, 3], [4, 0], [7, 1]], 1.0, 0.5),
        ([[40], [1]], 3.0, 1e-3, torch.float32),
        ([[3, 2], [4, 1]], 1e-3, 1.0),  # short enough
        ([[6, 1]], 2.0, 1.0),
        ([[0], [0, 2], [2], [3]], 0.0, 1.0),  # of length 0
        ([[4], [5]], 1.0, math.inf),
        ([[4], [5]], 1.0, None),
    ],
    outcome=_run_clip,
    rtol=1e-6,
    atol=1e-12,
    slack=2.1,  # float64 for float32
    may_be_cheaper=True,
    mistakes=[
        edit(
            "comm.all_reduce(squares)",
            "pass",
            "Each rank clips by the norm of its own pieces: the pieces are scaled by different factors, so that the "
            "direction of the gradient changes. The squares have to be added up over the ranks.",
        ),
        edit(
            "comm.all_reduce(squares)",
            'comm.all_reduce(squares, op="mean")',
            "That is the mean of the ranks' squares, and the norm is too small by the root of the number of ranks. "
            "Every number lies on one rank only: add up.",
        ),
        edit(
            "comm.all_reduce(squares)",
            "squares = squares.sqrt()\n    comm.all_reduce(squares)",
            "squares.sqrt()\n    if",
            "squares\n    if",
            "Norms do not add up, squares do: √(a² + b²) is less than a + b. Take the root after the sum over ranks.",
        ),
        edit(
            "if norm > max_norm:",
            "if norm > 0:",
            "A gradient that is short enough is made longer by that. Scale only where the norm is above the limit.",
        ),
        edit(
            "gradient *= max_norm / norm",
            "gradient *= min(1.0, max_norm / gradient.norm().item()) if gradient.norm() > 0 else 1.0",
            "That clips every piece by itself. One factor for all pieces on all ranks keeps the direction.",
        ),
        _gathers,
    ],
    hints=[
        "What does each rank have to know of the others' pieces? It is one number.",
        "The square of the norm is a sum over all numbers, so it is a sum over ranks of sums over their own numbers.",
        "Add up the squares of your own pieces, `comm.all_reduce` the sum, then take the root.",
    ],
)


# --- 4: bytes_of_a_step: what the stages move ------------------------------------------------------------------------


def bytes_of_a_step(stage, num_parameters, world_size, itemsize=4):
    """Return how many bytes a rank sends in one training step, an integer.

    stage: 0: an all-reduce of the gradient. 1: the same, then an all-gather of the new weights. 2: an all-gather of
        the weights for forward and backward, and a reduce-scatter of the gradient. 3: as 2, and the weights are
        gathered a second time, for backward.
    num_parameters: P, 0 or more. world_size: N, 1 or more. itemsize: bytes of a number.
    In a reduce-scatter or an all-gather a rank sends N - 1 chunks of ceil(P / N) numbers: the last chunk is filled
    up. An all-reduce is a reduce-scatter and then an all-gather.
    """
    num_chunks = {0: 2, 1: 3, 2: 2, 3: 3}[stage]
    chunk = -(-num_parameters // world_size)
    return num_chunks * (world_size - 1) * chunk * itemsize


bytes_of_a_step = Exercise(
    bytes_of_a_step,
    cases=[
        *[(stage, 1000, 4) for stage in range(4)],
        (3, 7, 3),
        (1, 61, 60, 2),
        (0, 5, 1),
        (2, 0, 6, 8),
        (3, 3, 5),
        (1, 10**18 + 1, 7),
    ],
    mistakes=[
        edit(
            "-(-num_parameters // world_size)",
            "num_parameters // world_size",
            "Where N does not divide P, the chunks have ceil(P / N) numbers, and the last one is filled up.",
        ),
        edit(
            "(world_size - 1)",
            "world_size",
            "A rank sends nothing to itself: N - 1 chunks leave it.",
        ),
        edit(
            "{0: 2, 1: 3, 2: 2, 3: 3}",
            "{0: 2, 1: 2, 2: 2, 3: 3}",
            "In stage 1, as it stands here, the gradient is all-reduced first: that is a reduce-scatter and an "
            "all-gather already. The weights come on top.",
        ),
        edit(
            "{0: 2, 1: 3, 2: 2, 3: 3}",
            "{0: 1, 1: 2, 2: 2, 3: 3}",
            "An all-reduce is two operations, each of N - 1 chunks: the sums have to be made and then handed out.",
        ),
        edit(
            " * itemsize",
            "",
            "That is how many numbers leave; the question is for bytes.",
        ),
    ],
    hints=[
        "First count, for each stage, how many reduce-scatters and all-gathers there are.",
        "Each of them sends N - 1 chunks. `-(-P // N)` rounds up.",
    ],
)
