"""Lesson 05: right answers written another way, and wrong answers beyond the listed mistakes."""

import torch
from torch import nn
from torch.nn import functional


def size_by_laying_the_window_down(n, k, stride, padding, dilation):
    return len(range(-padding, n + padding - dilation * (k - 1), stride))


def size_by_torch(n, k, stride, padding, dilation):
    layer = nn.Conv1d(1, 1, k, stride, padding, dilation)
    return layer(torch.zeros(1, 1, n)).shape[-1]


def size_of_a_transposed_convolution(n, k, stride, padding, dilation):
    return (n - 1) * stride - 2 * padding + dilation * (k - 1) + 1


def size_padded_by_half(n, k, stride, padding, dilation):
    return (n + 2 * padding - dilation * (k - 1)) // stride


def columns_by_torch(x, k, stride, padding):
    return functional.unfold(x, k, padding=padding, stride=stride)


def columns_weight_by_weight(x, k, stride, padding):
    x = functional.pad(x, (padding,) * 4)
    height, width = ((n - k) // stride + 1 for n in x.shape[2:])
    rows = [
        x[:, :, m : m + stride * height : stride, n : n + stride * width : stride] for m in range(k) for n in range(k)
    ]
    return torch.stack(rows, dim=2).flatten(1, 2).flatten(2)


def columns_by_a_convolution(x, k, stride, padding):
    """A kernel that holds a single 1 copies one pixel of each patch."""
    channels = x.shape[1]
    one_pixel = torch.eye(k * k, dtype=x.dtype).view(k * k, 1, k, k).repeat(channels, 1, 1, 1)
    return functional.conv2d(x, one_pixel, stride=stride, padding=padding, groups=channels).flatten(2)


def columns_by_an_index(x, k, stride, padding):
    x = functional.pad(x, (padding,) * 4)
    height, width = ((n - k) // stride + 1 for n in x.shape[2:])
    inside = torch.arange(k)
    rows = inside[:, None] + stride * torch.arange(height)
    columns = inside[:, None] + stride * torch.arange(width)
    picked = x[:, :, rows[:, None, :, None], columns[None, :, None, :]]
    return picked.flatten(1, 3).flatten(2)


def columns_padded_with_the_border(x, k, stride, padding):
    return functional.unfold(functional.pad(x, (padding,) * 4, mode="replicate"), k, stride=stride)


def columns_of_one_channel(x, k, stride, padding):
    return functional.unfold(x[:, :1], k, padding=padding, stride=stride)


def field_from_the_last_layer(layers):
    size = 1
    for k, stride in reversed(layers):
        size = (size - 1) * stride + k
    return size


def field_by_autograd(layers):
    net = nn.Sequential(*[nn.Conv1d(1, 1, k, stride, bias=False) for k, stride in layers]).double()
    x = torch.rand(1, 1, 200, dtype=torch.float64, requires_grad=True)
    net(x)[0, 0, 2].backward()
    seen = x.grad.flatten().nonzero()
    return (seen.max() - seen.min()).item() + 1


def field_of_the_last_layer(layers):
    return layers[-1][0] if layers else 1


def field_as_an_area(layers):
    return field_from_the_last_layer(layers) ** 2


def pool_backward_by_autograd(x, grad, k):
    x = x.clone().requires_grad_()
    functional.max_pool2d(x[None], k)[0].backward(grad)
    return x.grad


def pool_backward_in_loops(x, grad, k):
    out = torch.zeros_like(x)
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            best = None
            for m in range(k * i, k * i + k):
                for n in range(k * j, k * j + k):
                    if best is None or x[m, n] > x[best]:
                        best = (m, n)
            out[best] += grad[i, j]
    return out


def pool_backward_of_the_least(x, grad, k):
    return pool_backward_by_autograd(-x, grad, k)


def pool_backward_with_one_winner(x, grad, k):
    out = torch.zeros_like(x)
    out.view(-1)[x.argmax()] = grad.max()
    return out


alternatives = {
    "output_size": [size_by_laying_the_window_down, size_by_torch],
    "im2col": [columns_weight_by_weight, columns_by_a_convolution, columns_by_an_index],
    "receptive_field": [field_from_the_last_layer, field_by_autograd],
    "max_pool_backward": [pool_backward_by_autograd, pool_backward_in_loops],
}
wrong = {
    "output_size": [size_of_a_transposed_convolution, size_padded_by_half],
    "im2col": [columns_by_torch, columns_padded_with_the_border, columns_of_one_channel],
    "receptive_field": [field_of_the_last_layer, field_as_an_area],
    "max_pool_backward": [pool_backward_of_the_least, pool_backward_with_one_winner],
}
