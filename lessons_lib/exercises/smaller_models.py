"""Exercises of lesson 24: a quantiser, error feedback, units that are left out, and gradients of low rank."""

import torch

from lessons_lib.exercises.cases import drawn, spread
from lessons_lib.exercises.core import Exercise, edit, on_ranks

# --- int8_rows: a scale for each output -------------------------------------------------------------------------------


def int8_rows(weight):
    """Return (values, scales): whole numbers and a scale for each row; values · scales[:, None] is about `weight`.

    weight: float tensor (out, in), in ≥ 1, all finite; it must stay as it is.
    values: int8 (out, in), from -127 to 127: weight / scale, rounded to the nearest (ties as torch.round does).
    scales: (out,), above 0, of the dtype of `weight`: what 1 stands for in each row, so that the number of largest
        magnitude in the row becomes 127 or -127. A row of zeros has the scale 1.
    """
    largest = weight.abs().amax(dim=1)
    scales = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    values = (weight / scales[:, None]).round().to(torch.int8)
    return values, scales


int8_rows = Exercise(
    int8_rows,
    [
        (torch.tensor([[1.0, -2.0, 0.5], [100.0, 50.0, -25.0]]),),
        (drawn(7, 12),),
        (drawn(7, 12, seed=5) * 3,),  # the shape of the case before, with other scales
        (drawn(3, 1, seed=1),),
        (torch.tensor([[0.0, 0.0], [0.0, -3.0], [1e-3, 2e-3]]),),  # a row of zeros, one large number below 0
        (
            spread(drawn(6, 7, seed=2, dtype=torch.float64))
            * torch.tensor([[1e-20], [1.0], [1e20], [3.0], [0.0], [7.0]]),
        ),
        (torch.zeros(0, 4),),
        (torch.arange(-127.0, 128.0).repeat(2, 1) * torch.tensor([[0.5], [3.0]]),),  # each whole number once
        (torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]),),  # ties
    ],
    [
        edit(
            "weight.abs().amax(dim=1)",
            "weight.abs().amax().expand(len(weight))",
            "You have one scale for all rows. A single large row then takes the digits of all the others: each row has "
            "its own.",
        ),
        edit(
            "weight.abs().amax(dim=1)",
            "weight.amax(dim=1)",
            "The largest number of a row may be below 0: its magnitude counts.",
        ),
        edit(
            "weight.abs().amax(dim=1)",
            "weight.abs().amax(dim=0)",
            "You take the largest of each column. A row is one output.",
        ),
        edit(
            "torch.where(largest > 0, largest / 127, torch.ones_like(largest))",
            "largest / 127",
            "A row of zeros gives a scale of 0, and 0 / 0 is not a number. Let its scale be 1.",
        ),
        edit(
            ".round().to(torch.int8)",
            ".to(torch.int8)",
            "A conversion to int8 cuts off what stands behind the point. Round first: that halves the largest error.",
        ),
        edit(
            "largest / 127",
            "largest / 128",
            "127 is the largest number of 8 bits. With steps of a 128th the largest weight would become 128, and wrap "
            "round to -128.",
        ),
    ],
    [
        "What should the largest weight of a row become, and what is one step worth then?",
        "scale = (largest magnitude of the row) / 127. (out, in) by (out,) needs a dimension more: `scales[:, None]`.",
        "`torch.where(largest > 0, largest / 127, torch.ones_like(largest))` gives a row of zeros the scale 1.",
    ],
)


# --- send_largest: error feedback ------------------------------------------------------------------------------------


def send_largest(gradient, left, k):
    """Return (sent, left): what this step sends of a gradient, and what is left for the next one.

    gradient: float tensor of any shape. left: what the step before has left, of the same shape. Both must stay as they
        are.
    k: how many numbers are sent, from 0 to as many as there are: those of `gradient` + `left` with the largest
        magnitudes, no two of which are alike.
    sent: of the same shape, with 0 where nothing is sent. left: what is not sent, 0 where something is.
    """
    whole = gradient + left
    places = whole.abs().flatten().topk(k).indices
    flat = torch.zeros(whole.numel(), dtype=whole.dtype)
    flat[places] = whole.flatten()[places]
    sent = flat.view(whole.shape)
    return sent, whole - sent


def _steps(fn, shape, k, num_steps, dtype, size=1.0):
    """Several steps, each of which starts from what the answer has left; the first with something left already."""
    left, seen = drawn(*shape, seed=77, dtype=dtype) * size, []
    for step in range(num_steps):
        gradient = drawn(*reversed(shape), seed=step, dtype=dtype) * size
        given = fn(gradient.permute(*reversed(range(len(shape)))), left, k)
        seen.append(given)
        left = given[1]
    return seen


