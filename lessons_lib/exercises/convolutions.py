"""Lesson 05: the size of an output, patches as columns, what an output sees, and max-pooling backwards."""

import itertools
import random

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lessons_lib.exercises.cases import drawn, shuffled, spread
from lessons_lib.exercises.core import Exercise, edit


def output_size(n, k, stride, padding, dilation):
    """How many places a window has along one side of a picture: the size of the output.

    n: pixels along that side. k: weights of the kernel along it. stride: pixels between two places.
    padding: zeros added at both ends. dilation: pixels between neighbouring weights of the kernel;
    1 is the usual dense kernel. All are ints, and the window fits at least once. Returns an int.
    """
    extent = dilation * (k - 1) + 1
    return (n + 2 * padding - extent) // stride + 1


def _size_cases():
    """Even and odd kernels, strides beyond the kernel, windows that fit once, and a side of 1."""
    settings = itertools.product((1, 4, 5, 8, 28, 31), (1, 2, 3, 4, 5), (1, 2, 3, 5), (0, 1, 2, 3), (1, 2, 3))
    fitting = [case for case in settings if case[0] + 2 * case[3] > case[4] * (case[1] - 1)]
    return [(28, 3, 1, 0, 1), (28, 4, 2, 1, 1), (5, 5, 3, 0, 1), (2, 1, 3, 0, 1), *shuffled(fitting)[:50]]


output_size = Exercise(
    output_size,
    _size_cases,
    [
        edit(
            "(n + 2 * padding - extent) // stride",
            "-((extent - n - 2 * padding) // stride)",
            "You round up. A last window that hangs over the edge is not laid down: round down with `//`. (Pooling "
            "layers of torch round up when asked to, with ceil_mode=True.)",
        ),
        edit("2 * padding", "padding", "The zeros are added at both ends: the side grows by 2 · padding."),
        edit(
            "// stride + 1",
            "// stride",
            "One too few: you have counted the moves. The place where the window starts counts as well.",
        ),
        edit(
            "extent) // stride + 1",
            "extent + 1) // stride",
            "The + 1 stands outside the division: it is the first place, and no stride shortens that. Inside, it comes "
            "out right for stride 1 only.",
        ),
        edit(
            "dilation * (k - 1) + 1",
            "k",
            "You leave out the dilation. With pixels between its weights the window covers more than k pixels.",
        ),
        edit(
            "dilation * (k - 1) + 1",
            "dilation * k",
            "A dilated kernel has k weights but k − 1 gaps: it covers dilation · (k − 1) + 1 pixels, not dilation · k.",
        ),
        edit(" // stride", "", "That is the number of places for stride 1. A stride of s uses every s-th of them."),
        edit("//", "/", "`/` gives a float, and fractions of a place. Divide with `//`."),
    ],
    [
        "How many pixels does the window cover? How many are left for it to move over?",
        "The window covers dilation · (k − 1) + 1 of n + 2 · padding pixels.",
        "What is left, divided by the stride and rounded down, is the number of moves; the places are one more.",
    ],
)


def im2col(x, k, stride, padding):
    """The patch under every place of a k × k window, as the columns of a matrix.

    x: (N, C, H, W), which stays as it is. stride, padding: the same for both directions.
    Returns (N, C·k·k, L), x's numbers as they are, also inf: a row for every weight of a kernel (C, k, k),
    in the order of its `flatten()`; a column for each of the L places, from left to right, then from top
    to bottom.
    Use few operations of torch, not one for each place, and not F.unfold, which is this function.
    """
    x = F.pad(x, [padding] * 4)
    windows = x.unfold(2, k, stride).unfold(3, k, stride)  # (N, C, H', W', k, k): a view, nothing is copied
    return windows.permute(0, 1, 4, 5, 2, 3).flatten(1, 3).flatten(2)  # the order is (N, C, m, n, row, column)


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.im2col.default:
            raise ValueError("F.unfold is the function that you are writing")
        self.count += 1
        return func(*args, **(kwargs or {}))


