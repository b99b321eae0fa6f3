"""Exercises of lesson 18: the groups of a mesh, axes on wires, bytes along each axis, one norm over all of them."""

from itertools import permutations
from math import prod

import torch

from lessons_lib.comm import Mesh
from lessons_lib.exercises.cases import drawn
from lessons_lib.exercises.compare import as_number
from lessons_lib.exercises.core import Exercise, Outcome, edit, on_ranks
from lessons_lib.schedules import Links

# --- mesh_groups: who talks to whom ----------------------------------------------------------------------------------


def mesh_groups(sizes, axes):
    """Return the groups along `axes`: a list of lists of ranks that differ in their coordinates along these axes alone.

    sizes: {axis: how many ranks along it}, in the order of the mesh: ranks are numbered from 0 with the last
        axis fastest.
    axes: a tuple of one or more of them, in any order. Within a group ranks are listed by their coordinates
        along `axes`, of which the last one is fastest. Groups come in the order of their smallest rank.
    """
    names = list(sizes)
    grid = torch.arange(prod(sizes.values())).reshape(tuple(sizes.values()))
    others = [axis for axis in names if axis not in axes]
    grid = grid.permute([names.index(axis) for axis in (*others, *axes)])
    return grid.reshape(-1, prod(sizes[axis] for axis in axes)).tolist()


def _as_in_the_mesh(sizes, axes):
    """Your groups have the right ranks, listed in the order of the mesh. What counts is the order in `axes`: of the
    last one named there the coordinate changes fastest."""
    return [sorted(group) for group in mesh_groups.reference(sizes, axes)]


def _groups_across(sizes, axes):
    """You have put ranks together that are equal along `axes`. A group along tp holds ranks that are equal along all
    *other* axes."""
    return mesh_groups.reference(sizes, tuple(axis for axis in sizes if axis not in axes))


mesh_groups = Exercise(
    mesh_groups,
    [
        ({"dp": 2, "tp": 3}, ("tp",)),
        ({"dp": 2, "tp": 3}, ("dp",)),
        ({"dp": 2, "pp": 3, "tp": 2}, ("pp",)),
        ({"dp": 2, "pp": 3, "tp": 2}, ("dp", "tp")),
        ({"dp": 2, "pp": 3, "tp": 2}, ("tp", "pp")),
        ({"pp": 4, "dp": 1, "cp": 2}, ("dp",)),
        ({"a": 2, "b": 3, "c": 2, "d": 2}, ("d", "a", "c")),
        ({"tp": 1}, ("tp",)),
        ({"x": 2, "y": 2}, ("y", "x")),
    ],
    [
        _as_in_the_mesh,
        _groups_across,
        edit(
            "(*others, *axes)",
            "(*axes, *others)",
            "The ranks of a row of your table differ along the wrong axes: what changes within a group has to come "
            "last before you cut the table into rows.",
        ),
        edit(
            "reshape(tuple(sizes.values()))",
            "reshape(tuple(sizes.values())[::-1])",
            "[names.index(axis)",
            "[len(names) - 1 - names.index(axis)",
            "You number the ranks with the first axis fastest. In a mesh the last axis is fastest: ranks 0 and 1 are "
            "neighbours along it.",
        ),
        edit(
            "grid = grid.permute([names.index(axis) for axis in (*others, *axes)])",
            "",
            "You cut the ranks into runs of neighbours. That is right for the last axis alone: along any other, the "
            "ranks of a group lie apart.",
        ),
        edit(
            "prod(sizes[axis] for axis in axes)",
            "sizes[axes[-1]]",
            "A group along several axes holds as many ranks as their sizes multiplied.",
        ),
    ],
    [
        "Write the ranks 0, 1, 2, … into an array of the shape of the mesh. Which entries form a group along its last "
        "axis?",
        "Move the named axes to the end (`permute`), the others before them in the order of the mesh.",
        "Then a group is a row: `grid.reshape(-1, group_size).tolist()`.",
    ],
)


# --- place_axes: which axis on which wire ----------------------------------------------------------------------------