send_largest = Exercise(
    send_largest,
    [
        ((6,), 2, 1, torch.float64),
        ((6,), 2, 3, torch.float64),
        ((3, 4), 1, 4, torch.float32),
        ((2, 2, 3), 5, 2, torch.float64),
        ((5,), 0, 2, torch.float32),
        ((5,), 5, 2, torch.float64),
        ((1,), 1, 2, torch.float32),
        ((0,), 0, 1, torch.float32),
        ((4, 3), 12, 2, torch.float32),
        ((30, 40), 500, 1, torch.float32),  # many that are nearly alike
        ((3, 5), 4, 2, torch.float32, 1e-30),
        ((3, 5), 4, 2, torch.float64, 1e200),
    ],
    [
        edit(
            "whole = gradient + left",
            "whole = gradient + 0 * left",
            "What was left of the step before is gone. Add it to the gradient before you choose.",
        ),
        edit(
            "return sent, whole - sent",
            "return sent, gradient - sent",
            "What is left is of the sum, of which you have sent a part, not of this step's gradient.",
        ),
        edit(
            "whole.abs().flatten()",
            "whole.flatten()",
            "You send the largest numbers. One far below 0 is large too: it is the magnitude that counts.",
        ),
        edit(
            "places = whole.abs().flatten()",
            "places = gradient.abs().flatten()",
            "You choose by this step's gradient alone. A number that has waited for long must have its turn: choose by "
            "the sum.",
        ),
        edit(
            "whole.abs().flatten()",
            "(-whole.abs()).flatten()",
            "You send the smallest numbers.",
        ),
        edit(
            "return sent, whole - sent",
            "return sent, whole",
            "What has been sent is not left: else it would be sent again in the next step.",
        ),
    ],
    [
        "First add up: gradient + left. From here on only the sum counts.",
        "`whole.abs().flatten().topk(k).indices` are the places of the k largest magnitudes.",
        "Fill zeros at these places with the numbers of the sum; what is left is the sum less what is sent.",
    ],
    outcome=_steps,
)


# --- keep_units: structured pruning ----------------------------------------------------------------------------------


def keep_units(w1, b1, w2, num_kept):
    """Return (w1, b1, w2) of the network x → w2 · relu(w1 · x + b1) with fewer hidden units.

    w1: (units, in), b1: (units,), w2: (out, units): float tensors, which must stay as they are.
    num_kept: how many units stay, at least 1. Unit i matters by norm(w1[i] and b1[i] together) · norm(w2[:, i]), where
        a norm is the square root of the sum of squares; those that matter most stay, in the order that they have. No
        two matter alike.
    """
    entering = (w1.square().sum(dim=1) + b1.square()).sqrt()
    leaving = w2.square().sum(dim=0).sqrt()
    kept = (entering * leaving).topk(num_kept).indices.sort().values
    return w1[kept], b1[kept], w2[:, kept]


def _net(units, num_in, num_out, num_kept, seed, dtype=torch.float64):
    factors = (
        drawn(units, seed=seed + 9, dtype=dtype).exp() ** 2
    )  # a unit that is large on one side and small on the other
    w1, b1 = drawn(units, num_in, seed=seed, dtype=dtype), drawn(units, seed=seed + 1, dtype=dtype)
    w2 = drawn(num_out, units, seed=seed + 2, dtype=dtype)
    return spread(w1 * factors[:, None]), b1 * factors, spread(w2 / factors), num_kept


def _large_biases():
    w1, b1, w2, num_kept = _net(8, 3, 2, 4, seed=30)
    return w1 / 10, b1 * torch.arange(1.0, 9.0, dtype=b1.dtype), w2, num_kept


keep_units = Exercise(
    keep_units,
    lambda: [
        _net(4, 3, 2, 2, seed=0),
        _net(12, 5, 7, 5, seed=3),
        _net(12, 5, 7, 5, seed=33),  # the shapes of the case before, with other units
        _net(7, 7, 7, 3, seed=6),  # square: a row taken for a column fits
        _net(9, 1, 1, 4, seed=12),
        _net(6, 4, 3, 6, seed=15),
        _net(5, 4, 3, 1, seed=18, dtype=torch.float32),
        _net(1, 2, 2, 1, seed=21),
        _net(16, 3, 10, 8, seed=24, dtype=torch.float32),
        _large_biases(),
    ],
    [
        edit(
            "(entering * leaving).topk",
            "entering.topk",
            "You look at what goes in alone. A unit may have large weights in front and none behind: it does nothing.",
        ),
        edit(
            "(entering * leaving).topk",
            "leaving.topk",
            "You look at what goes out alone. A unit may have large weights behind and none in front.",
        ),
        edit(
            "(w1.square().sum(dim=1) + b1.square()).sqrt()",
            "w1.square().sum(dim=1).sqrt()",
            "A unit's bias goes in as well: it may be all that makes the unit fire.",
        ),
        edit(
            ".topk(num_kept).indices.sort().values",
            ".topk(num_kept).indices",
            "The right units stay, but in another order. Sort their numbers.",
        ),
        edit(
            "return w1[kept], b1[kept], w2[:, kept]",
            "return w1[kept], b1[kept], w2",
            "A unit that is gone has no column in w2 either: the shapes no longer fit.",
        ),
        edit(
            "(entering * leaving).topk",
            "(entering + leaving).topk",
            "Add up the norms, and a unit that is scaled up in front and down behind, which changes nothing, seems to "
            "matter more. With ReLU it is the product that stays.",
        ),
    ],
    [
        "Unit i is row i of w1, number i of b1 and column i of w2. If one of the two sides is 0, what does it do?",
        "`(w1.square().sum(dim=1) + b1.square()).sqrt()` is what goes in; for w2 sum over dim=0. Multiply.",
        "`.topk(num_kept).indices.sort().values` are the units that stay. w2 needs `[:, kept]`.",
    ],
)