def _counted(fn, x, k, stride, padding):
    with _Operations() as operations:
        columns = fn(x, k, stride, padding)
    enough = 20 + 6 * k * k  # a few for each weight of the kernel are welcome
    return {"columns": columns, "operations": "few" if operations.count <= enough else "one for each place, or more"}


def _slice_by_slice(x, k, stride, padding):
    """The values are right, with a slice for every place, as in the lesson. Go through the k·k weights instead: weight
    (m, n) meets every stride-th pixel from (m, n) on, and that is one slice for all places."""
    x = F.pad(x, [padding] * 4)
    down, right = (range(0, n - k + 1, stride) for n in x.shape[2:])
    return torch.stack([x[:, :, i : i + k, j : j + k].flatten(1) for i in down for j in right], dim=-1)


def _im2col_cases():
    """Many places; stride 2; windows side by side; k = 1; k even; a stride beyond k; one place; float32; inf."""
    shapes = [
        ((2, 3, 12, 10), 3, 1, 0),
        ((1, 2, 9, 14), 3, 2, 1),
        ((2, 1, 8, 8), 2, 2, 0),
        ((1, 2, 7, 6), 1, 1, 0),
        ((1, 2, 16, 11), 4, 3, 2),
        ((3, 2, 7, 8), 2, 3, 1),
        ((2, 3, 4, 4), 4, 1, 0),
        ((1, 1, 1, 1), 1, 2, 0),
        ((1, 1, 40, 3), 2, 1, 1),
    ]
    cases = [(drawn(*shape, seed=i, dtype=torch.float64), *rest) for i, (shape, *rest) in enumerate(shapes)]
    infinite = cases[0][0].clone()
    infinite[:, 0, 2, 3] = float("inf")
    return [*cases, (cases[1][0].float(), 2, 1, 2), (spread(cases[5][0]), 3, 2, 0), (infinite, 3, 1, 1)]


im2col = Exercise(
    im2col,
    _im2col_cases,
    [
        _slice_by_slice,
        edit(
            "permute(0, 1, 4, 5, 2, 3)",
            "permute(0, 4, 5, 1, 2, 3)",
            "The rows are in the order (m, n, channel). `kernel.flatten()` has the channel first: (channel, m, n).",
        ),
        edit(
            ".flatten(2)  #",
            ".flatten(2).mT  #",
            "You have a row for every place. The matrix has a column for each: transpose it.",
        ),
        edit(
            "4, 5, 2, 3)",
            "5, 4, 2, 3)",
            "Inside each patch rows and columns are swapped: n, the offset to the right, runs fastest.",
        ),
        edit(
            "4, 5, 2, 3)",
            "4, 5, 3, 2)",
            "The places come column by column. Reading order goes along the first row of places, then the next one.",
        ),
        edit(
            "unfold(2, k, stride)",
            "unfold(2, k, 1)",
            "The stride is used from left to right, but not from top to bottom.",
        ),
        edit("[padding] * 4", "[0] * 4", "The padding is missing: put zeros round the picture before you cut it up."),
        edit(
            "[padding] * 4",
            "[2 * padding, 0, 2 * padding, 0]",
            "The zeros go on all four sides; you have them at the left and at the top only.",
        ),
        edit(
            "windows.permute(0, 1, 4, 5, 2, 3).flatten(1, 3).flatten(2)",
            "windows.reshape(len(x), x.shape[1] * k * k, -1)",
            "The right numbers in the wrong places: `reshape` reads on where it stands. Bring the dimensions into the "
            "order (N, C, m, n, row, column) with `permute` first, then merge neighbours.",
        ),
    ],
    [
        "Which pixels does weight (0, 0) of the kernel meet, over all places? Then weight (0, 1)?",
        "`x[:, :, m : m + stride * height : stride, n : n + stride * width : stride]`, with height and width the "
        "numbers of places, is what weight (m, n) meets.",
        "Stack the k·k slices behind the channel dimension, then merge (C, k·k), and then (rows, columns). Or without "
        "a loop: x.unfold(2, k, stride).unfold(3, k, stride) is (N, C, rows, columns, k, k); `permute`, then merge.",
    ],
    outcome=_counted,
    rtol=0.0,
    atol=0.0,
)


