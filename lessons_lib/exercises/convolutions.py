"""Lesson 05: the size of an output, patches as columns, what an output sees, and max-pooling backwards."""

import itertools

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lessons_lib.exercises.core import Exercise, Outcome


def output_size(n, k, stride, padding, dilation):
    """How many places a window has along one side of a picture: the size of the output.

    n: pixels along that side. k: weights of the kernel along it. stride: pixels between two places.
    padding: zeros added at both ends. dilation: pixels between neighbouring weights of the kernel;
    1 is the usual dense kernel. All are ints, and the window fits at least once. Returns an int.
    """
    extent = dilation * (k - 1) + 1
    return (n + 2 * padding - extent) // stride + 1


def _extent(k, dilation):
    return dilation * (k - 1) + 1


def _rounded_up(n, k, stride, padding, dilation):
    """You round up. A last window that hangs over the edge is not laid down: round down with `//`. (Pooling layers of
    torch round up when asked to, with ceil_mode=True.)"""
    return -(-(n + 2 * padding - _extent(k, dilation)) // stride) + 1


def _padded_once(n, k, stride, padding, dilation):
    """The zeros are added at both ends: the side grows by 2 · padding."""
    return (n + padding - _extent(k, dilation)) // stride + 1


def _first_place_forgotten(n, k, stride, padding, dilation):
    """One too few: you have counted the moves. The place where the window starts counts as well."""
    return (n + 2 * padding - _extent(k, dilation)) // stride


def _one_inside(n, k, stride, padding, dilation):
    """The + 1 stands outside the division: it is the first place, and no stride shortens that. Inside, it comes out
    right for stride 1 only."""
    return (n + 2 * padding - _extent(k, dilation) + 1) // stride


def _no_dilation(n, k, stride, padding, dilation):
    """You leave out the dilation. With pixels between its weights the window covers more than k pixels."""
    del dilation
    return (n + 2 * padding - k) // stride + 1


def _k_dilated(n, k, stride, padding, dilation):
    """A dilated kernel has k weights but k − 1 gaps: it covers dilation · (k − 1) + 1 pixels, not dilation · k."""
    return (n + 2 * padding - dilation * k) // stride + 1


def _no_stride(n, k, stride, padding, dilation):
    """That is the number of places for stride 1. A stride of s uses every s-th of them."""
    del stride
    return n + 2 * padding - _extent(k, dilation) + 1


def _not_whole(n, k, stride, padding, dilation):
    """`/` gives a float, and fractions of a place. Divide with `//`."""
    return (n + 2 * padding - _extent(k, dilation)) / stride + 1


def _size_cases():
    settings = itertools.product((5, 8, 28, 31), (1, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2))
    return [case for case in settings if case[0] + 2 * case[3] >= _extent(case[1], case[4])]


output_size = Exercise(
    output_size,
    _size_cases,
    [_rounded_up, _padded_once, _first_place_forgotten, _one_inside, _no_dilation, _k_dilated, _no_stride, _not_whole],
    [
        "How many pixels does the window cover? How many are left for it to move over?",
        "The window covers dilation · (k − 1) + 1 of n + 2 · padding pixels.",
        "What is left, divided by the stride and rounded down, is the number of moves; the places are one more.",
    ],
)


def im2col(x, k, stride, padding):
    """The patch under every place of a k × k window, as the columns of a matrix.

    x: (N, C, H, W). stride, padding: the same for both directions.
    Returns (N, C·k·k, L): a row for every weight of a kernel (C, k, k), in the order of its
    `flatten()`; a column for each of the L places, from left to right, then from top to bottom.
    Use few operations of torch, and not F.unfold, which is this function.
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
    return Outcome(columns, {"operations of torch": operations.count})


def _windows(x, k, stride, padding, down=None):
    """(N, C, H', W', k, k): what lies under the window, at every place."""
    return F.pad(x, [padding] * 4).unfold(2, k, down or stride).unfold(3, k, stride)


def _slice_by_slice(x, k, stride, padding):
    """The values are right, with a slice for every place, as in the lesson. Go through the k·k weights instead: weight
    (m, n) meets every stride-th pixel from (m, n) on, and that is one slice for all places."""
    x = F.pad(x, [padding] * 4)
    down, right = (range(0, n - k + 1, stride) for n in x.shape[2:])
    return torch.stack([x[:, :, i : i + k, j : j + k].flatten(1) for i in down for j in right], dim=-1)


def _channels_last(x, k, stride, padding):
    """The rows are in the order (m, n, channel). `kernel.flatten()` has the channel first: (channel, m, n)."""
    return _windows(x, k, stride, padding).permute(0, 4, 5, 1, 2, 3).flatten(1, 3).flatten(2)


def _patches_as_rows(x, k, stride, padding):
    """You have a row for every place. The matrix has a column for each: transpose it."""
    return im2col.reference(x, k, stride, padding).mT


def _patches_transposed(x, k, stride, padding):
    """Inside each patch rows and columns are swapped: n, the offset to the right, runs fastest."""
    return _windows(x, k, stride, padding).permute(0, 1, 5, 4, 2, 3).flatten(1, 3).flatten(2)


def _places_transposed(x, k, stride, padding):
    """The places come column by column. Reading order goes along the first row of places, then the next one."""
    return _windows(x, k, stride, padding).permute(0, 1, 4, 5, 3, 2).flatten(1, 3).flatten(2)


def _stride_across_only(x, k, stride, padding):
    """The stride is used from left to right, but not from top to bottom."""
    return _windows(x, k, stride, padding, down=1).permute(0, 1, 4, 5, 2, 3).flatten(1, 3).flatten(2)


def _unpadded(x, k, stride, padding):
    """The padding is missing: put zeros round the picture before you cut it up."""
    del padding
    return im2col.reference(x, k, stride, 0)


def _padded_on_two_sides(x, k, stride, padding):
    """The zeros go on all four sides; you have them at the left and at the top only."""
    return im2col.reference(F.pad(x, [padding, 0, padding, 0]), k, stride, 0)


def _only_reshaped(x, k, stride, padding):
    """The right numbers in the wrong places: `reshape` reads on where it stands. Bring the dimensions into the order
    (N, C, m, n, row, column) with `permute` first, then merge neighbours."""
    windows = _windows(x, k, stride, padding)
    return windows.reshape(len(x), x.shape[1] * k * k, -1)


def _flipped(x, k, stride, padding):
    """Each patch is upside down. Weight (m, n) meets pixel (i + m, j + n), not (i − m, j − n): torch does not flip."""
    return _windows(x, k, stride, padding).flip(4, 5).permute(0, 1, 4, 5, 2, 3).flatten(1, 3).flatten(2)


def _im2col_cases():
    random = torch.Generator().manual_seed(5)
    shapes = [
        ((2, 3, 12, 10), 3, 1, 0),
        ((1, 2, 9, 14), 3, 2, 1),
        ((2, 1, 8, 8), 2, 2, 0),
        ((1, 2, 7, 6), 1, 1, 0),
        ((1, 2, 16, 11), 4, 3, 2),
    ]
    return [(torch.randn(shape, generator=random, dtype=torch.float64), *rest) for shape, *rest in shapes]


im2col = Exercise(
    im2col,
    _im2col_cases,
    [
        _slice_by_slice,
        _channels_last,
        _patches_as_rows,
        _patches_transposed,
        _places_transposed,
        _stride_across_only,
        _unpadded,
        _padded_on_two_sides,
        _only_reshaped,
        _flipped,
    ],
    [
        "Which pixels does weight (0, 0) of the kernel meet, over all places? Then weight (0, 1)?",
        "`x[:, :, m : m + stride * height : stride, n : n + stride * width : stride]`, with height and width the "
        "numbers of places, is what weight (m, n) meets.",
        "Stack the k·k slices behind the channel dimension, then merge (C, k·k), and then (rows, columns). Or without "
        "a loop: x.unfold(2, k, stride).unfold(3, k, stride) is (N, C, rows, columns, k, k); `permute`, then merge.",
    ],
    outcome=_counted,
    slack=20.0,  # the k·k slices are welcome too
)


def receptive_field(layers):
    """How many pixels of the picture, along one side, one number of the last layer can depend on.

    layers: a list of (k, stride) in the order of the network, convolutions and pooling layers alike.
    Returns an int; without layers a number is its own pixel: 1.
    """
    size, jump = 1, 1  # what one number sees; how many pixels lie between two neighbours
    for k, stride in layers:
        size += (k - 1) * jump
        jump *= stride
    return size


def _adds_k(layers):
    """A layer adds k − 1, not k: one of the k places is where you stand already."""
    size, jump = 1, 1
    for k, stride in layers:
        size, jump = size + k * jump, jump * stride
    return size


def _no_jump(layers):
    """You leave out the strides. After a stride of 2, neighbours are 2 pixels apart, and every step inside a later
    window is worth 2 pixels."""
    return 1 + sum(k - 1 for k, _ in layers)


def _own_stride_first(layers):
    """A layer's own stride spreads its outputs. Its window moves over its *inputs*: add first, then multiply."""
    size, jump = 1, 1
    for k, stride in layers:
        jump *= stride
        size += (k - 1) * jump
    return size


def _last_stride_only(layers):
    """All strides before a layer count, multiplied; you use only that of the last one."""
    size, before = 1, 1
    for k, stride in layers:
        size, before = size + (k - 1) * before, stride
    return size


def _strides_added(layers):
    """Strides multiply: after two layers of stride 3, neighbours are 9 pixels apart, not 7."""
    size, jump = 1, 1
    for k, stride in layers:
        size, jump = size + (k - 1) * jump, jump + stride
    return size


def _starts_at_zero(layers):
    """One too few. Without any layer, a number sees one pixel: start at 1."""
    return receptive_field.reference(layers) - 1


def _back_to_front(layers):
    """(size − 1) · stride + k is right from the last layer to the first. You go from the first to the last."""
    size = 1
    for k, stride in layers:
        size = (size - 1) * stride + k
    return size


_LENET = [(5, 1), (2, 2), (5, 1), (2, 2), (5, 1)]

receptive_field = Exercise(
    receptive_field,
    [
        ([],),
        ([(5, 1)],),
        ([(3, 1)] * 3,),
        (_LENET[:3],),
        (_LENET,),
        ([(7, 2), (3, 2), (3, 1), (3, 1), (3, 2), (3, 1)],),
    ],
    [_adds_k, _no_jump, _own_stride_first, _last_stride_only, _strides_added, _starts_at_zero, _back_to_front],
    [
        "Keep two numbers: what one number sees, and how many pixels lie between two neighbours.",
        "A window of k spans k − 1 gaps between neighbours, each as wide as the product of the strides before it.",
        "size, jump = 1, 1; for every layer: size += (k − 1) · jump, then jump *= stride.",
    ],
)


def max_pool_backward(x, grad, k):
    """The gradient of the loss with respect to the input of a max-pooling layer.

    x: the input (H, W). k: its windows are k × k and lie side by side; k divides H and W.
    grad: the gradient with respect to the output, (H/k, W/k). Returns (H, W), of x's dtype.
    Where a window has its largest value twice, the first in reading order has won.
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


def _shared_by_all(x, grad, k):
    """That is average pooling: every pixel of a window gets an equal part. In max-pooling the winner takes all."""
    return (_spread(grad, k) / k**2).to(x.dtype)


def _given_to_all(x, grad, k):
    """Every pixel of a window gets the gradient. Only the largest had a part in the output."""
    return _spread(grad, k).to(x.dtype)


def _every_winner(x, grad, k):
    """Right without ties. Where a window has its largest value twice, both winners get the whole gradient: let only the
    first have it. After a ReLU, a window of zeros is such a tie."""
    return _spread(grad, k) * (x == _best(x, k))


def _winners_share(x, grad, k):
    """Right without ties. You share the gradient among equal winners, as `amax` does; `max_pool2d` gives it to the
    first."""
    won = (x == _best(x, k)).to(x.dtype)
    return _spread(grad, k) * won / _spread(won.unfold(0, k, k).unfold(1, k, k).sum((2, 3)), k)


def _last_winner(x, grad, k):
    """Right without ties. Among equal winners you choose the last; take the first."""
    return max_pool_backward.reference(x.flip(0, 1), grad.flip(0, 1), k).flip(0, 1)


def _times_the_value(x, grad, k):
    """You multiply by the pixel's value. The output is 1 · the winner, so its derivative is 1."""
    return max_pool_backward.reference(x, grad, k) * x


def _only_reshaped_back(x, grad, k):
    """The parts are right, the places are not: the dimensions are (row of windows, column of windows, row inside,
    column inside). Swap the middle two before you reshape."""
    won = F.one_hot(x.unfold(0, k, k).unfold(1, k, k).flatten(2).argmax(2), k * k)
    return (grad[..., None] * won).reshape(x.shape)


def _marks_only(x, grad, k):
    """You have marked the winners with 1. Each gets the gradient of its own output."""
    return max_pool_backward.reference(x, torch.ones_like(grad), k)


def _averaged(x, grad, k):
    """You divide by k². The winner gets the gradient whole: nothing was averaged."""
    return max_pool_backward.reference(x, grad, k) / k**2


def _pool_cases():
    random = torch.Generator().manual_seed(6)
    cases = []
    for height, width, k, after_relu in ((4, 6, 2, False), (6, 9, 3, False), (4, 6, 2, True), (8, 4, 4, True)):
        x = torch.randn(height, width, generator=random, dtype=torch.float64)
        x = (x - 0.8).clamp(min=0) if after_relu else x
        cases.append((x, torch.randn(height // k, width // k, generator=random, dtype=torch.float64), k))
    return cases


max_pool_backward = Exercise(
    max_pool_backward,
    _pool_cases,
    [
        _shared_by_all,
        _given_to_all,
        _every_winner,
        _winners_share,
        _last_winner,
        _times_the_value,
        _only_reshaped_back,
        _marks_only,
        _averaged,
    ],
    [
        "The output of a window is a copy of one pixel. Which one, and what is the derivative of a copy?",
        "`x.unfold(0, k, k).unfold(1, k, k)` is (H/k, W/k, k, k); flatten the last two and take `argmax`: it gives the "
        "first of equals.",
        "F.one_hot(argmax, k · k) times grad[..., None], as (H/k, W/k, k, k); transpose(1, 2), reshape to x.shape.",
    ],
)