# --- thin_mean: PowerSGD ---------------------------------------------------------------------------------------------


def thin_mean(comm, gradient, q):
    """Return about the mean of `gradient` over all ranks, a (n, m) tensor, having sent two thin matrices.

    comm: the communicator; comm.all_reduce(x) adds up x over all ranks, in place, and comm.all_reduce(x, op="mean")
        averages. gradient: this rank's own, (n, m). q: (m, r), the same on all ranks, with r at most n and m. Both are
        float64 and must stay as they are.
    With M, the mean of all gradients: P = M q, made orthonormal by torch.linalg.qr(P).Q; what is returned is
        P (Pᵀ M), the same on every rank. M q is the mean of all gradient @ q, so that two all-reduces are enough, of
        thin matrices: (n, r), then (r, m) or (m, r). Bytes and messages are counted.
    """
    p = gradient @ q
    comm.all_reduce(p)
    p = torch.linalg.qr(p).Q
    back = p.T @ gradient
    comm.all_reduce(back, op="mean")
    return p @ back


def _thin(comm, fn, n, m, r, rank, turn):
    seed = 10 * turn + comm.rank
    gradient = spread(drawn(n, m, seed=seed, dtype=torch.float64))
    if rank is not None:  # all gradients are made of the same few columns and rows
        columns, rows = drawn(n, rank, seed=1, dtype=torch.float64), drawn(rank, m, seed=2, dtype=torch.float64)
        gradient = columns @ rows * (comm.rank + 1)
    if comm.rank == 1:
        gradient = gradient * 3
    return fn(comm, gradient, drawn(m, r, seed=99 + turn, dtype=torch.float64))


def _thin_on_ranks(fn, world_size, n, m, r, rank=None):
    return on_ranks(_thin, fn, n, m, r, rank, world_size=world_size, num_calls=2)


thin_mean = Exercise(
    thin_mean,
    [
        (2, 12, 8, 2),
        (4, 12, 8, 1),
        (3, 7, 11, 3),
        (1, 5, 6, 2),
        (6, 12, 18, 2),
        (2, 4, 4, 4),
        (2, 1, 9, 1),
        (2, 8, 5, 2, 1),
        (3, 6, 6, 2, 0),
    ],
    [
        edit(
            """    p = torch.linalg.qr(p).Q
""",
            """    p = p / p.norm()
""",
            "P Pᵀ leaves a matrix alone only if P's columns are orthonormal: torch.linalg.qr(P).Q.",
        ),
        edit(
            """    comm.all_reduce(p)
    p = torch.linalg.qr(p).Q
""",
            """    p = torch.linalg.qr(p).Q
    comm.all_reduce(p)
""",
            "You make P orthonormal on each rank and then add up: a sum of orthonormal matrices is not orthonormal. "
            "Add up first.",
        ),
        edit(
            """    comm.all_reduce(p)
    p = torch""",
            """    p = torch""",
            "Each rank has its own P here, so that their products cannot be added up. All ranks need the P of the sum.",
        ),
        edit(
            """    comm.all_reduce(back, op="mean")
""",
            """    comm.all_reduce(back)
""",
            "That is the sum over ranks: the mean is asked for.",
        ),
        edit(
            """    comm.all_reduce(back, op="mean")
    return p @ back""",
            """    result = p @ back
    comm.all_reduce(result, op="mean")
    return result""",
            "The values are right, and the whole matrix travels: average the thin one and multiply then.",
        ),
        edit(
            """    comm.all_reduce(back, op="mean")
""",
            """""",
            "P is everybody's now, but Pᵀ M is of this rank's gradient alone: average it too.",
        ),
    ],
    [
        "M q is the mean of all gradient @ q, and these are thin. For qr a sum does as well as a mean.",
        "All-reduce gradient @ q; P = torch.linalg.qr(…).Q; then Pᵀ @ gradient is thin too.",
        'All-reduce P.T @ gradient with op="mean", and multiply P with it, without a further message.',
    ],
    outcome=_thin_on_ranks,
    rtol=1e-8,
    atol=1e-9,
)