def receptive_field(layers):
    """How wide, along one side, the part of the picture is on which one number of the last layer can depend.

    layers: a list of (k, stride) in the order of the network, convolutions and pooling layers alike.
    Returns an int, the pixels from the first to the last of that part, those between included.
    Without layers a number is its own pixel: 1.
    """
    size, jump = 1, 1  # what one number sees; how many pixels lie between two neighbours
    for k, stride in layers:
        size, jump = size + (k - 1) * jump, jump * stride
    return size


def _layer_cases():
    """No layer; one; equal ones; LeNet; a ResNet's head; strides beyond k; even kernels; drawn ones."""
    lenet = [(5, 1), (2, 2), (5, 1), (2, 2), (5, 1)]
    head = [(7, 2), (3, 2), (3, 1), (3, 1), (3, 2), (3, 1)]
    by_hand = [[], [(5, 1)], [(4, 3)], [(3, 1)] * 3, lenet[:3], lenet, head, [(1, 2), (3, 1)], [(2, 3), (1, 2), (4, 2)]]
    dice = random.Random(5)
    sizes = range(1, 6)
    return [(each,) for each in by_hand] + [
        (list(zip(dice.choices(sizes, k=length), dice.choices((1, 1, 2, 3), k=length), strict=True)),)
        for length in (2, 3, 3, 4, 5, 5)
    ]


receptive_field = Exercise(
    receptive_field,
    _layer_cases,
    [
        edit("(k - 1)", "k", "A layer adds k − 1, not k: one of the k places is where you stand already."),
        edit(
            "jump * stride",
            "jump",
            "You leave out the strides. After a stride of 2, neighbours are 2 pixels apart, and every step inside a "
            "later window is worth 2 pixels.",
        ),
        edit(
            "(k - 1) * jump",
            "(k - 1) * jump * stride",
            "A layer's own stride spreads its outputs. Its window moves over its *inputs*: add first, then multiply.",
        ),
        edit(
            "jump * stride",
            "stride",
            "All strides before a layer count, multiplied; you use only that of the last one.",
        ),
        edit(
            "jump * stride",
            "jump + stride",
            "Strides multiply: after two layers of stride 3, neighbours are 9 pixels apart, not 7.",
        ),
        edit(
            "size, jump = 1, 1",
            "size, jump = 0, 1",
            "One too few. Without any layer, a number sees one pixel: start at 1.",
        ),
        edit(
            "size + (k - 1) * jump",
            "(size - 1) * stride + k",
            "(size − 1) · stride + k is right from the last layer to the first. You go from the first to the last.",
        ),
    ],
    [
        "Keep two numbers: what one number sees, and how many pixels lie between two neighbours.",
        "A window of k spans k − 1 gaps between neighbours, each as wide as the product of the strides before it.",
        "size, jump = 1, 1; for every layer: size += (k − 1) · jump, then jump *= stride.",
    ],
)


def max_pool_backward(x, grad, k):
    """The gradient of the loss with respect to the input of a max-pooling layer.

    x: the input (H, W). k: its windows are k × k and lie side by side; k divides H and W.
    grad: the gradient with respect to the output, (H/k, W/k), of x's dtype. Returns (H, W), of x's dtype;
    x and grad stay as they are. Where a window has its largest value twice, the first in reading order has won.
    """
    windows = x.unfold(0, k, k).unfold(1, k, k).flatten(2)  # (H/k, W/k, k·k)
    won = F.one_hot(windows.argmax(2), k * k)
    parts = (grad[..., None] * won).unflatten(2, (k, k))
    return parts.transpose(1, 2).reshape(x.shape)


