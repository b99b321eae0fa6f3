"""Lesson 05: right answers written another way, and wrong answers beyond the listed mistakes."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def size_by_laying_the_window_down(n, k, stride, padding, dilation):
    return len(range(-padding, n + padding - dilation * (k - 1), stride))


def size_by_torch(n, k, stride, padding, dilation):
    layer = nn.Conv1d(1, 1, k, stride, padding, dilation)
    return layer(torch.zeros(1, 1, n)).shape[-1]


def size_by_recursion(n, k, stride, padding, dilation):
    if padding:
        return size_by_recursion(n + 2 * padding, k, stride, 0, dilation)
    return 0 if n < dilation * (k - 1) + 1 else 1 + size_by_recursion(n - stride, k, stride, 0, dilation)


def size_from_above(n, k, stride, padding, dilation):
    return -(-(n + 2 * padding - dilation * (k - 1)) // stride)


def size_of_an_odd_kernel(n, k, stride, padding, dilation):
    return (n + 2 * padding - 2 * dilation * (k // 2) - 1) // stride + 1


def size_of_same_padding(n, k, stride, padding, dilation):
    return -(-n // stride)


def size_with_a_stride_up_to_k(n, k, stride, padding, dilation):
    return (n + 2 * padding - dilation * (k - 1) - 1) // min(stride, k) + 1


def size_rounded_to_the_nearest(n, k, stride, padding, dilation):
    return round((n + 2 * padding - dilation * (k - 1) - 1) / stride) + 1


def size_as_a_float(n, k, stride, padding, dilation):
    return float((n + 2 * padding - dilation * (k - 1) - 1) // stride + 1)


def size_with_dilated_padding(n, k, stride, padding, dilation):
    return (n + 2 * padding * dilation - dilation * (k - 1) - 1) // stride + 1


def size_at_least_two(n, k, stride, padding, dilation):
    return max(2, (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1)


def size_of_a_dense_pixel(n, k, stride, padding, dilation):
    return (n + 2 * padding - (dilation - 1) * (k - 1) - 1) // stride + 1


def size_of_full_windows(n, k, stride, padding, dilation):
    return (n + 2 * padding) // stride - (dilation * (k - 1) + 1) // stride + 1


def size_with_the_dilation_as_stride(n, k, stride, padding, dilation):
    return (n + 2 * padding - k) // (stride * dilation) + 1


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


def columns_in_numpy(x, k, stride, padding):
    array = np.pad(x.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(array, (k, k), axis=(2, 3))[:, :, ::stride, ::stride]
    columns = windows.transpose(0, 1, 4, 5, 2, 3)
    return torch.from_numpy(columns.reshape(len(array), array.shape[1] * k * k, -1).copy())


def columns_by_strides(x, k, stride, padding):
    x = functional.pad(x, (padding,) * 4).contiguous()
    size, channels, height, width = x.shape
    down, right = (height - k) // stride + 1, (width - k) // stride + 1
    a, b, c, d = x.stride()
    view = x.as_strided((size, channels, k, k, down, right), (a, b, c, d, c * stride, d * stride))
    return view.reshape(size, channels * k * k, down * right)


def columns_of_a_square(x, k, stride, padding):
    side = min(x.shape[2:])
    return columns_weight_by_weight(x[:, :, :side, :side], k, stride, padding)


def columns_of_the_first_picture(x, k, stride, padding):
    return columns_weight_by_weight(x[:1].expand(len(x), -1, -1, -1), k, stride, padding)


def columns_with_stride_1(x, k, stride, padding):
    return columns_weight_by_weight(x, k, 1, padding)


def columns_with_strides_up_to_k(x, k, stride, padding):
    return columns_weight_by_weight(x, k, min(stride, k), padding)


def columns_padded_at_the_end(x, k, stride, padding):
    return columns_weight_by_weight(functional.pad(x, [0, 2 * padding] * 2), k, stride, 0)


def columns_padded_with_ones(x, k, stride, padding):
    return columns_weight_by_weight(functional.pad(x, [padding] * 4, value=1.0), k, stride, 0)


def columns_in_float32(x, k, stride, padding):
    return columns_weight_by_weight(x.float(), k, stride, padding)


def columns_of_the_mean_channel(x, k, stride, padding):
    return columns_weight_by_weight(x.mean(1, keepdim=True).expand_as(x), k, stride, padding)


def columns_of_every_place(x, k, stride, padding):
    x = functional.pad(x, [padding] * 4)
    places = [(i, j) for i in range(0, x.shape[2] - k + 1, stride) for j in range(0, x.shape[3] - k + 1, stride)]
    return torch.stack([x[..., i : i + k, j : j + k].reshape(len(x), -1) for i, j in places], 2)


def columns_that_pad_within(x, k, stride, padding):
    x[:, :, 0, 0] = 0
    return columns_weight_by_weight(x, k, stride, padding)


def columns_of_three_dimensions(x, k, stride, padding):
    return columns_weight_by_weight(x, k, stride, padding).unflatten(1, (x.shape[1], -1))


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
    x = torch.rand(1, 1, 4000, dtype=torch.float64, requires_grad=True)
    net(x)[0, 0, 2].backward()
    seen = x.grad.flatten().nonzero()
    return (seen.max() - seen.min()).item() + 1


def field_by_recursion(layers):
    if not layers:
        return 1
    (k, stride), *rest = layers
    return (field_by_recursion(rest) - 1) * stride + k


def field_by_walking(layers):
    first = last = 0
    for k, stride in layers[::-1]:
        first, last = first * stride, last * stride + k - 1
    return last - first + 1


def field_of_even_steps(layers):
    size, jump = 1, 1
    for k, stride in layers:
        size += 2 * (k // 2) * jump
        jump *= stride
    return size


def field_without_gaps(layers):
    size, jump = 1, 1
    for k, stride in layers:
        size += (k - 1) * min(jump, size)
        jump *= stride
    return size


def field_with_strides_up_to_k(layers):
    return field_from_the_last_layer([(k, min(stride, k)) for k, stride in layers])


def field_of_distinct_layers(layers):
    return field_from_the_last_layer(list(dict.fromkeys(layers)))


def field_of_sorted_layers(layers):
    return field_from_the_last_layer(sorted(layers))


def field_of_nothing_as_0(layers):
    return field_from_the_last_layer(layers) if layers else 0


def field_as_a_float(layers):
    return float(field_from_the_last_layer(layers))


def field_that_empties_the_list(layers):
    size = 1
    while layers:
        k, stride = layers.pop()
        size = (size - 1) * stride + k
    return size


def field_as_a_product(layers):
    size = 1
    for k, stride in layers:
        size *= k * stride if layers else 1
    return size


def field_of_the_last_jump(layers):
    size, jump = 1, 1
    for k, stride in layers:
        jump *= stride
        size += (k - 1) * jump
    return size


def field_of_k_above_1(layers):
    return field_from_the_last_layer([(k, stride) for k, stride in layers if k > 1])


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


def pool_backward_in_numpy(x, grad, k):
    out, values, parts = np.zeros_like(x.numpy()), x.numpy(), grad.numpy()
    for i, j in np.ndindex(*parts.shape):
        window = values[i * k : (i + 1) * k, j * k : (j + 1) * k]
        m, n = np.unravel_index(np.argmax(window), window.shape)
        out[i * k + m, j * k + n] = parts[i, j]
    return torch.from_numpy(out)


def pool_backward_by_unpooling(x, grad, k):
    _, places = functional.max_pool2d(x[None, None], k, return_indices=True)
    return torch.zeros_like(x).reshape(-1).scatter(0, places.flatten(), grad.flatten()).view(x.shape)


def pool_backward_of_the_last_column_first(x, grad, k):
    return pool_backward_by_autograd(x.T, grad.T, k).T


def pool_backward_of_positive_winners(x, grad, k):
    return pool_backward_by_autograd(x, grad, k) * (x > 0)


def pool_backward_of_windows_of_2(x, grad, k):
    return pool_backward_by_autograd(x, grad, 2 if grad.shape == (x.shape[0] // 2, x.shape[1] // 2) else k) * (k == 2)


def pool_backward_of_positive_gradients(x, grad, k):
    return pool_backward_by_autograd(x, grad.clamp(min=0), k)


def pool_backward_of_magnitudes(x, grad, k):
    return pool_backward_by_autograd(x.abs(), grad, k)


def pool_backward_in_float32(x, grad, k):
    return pool_backward_by_autograd(x, grad, k).float()


def pool_backward_in_float64(x, grad, k):
    return pool_backward_by_autograd(x.double(), grad.double(), k)


def pool_backward_of_the_row_winners(x, grad, k):
    rows = x.unfold(1, k, k)
    return pool_backward_by_autograd(x, grad, k) * (rows == rows.amax(2, keepdim=True)).flatten(1).roll(1, 0)


def pool_backward_of_the_first_row(x, grad, k):
    out = torch.zeros_like(x)
    out[::k] = pool_backward_by_autograd(x, grad, k)[::k]
    return out


def pool_backward_transposed(x, grad, k):
    return pool_backward_by_autograd(x.T.reshape(x.shape), grad, k)


def pool_backward_that_writes_into_x(x, grad, k):
    out = pool_backward_by_autograd(x, grad, k)
    x.copy_(out)
    return x


def pool_backward_of_the_sum(x, grad, k):
    return pool_backward_by_autograd(x, torch.full_like(grad, grad.sum()), k)


def pool_backward_of_the_least(x, grad, k):
    return pool_backward_by_autograd(-x, grad, k)


def pool_backward_with_one_winner(x, grad, k):
    out = torch.zeros_like(x)
    out.view(-1)[x.argmax()] = grad.max()
    return out


alternatives = {
    "output_size": [size_by_laying_the_window_down, size_by_torch, size_by_recursion, size_from_above],
    "im2col": [
        columns_weight_by_weight,
        columns_by_an_index,
        columns_in_numpy,
        columns_by_strides,
    ],
    "receptive_field": [field_from_the_last_layer, field_by_autograd, field_by_recursion, field_by_walking],
    "max_pool_backward": [
        pool_backward_by_autograd,
        pool_backward_in_loops,
        pool_backward_in_numpy,
        pool_backward_by_unpooling,
    ],
}
wrong = {
    "output_size": [
        size_of_an_odd_kernel,
        size_of_same_padding,
        size_with_a_stride_up_to_k,
        size_rounded_to_the_nearest,
        size_as_a_float,
        size_with_dilated_padding,
        size_at_least_two,
        size_of_a_dense_pixel,
        size_of_full_windows,
        size_with_the_dilation_as_stride,
        size_of_a_transposed_convolution,
        size_padded_by_half,
    ],
    "im2col": [
        columns_by_a_convolution,  # 0 times inf is nan
        columns_by_torch,
        columns_of_a_square,
        columns_of_the_first_picture,
        columns_with_stride_1,
        columns_with_strides_up_to_k,
        columns_padded_at_the_end,
        columns_padded_with_ones,
        columns_in_float32,
        columns_of_the_mean_channel,
        columns_of_every_place,
        columns_that_pad_within,
        columns_of_three_dimensions,
        columns_padded_with_the_border,
        columns_of_one_channel,
    ],
    "receptive_field": [
        field_of_even_steps,
        field_without_gaps,
        field_with_strides_up_to_k,
        field_of_distinct_layers,
        field_of_sorted_layers,
        field_of_nothing_as_0,
        field_as_a_float,
        field_that_empties_the_list,
        field_as_a_product,
        field_of_the_last_jump,
        field_of_k_above_1,
        field_of_the_last_layer,
        field_as_an_area,
    ],
    "max_pool_backward": [
        pool_backward_of_the_last_column_first,
        pool_backward_of_positive_winners,
        pool_backward_of_windows_of_2,
        pool_backward_of_positive_gradients,
        pool_backward_of_magnitudes,
        pool_backward_in_float32,
        pool_backward_in_float64,
        pool_backward_of_the_row_winners,
        pool_backward_of_the_first_row,
        pool_backward_transposed,
        pool_backward_that_writes_into_x,
        pool_backward_of_the_sum,
        pool_backward_of_the_least,
        pool_backward_with_one_winner,
    ],
}