def place_axes(sizes, traffic, node_size, fast, slow):
    """Return the axes in an order for a mesh, as a tuple, in which a step spends the least time on its wires.

    sizes: {axis: how many ranks along it}. Ranks are numbered with the last axis of the order fastest; each
        node has `node_size` ranks that follow each other, the last node perhaps fewer.
    traffic: {axis: (messages, bytes)} that a rank sends along it in a step. They are sent one after the other,
        each message in its latency plus its bytes over the bandwidth.
    fast, slow: the `Links` (latency_s, bandwidth_Bps) inside a node, and between nodes. An axis whose groups
        each lie inside one node is fast; all that is sent along any other is slow.
    Of several best orders any will do.
    """

    def time_s(order):
        total_s, span = 0.0, 1
        for axis in reversed(order):
            span *= sizes[axis]  # so many ranks that follow each other does a group along this axis reach over
            links = fast if node_size % span == 0 else slow
            num_messages, size_bytes = traffic[axis]
            total_s += num_messages * links.latency_s + size_bytes / links.bandwidth_Bps
        return total_s

    return min(permutations(sizes), key=time_s)


def _most_bytes_inside(sizes, traffic, node_size, fast, slow):
    """You sort by bytes. Messages cost a latency each, however small they are, and an axis that does not fit into a
    node is slow wherever you put it: it must not take the place of one that fits. Try all orders."""
    return tuple(sorted(sizes, key=lambda axis: traffic[axis][1]))


def _most_messages_inside(sizes, traffic, node_size, fast, slow):
    """You sort by the number of messages. Bytes take time as well, and an axis that does not fit into a node is slow
    wherever you put it. Compare the times of whole orders."""
    return tuple(sorted(sizes, key=lambda axis: traffic[axis][0]))


def _longest_inside(sizes, traffic, node_size, fast, slow):
    """You sort the axes by the time that each would take on slow links. An axis that does not fit into a node, or
    leaves no room for two others that together save more, should not come last: compare whole orders."""
    cost_s = {axis: n * slow.latency_s + size / slow.bandwidth_Bps for axis, (n, size) in traffic.items()}
    return tuple(sorted(sizes, key=cost_s.get))