def _spread(part, k):
    """(H/k, W/k) to (H, W): every number fills its window."""
    return part.repeat_interleave(k, 0).repeat_interleave(k, 1)


def _best(x, k):
    return _spread(x.unfold(0, k, k).unfold(1, k, k).amax((2, 3)), k)


def _given_to_all(x, grad, k):
    """Every pixel of a window gets the gradient. Only the largest had a part in the output."""
    return _spread(grad, k)


def _every_winner(x, grad, k):
    """Right without ties. Where a window has its largest value twice, both winners get the whole gradient: let only the
    first have it. After a ReLU, a window of zeros is such a tie."""
    return _spread(grad, k) * (x == _best(x, k))


def _winners_share(x, grad, k):
    """Right without ties. You share the gradient among equal winners, as `amax` does; `max_pool2d` gives it to the
    first."""
    won = (x == _best(x, k)).to(x.dtype)
    return _spread(grad, k) * won / _spread(won.unfold(0, k, k).unfold(1, k, k).sum((2, 3)), k)


def _pool_cases():
    """Drawn; after a ReLU, with ties; k of 1, or the picture's size; all equal, or below 0; late digits; float32."""
    cases = []
    for i, (height, width, k) in enumerate([(4, 6, 2), (6, 9, 3), (3, 2, 1), (4, 4, 4), (2, 10, 2), (8, 4, 4)]):
        x = drawn(height, width, seed=i, dtype=torch.float64)
        grad = drawn(height // k, width // k, seed=10 + i, dtype=torch.float64)
        cases += [(x, grad, k), ((x - 0.8).clamp(min=0), grad, k), (-x.abs().round(), grad, k)]
    x, grad, k = cases[3]
    tie = torch.tensor([[0.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    near = [1 + 1e-12 * tie, 1 + torch.finfo(tie.dtype).eps / 2 * tie, 1e30 * (tie - 3)]  # the first is 1 in float32
    cases += [(each, grad[:1, :1], 2) for each in (tie, *near)]
    return [*cases, (x.float(), grad.float(), k), (spread(x), spread(grad), k)]


max_pool_backward = Exercise(
    max_pool_backward,
    _pool_cases,
    [
        edit(
            "won)",
            "torch.full_like(won, 1, dtype=x.dtype) / k**2)",
            "That is average pooling: every pixel of a window gets an equal part. In max-pooling the winner takes all.",
        ),
        _given_to_all,
        _every_winner,
        _winners_share,
        edit(
            "windows.argmax(2)",
            "k * k - 1 - windows.flip(2).argmax(2)",
            "Right without ties. Among equal winners you choose the last; take the first.",
        ),
        edit(
            "won)",
            "won * windows)",
            "You multiply by the pixel's value. The output is 1 · the winner, so its derivative is 1.",
        ),
        edit(
            ".transpose(1, 2)",
            "",
            "The parts are right, the places are not: the dimensions are (row of windows, column of windows, row "
            "inside, column inside). Swap the middle two before you reshape.",
        ),
        edit(
            "grad[..., None] * won",
            "won.to(x.dtype)",
            "You have marked the winners with 1. Each gets the gradient of its own output.",
        ),
    ],
    [
        "The output of a window is a copy of one pixel. Which one, and what is the derivative of a copy?",
        "`x.unfold(0, k, k).unfold(1, k, k)` is (H/k, W/k, k, k); flatten the last two and take `argmax`: it gives the "
        "first of equals.",
        "F.one_hot(argmax, k · k) times grad[..., None], as (H/k, W/k, k, k); transpose(1, 2), reshape to x.shape.",
    ],
    rtol=0.0,
    atol=0.0,
)