def _step_time(fn, sizes, traffic, node_size, fast, slow):
    """How long a step takes in the order that `fn` gives, by the groups themselves."""
    order = fn(sizes, traffic, node_size, fast, slow)
    if not isinstance(order, tuple) or sorted(map(str, order)) != sorted(sizes):
        return Outcome(order, faults=[f"gives {order!r}: a tuple of all axes of {list(sizes)} is needed"])
    total_s = 0.0
    for axis, (num_messages, size_bytes) in traffic.items():
        groups = mesh_groups.reference({name: sizes[name] for name in order}, (axis,))
        nodes = [{rank // node_size for rank in group} for group in groups]
        links = fast if all(len(each) == 1 for each in nodes) else slow
        total_s += num_messages * links.latency_s + size_bytes / links.bandwidth_Bps
    return Outcome({"time of a step on the wires, in seconds": total_s})


def _placements():
    fast, slow = Links(10e-6, 100e9), Links(50e-6, 5e9)
    traffic = {"dp": (14, 3e9), "pp": (32, 2e8), "tp": (512, 1e10)}
    late = {"dp": (2, 4e9), "pp": (900, 1e6), "tp": (300, 1e8)}
    many = {"dp": (4, 5e9), "ep": (64, 9e8), "pp": (32, 2e8), "cp": (96, 4e9), "tp": (256, 2e9)}
    wide = {"a": (10, 6e9), "b": (10, 4e9), "c": (10, 4e9)}
    return [
        ({"dp": 2, "pp": 2, "tp": 2}, traffic, 2, fast, slow),
        ({"tp": 2, "pp": 2, "dp": 2}, traffic, 4, fast, slow),
        ({"dp": 2, "pp": 2, "tp": 2}, late, 2, Links(1e-6, 100e9), Links(5e-3, 90e9)),  # latency decides
        ({"dp": 2, "pp": 2, "tp": 2}, late, 2, Links(4e-6, 100e9), Links(5e-6, 1e9)),  # bandwidth decides
        ({"dp": 2, "pp": 2, "tp": 8}, traffic, 4, fast, slow),  # tp fits into no node
        ({"a": 4, "b": 2, "c": 2}, wide, 4, fast, slow),  # two smaller axes together save more than the largest
        ({"a": 3, "b": 2, "c": 2}, {"a": (9, 4e9), "b": (9, 2e9), "c": (9, 1e9)}, 4, fast, slow),  # 3 do not divide 4
        ({"tp": 3, "dp": 2}, {"tp": (9, 1e9), "dp": (9, 3e9)}, 6, fast, slow),  # all in one node
        ({"a": 2, "b": 3}, {"a": (9, 1e9), "b": (9, 3e9)}, 8, fast, slow),
        ({"a": 2, "b": 3}, {"a": (9, 1e9), "b": (9, 3e9)}, 5, fast, slow),  # nodes of five and of one
        ({"dp": 2, "ep": 2, "pp": 4, "cp": 2, "tp": 4}, many, 8, fast, slow),
        ({"dp": 4, "pp": 1, "tp": 2}, {"dp": (6, 8e9), "pp": (0, 0), "tp": (99, 2e9)}, 4, fast, slow),
        ({"dp": 2, "pp": 2, "tp": 2}, traffic, 2, slow, fast),  # wires that are faster between nodes
        ({"tp": 4}, {"tp": (5, 1e9)}, 2, fast, slow),
    ]


place_axes = Exercise(
    place_axes,
    _placements,
    [
        _most_bytes_inside,
        _most_messages_inside,
        _longest_inside,
        edit(
            "min(permutations",
            "max(permutations",
            "That is the slowest order there is.",
        ),
        edit(
            "for axis in reversed(order):",
            "for axis in order:",
            "You take the first axis as the one whose ranks are neighbours. In a mesh that is the last one.",
        ),
        edit(
            "span *= sizes[axis]",
            "span = sizes[axis]",
            "An axis of 2 ranks is not inside a node of 2 wherever it stands: its ranks are neighbours only if it is "
            "the last axis. How far apart they lie is the product of the sizes behind it.",
        ),
        edit(
            "node_size % span == 0",
            "span <= node_size",
            "Groups of 3 do not fit into nodes of 4: ranks 3, 4 and 5 lie on two nodes. Each group has to lie inside "
            "one node, and for that its reach must divide the size of a node.",
        ),
    ],
    [
        "How far apart are two neighbours along an axis? Along the last one 1 rank, along the one before it as many as "
        "the last axis has.",
        "With that you can say of each axis of an order whether it is fast, and so how long a step takes.",
        "There are at most a few hundred orders: `min(itertools.permutations(sizes), key=time_s)`.",
    ],
    outcome=_step_time,
    rtol=1e-9,
    atol=0.0,
)


# --- bytes_per_axis: what a step sends -------------------------------------------------------------------------------


def bytes_per_axis(dp, pp, tp, num_layers, width, rows, context, itemsize):
    """Return {"dp": …, "pp": …, "tp": …}: the most bytes that a rank sends along each axis in one step.

    The step of a GPT whose blocks have 12 width² weights, of which each tp rank has an equal part; all
    else is left out. Each pp rank has num_layers / pp blocks, a whole number. All-reduces go round a ring.
    rows: sequences per step of the ranks that have one coordinate along dp; each has `context` positions of
        `width` numbers. How many micro-batches they are cut into changes nothing.
    itemsize: bytes of each number: of a weight's gradient, of an activation and of its gradient.
    Along tp a block takes 4 all-reduces of its activations: 2 forward, 2 backward. Along dp gradients are
    averaged once. A sum over one rank sends nothing.
    """
    activations = rows * context * width * itemsize
    own_blocks = num_layers / pp
    gradients = 12 * width**2 * own_blocks / tp * itemsize
    return {
        "dp": 2 * (dp - 1) / dp * gradients,
        "pp": min(pp - 1, 2) * activations,
        "tp": 2 * (tp - 1) / tp * 4 * own_blocks * activations,
    }


def _numbers(fn, *case):
    """The three amounts; whole numbers and fractions will both do."""
    value = fn(*case)
    return {axis: as_number(size) for axis, size in value.items()} if isinstance(value, dict) else value


bytes_per_axis = Exercise(
    bytes_per_axis,
    [
        (2, 4, 8, 96, 12288, 1, 2048, 2),
        (4, 1, 1, 6, 16, 8, 16, 8),
        (1, 2, 1, 6, 16, 8, 16, 8),
        (1, 3, 1, 6, 16, 8, 16, 4),
        (1, 1, 4, 6, 16, 8, 16, 8),
        (2, 2, 2, 8, 64, 6, 32, 4),
        (3, 4, 2, 8, 64, 6, 32, 2),
        (5, 1, 3, 7, 48, 3, 11, 4),
        (1, 1, 1, 3, 32, 2, 8, 8),
    ],
    [
        edit(
            "own_blocks / tp * itemsize",
            "own_blocks * itemsize",
            "Along dp a rank averages the gradients that it has, and of each matrix it has one part in tp.",
        ),
        edit(
            "own_blocks = num_layers / pp",
            "own_blocks = num_layers",
            "A rank computes with the blocks of its own stage: num_layers / pp of them.",
        ),
        edit(
            "min(pp - 1, 2)",
            "(pp > 1)",
            "You count activations alone. A rank in the middle sends activations on and gradients back; the first and "
            "the last one send one of the two, so pp=2 and pp=3 differ.",
        ),
        edit(
            "min(pp - 1, 2)",
            "2",
            "The first stage has nobody to send a gradient to, and the last one nobody to send activations to: only a "
            "rank between two others sends both. With one stage nothing travels.",
        ),
        edit(
            "4 * own_blocks",
            "own_blocks",
            "A block takes four all-reduces: after attention and after the MLP, forward and backward.",
        ),
        edit(
            "2 * (dp - 1) / dp",
            "(dp - 1) / dp",
            "2 * (tp - 1) / tp",
            "(tp - 1) / tp",
            "An all-reduce round a ring is a reduce-scatter and an all-gather: 2 (N − 1) / N times the size.",
        ),
        edit(
            "rows * context * width * itemsize",
            "rows * context * width * itemsize / tp",
            "Between the two matrices of a pair a rank holds a part; what it adds up with the others, and what it "
            "hands on to the next stage, is whole: rows x context x width.",
        ),
    ],
    [
        "Three sizes are enough: the activations of a step, the weights that one rank has, and how often an all-reduce "
        "round a ring sends its size (lesson 11).",
        "Along dp: the gradients of num_layers / pp blocks, each cut into tp parts. Along tp: 4 all-reduces a block. "
        "Along pp: how many neighbours does a rank have?",
        "2 (dp − 1) / dp · 12 width² · num_layers / (pp · tp) · itemsize; min(pp − 1, 2) times the activations; "
        "2 (tp − 1) / tp · 4 · num_layers / pp times the activations.",
    ],
    outcome=_numbers,
    rtol=1e-9,
    atol=1e-6,
)


# --- clip_over_mesh: one norm ----------------------------------------------------------------------------------------


def clip_over_mesh(mesh, gradients, max_norm):
    """Scale gradients in place so that the norm of the whole model's is at most max_norm; return it as it was.

    mesh: a `Mesh`: mesh.comm is the communicator of all ranks, mesh.sizes is {axis: how many ranks}.
    gradients: this rank's, a list of (tensor, axes), perhaps empty. Along the named axes ranks hold other
        numbers (parts of a matrix, other layers) or none, along all other axes the same. Each number of the
        model counts once. If the norm is at most max_norm, no bit changes.
    The norm is a float, the same on every rank. Squares and sums are of float64, as float32 would overflow.
    No more travels than one all-reduce of one number.
    """
    total = torch.zeros((), dtype=torch.float64)
    for gradient, axes in gradients:
        copies = prod(size for axis, size in mesh.sizes.items() if axis not in axes)
        total += gradient.double().square().sum() / copies
    mesh.comm.all_reduce(total)
    norm = total.sqrt().item()
    if norm > max_norm:
        for gradient, _ in gradients:
            gradient.mul_(max_norm / norm)
    return norm


def _held(mesh, dtype, turn):
    """A rank's gradients: parts of unequal sizes, other layers, copies, one of the last stage alone; or none at all."""
    stage, num_stages, held = mesh.coordinates.get("pp", 0), mesh.sizes.get("pp", 1), []
    everywhere = ("pp",) if num_stages == 3 else ()  # then no layer lies on two stages, and that in the middle is empty
    for seed, numel, cut in ((1, 7, ("pp", "tp")), (2, 5, ("pp",)), (3, 6, ("tp",)), (4, 2, ()), (5, 3, ("pp", "ep"))):
        axes = tuple(axis for axis in dict.fromkeys((*cut, *everywhere)) if axis in mesh.sizes)
        number = sum(10**k * mesh.coordinates[axis] for k, axis in enumerate(axes))
        held.append((drawn(numel + 2 * number % 5, seed=100 * seed + number + 7 * turn, dtype=dtype), axes))
    if num_stages > 1 and stage == num_stages - 1:
        held.append((torch.full((2, 2), 3.0, dtype=dtype), ("pp",)))
    return [] if everywhere and stage == 1 else held


def _clipped(comm, fn, sizes, dtype, scale, max_norm, turn):
    """What `fn` gives and leaves, with what it sent alone."""
    mesh = Mesh(comm, **sizes)
    held = _held(mesh, dtype, turn)
    for gradient, _ in held:
        gradient.mul_(scale)
    given = [gradient for gradient, _ in held]
    if max_norm is None:  # just above the norm
        max_norm = (1 + 1e-9) * clip_over_mesh.reference(mesh, held, torch.inf) / scale
    before = comm.ledger.messages_sent, comm.ledger.bytes_sent
    norm = fn(mesh, held, max_norm * scale)
    sent = comm.ledger.messages_sent - before[0], comm.ledger.bytes_sent - before[1]
    return {"norm": as_number(norm), "gradients": given}, sent


_COSTS = "messages", "bytes"


def _run_clip(fn, sizes, dtype, scale, max_norm):
    ran = on_ranks(_clipped, fn, sizes, dtype, scale, max_norm, world_size=prod(sizes.values()), costs=(), num_calls=2)
    sent = [sent for turns in ran.value.values() for _, sent in turns]
    cost = {f"{name} sent by all ranks in 2 calls": sum(one[k] for one in sent) for k, name in enumerate(_COSTS)}
    return Outcome({rank: [value for value, _ in turns] for rank, turns in ran.value.items()}, cost)


clip_over_mesh = Exercise(
    clip_over_mesh,
    [
        ({"dp": 2, "tp": 2}, torch.float64, 1.0, 1.5),
        ({"dp": 2, "pp": 2, "tp": 2}, torch.float32, 1.0, 2.0),
        ({"tp": 1}, torch.float32, 1.0, 100.0),
        ({"dp": 3}, torch.float64, 1.0, 100.0),
        ({"pp": 3, "tp": 2}, torch.float64, 1.0, 0.5),
        ({"ep": 2, "pp": 2}, torch.float32, 1e25, 2.0),
        ({"dp": 2}, torch.float64, 0.0, 1.0),
        ({"tp": 2}, torch.float64, 1.0, None),
    ],
    [
        edit(
            " / copies",
            "",
            "A bias that all ranks hold is counted once per rank. Along the axes that are not named there are copies: "
            "divide a square by how many.",
        ),
        edit(
            "axis not in axes",
            "axis in axes",
            "You divide by the number of parts. A part lies on fewer ranks: divide by the number of *copies*, the "
            "product of the sizes of the axes that are not named.",
        ),
        edit(
            "mesh.comm.all_reduce(total)",
            "",
            "That is the norm of one rank's numbers. Each rank then scales by another factor, and copies of a weight "
            "drift apart. Add the squares over all ranks.",
        ),
        edit(
            "total += gradient.double().square().sum() / copies",
            "total += gradient.double().norm() / copies",
            "norm = total.sqrt().item()",
            "norm = total.item()",
            "Norms do not add up: squares do. Add Σ g², and take one root at the end.",
        ),
        edit(
            "if norm > max_norm:",
            "if norm > 0:",
            "A gradient that is short enough has to stay as it is: you lengthen it.",
        ),
        edit(
            "mesh.comm.all_reduce(total)",
            'mesh.comm.all_reduce(total, op="mean")',
            "The mean over ranks is too small: each number has been divided by its copies already, so the rest is a "
            "sum.",
        ),
        edit(
            "gradient.double()",
            "gradient",
            "The square of 1e25 is no float32: it is infinite. Make it float64 before you square.",
        ),
    ],
    [
        "On how many ranks does each number of a gradient lie? That follows from the axes that are *not* named.",
        "Divide the sum of squares of each gradient by the number of its copies, and add over all ranks of the mesh.",
        "`copies = prod(size for axis, size in mesh.sizes.items() if axis not in axes)`; then one "
        "`mesh.comm.all_reduce` of a float64 scalar, a root, and `mul_` where the norm is above max_norm.",
    ],
    outcome=_run_clip,
    rtol=1e-6,
    atol=0.0,
    may_be_cheaper=True,
)
