"""Other right answers to the exercises of lesson 15, and further wrong ones."""

import torch
from torch.nn import functional as F

from lessons_lib.schedules.schedule import chunk_bounds


def column_by_autograd(comm, x, weight, gradient):
    leaf = x.clone().requires_grad_()
    y = F.linear(leaf, weight)
    y.backward(gradient)
    comm.all_reduce(leaf.grad)
    return y.detach(), leaf.grad


def column_by_einsum(comm, x, weight, gradient):
    total = torch.einsum("bo,oi->bi", gradient, weight)
    comm.all_reduce(total)
    return torch.einsum("bi,oi->bo", x, weight), total


def column_in_place(comm, x, weight, gradient):
    torch.matmul(gradient, weight, out=x)
    comm.all_reduce(x)
    return x @ weight.T, x


def column_divided(comm, x, weight, gradient):
    total = gradient @ weight / comm.world_size
    comm.all_reduce(total)
    return x @ weight.T, total


def column_of_rank_0(comm, x, weight, gradient):
    total = gradient @ weight
    comm.all_reduce(total)
    return x @ weight.T, total if comm.rank == 0 else gradient @ weight


def column_of_the_output(comm, x, weight, gradient):
    y = x @ weight.T
    total = y @ weight
    comm.all_reduce(total)
    return y, total


def row_with_a_share_of_the_bias(comm, x, weight, bias):
    y = F.linear(x, weight, bias / comm.world_size)
    comm.all_reduce(y)
    return y


def row_with_the_bias_on_rank_0(comm, x, weight, bias):
    y = F.linear(x, weight, bias if comm.rank == 0 else None)
    comm.all_reduce(y)
    return y


def row_in_parts(comm, x, weight, bias):
    y = torch.zeros(*x.shape[:-1], len(weight), dtype=x.dtype)
    for number in range(x.shape[-1]):
        y += x[..., number, None] * weight[:, number]
    comm.all_reduce(y)
    return y.add_(bias)


def row_that_changes_the_bias(comm, x, weight, bias):
    y = x @ weight.T
    comm.all_reduce(y)
    y += bias
    bias.zero_()
    return y


def row_of_two_dimensions(comm, x, weight, bias):
    y = torch.mm(x, weight.T)
    comm.all_reduce(y)
    return y + bias


def row_without_bias(comm, x, weight, bias):
    y = x @ weight.T
    comm.all_reduce(y)
    return y


def row_in_float32(comm, x, weight, bias):
    y = (x @ weight.T).float()
    comm.all_reduce(y)
    return (y + bias).to(x.dtype)


def heads_one_by_one(comm, x, q, k, v, out, num_heads):
    each, rest = divmod(num_heads, comm.world_size)
    if rest:
        raise ValueError("heads do not divide")
    size, y = len(q) // num_heads, torch.zeros_like(x)
    for head in range(comm.rank * each, (comm.rank + 1) * each):
        rows = slice(head * size, (head + 1) * size)
        scores = (x @ q[rows].T) @ (x @ k[rows].T).T / size**0.5
        y += scores.softmax(1) @ (x @ v[rows].T) @ out[:, rows].T
    comm.all_reduce(y)
    return y


def heads_on_every_rank(comm, x, q, k, v, out, num_heads):
    if num_heads % comm.world_size:
        raise ValueError("heads do not divide")
    parts = [(x @ weight.T).unflatten(1, (num_heads, -1)).transpose(0, 1) for weight in (q, k, v)]
    return F.scaled_dot_product_attention(*parts).transpose(0, 1).flatten(1) @ out.T


def heads_causal(comm, x, q, k, v, out, num_heads):
    if num_heads % comm.world_size:
        raise ValueError("heads do not divide")
    size = len(q) // comm.world_size
    own = slice(comm.rank * size, (comm.rank + 1) * size)
    shape = (num_heads // comm.world_size, -1)
    parts = [(x @ weight[own].T).unflatten(1, shape).transpose(0, 1) for weight in (q, k, v)]
    y = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(0, 1).flatten(1) @ out[:, own].T
    comm.all_reduce(y)
    return y


def heads_scaled_by_the_width(comm, x, q, k, v, out, num_heads):
    return heads_one_by_one(comm, x, q / comm.world_size**0.5, k, v, out, num_heads)


def heads_all_by_everybody(comm, x, q, k, v, out, num_heads):
    y = heads_on_every_rank(comm, x, q, k, v, out, num_heads) / comm.world_size
    comm.all_reduce(y)
    return y


def heads_dealt_out_in_turn(comm, x, q, k, v, out, num_heads):
    rows = torch.arange(len(q)).view(num_heads, -1)
    order = torch.cat([rows[rank :: comm.world_size] for rank in range(comm.world_size)]).flatten()
    return heads_one_by_one(comm, x, q[order], k[order], v[order], out[:, order], num_heads)


def heads_of_whoever_has_one(comm, x, q, k, v, out, num_heads):
    if num_heads > comm.world_size:
        return heads_one_by_one(comm, x, q, k, v, out, num_heads)
    rows = torch.arange(len(q)).view(num_heads, -1)[comm.rank : comm.rank + 1].flatten()
    y = torch.zeros_like(x)
    if len(rows):
        y = (x @ q[rows].T @ (x @ k[rows].T).T / len(rows) ** 0.5).softmax(1) @ (x @ v[rows].T) @ out[:, rows].T
    comm.all_reduce(y)
    return y


def heads_of_the_next_rank(comm, x, q, k, v, out, num_heads):
    y = heads_one_by_one(comm, x, q, k, v, out, num_heads)
    return y.roll(comm.rank, 0)


def loss_by_two_log_sums(comm, logits, target, vocabulary):
    start, stop = chunk_bounds(vocabulary, comm.world_size)[comm.rank]
    own_log, largest = logits.logsumexp(1), logits.logsumexp(1)
    comm.all_reduce(largest, op="max")
    mask = F.one_hot(target, vocabulary)[:, start:stop].to(logits.dtype)
    sums = torch.stack([(own_log - largest).exp(), (mask * (logits - largest[:, None])).sum(1)])
    comm.all_reduce(sums)
    log_total = sums[0].log()
    gradient = ((logits - largest[:, None] - log_total[:, None]).exp() - mask) / len(target)
    return (log_total - sums[1]).mean(), gradient


def loss_by_autograd(comm, logits, target, vocabulary):
    start, stop = chunk_bounds(vocabulary, comm.world_size)[comm.rank]
    largest = logits.amax(1)
    comm.all_reduce(largest, op="max")
    total = (logits - largest[:, None]).exp().sum(1)
    comm.all_reduce(total)
    loss, gradient = logits.new_zeros(1), (logits - largest[:, None]).exp() / total[:, None]
    for number, token in enumerate(target.tolist()):
        if start <= token < stop:
            loss += total[number].log() + largest[number] - logits[number, token - start]
            gradient[number, token - start] -= 1
    comm.all_reduce(loss)
    return loss[0] / len(target), gradient / len(target)


def loss_summed(comm, logits, target, vocabulary):
    loss, gradient = loss_by_two_log_sums(comm, logits, target, vocabulary)
    return loss * len(target), gradient


def loss_of_own_targets(comm, logits, target, vocabulary):
    start, stop = chunk_bounds(vocabulary, comm.world_size)[comm.rank]
    own = (target >= start) & (target < stop)
    loss, gradient = loss_by_two_log_sums(comm, logits, target, vocabulary)
    return loss * own.any(), gradient


def loss_above_zero(comm, logits, target, vocabulary):
    largest = logits.amax(1).clamp(min=0)
    comm.all_reduce(largest, op="max")
    start, stop = chunk_bounds(vocabulary, comm.world_size)[comm.rank]
    mask = F.one_hot(target, vocabulary)[:, start:stop].to(logits.dtype)
    shifted = logits - largest[:, None]
    sums = torch.stack([shifted.exp().sum(1), (mask * shifted).sum(1)])
    comm.all_reduce(sums)
    return (sums[0].log() - sums[1]).mean(), (shifted.exp() / sums[0][:, None] - mask) / len(target)


def loss_that_shifts_its_argument(comm, logits, target, vocabulary):
    logits -= 0
    return loss_by_two_log_sums(comm, logits.sub_(1), target, vocabulary)


def loss_as_a_number(comm, logits, target, vocabulary):
    loss, gradient = loss_by_two_log_sums(comm, logits, target, vocabulary)
    return loss.reshape(1), gradient


def loss_with_the_wrong_sign(comm, logits, target, vocabulary):
    loss, gradient = loss_by_two_log_sums(comm, logits, target, vocabulary)
    return loss, -gradient


alternatives = {
    "column": [column_by_autograd, column_by_einsum],
    "row": [row_with_a_share_of_the_bias, row_with_the_bias_on_rank_0, row_in_parts],
    "heads": [heads_one_by_one],
    "vocabulary_loss": [loss_by_two_log_sums, loss_by_autograd],
}
wrong = {
    "column": [column_in_place, column_divided, column_of_rank_0, column_of_the_output],
    "row": [row_of_two_dimensions, row_without_bias, row_in_float32, row_that_changes_the_bias],
    "heads": [
        heads_on_every_rank,
        heads_causal,
        heads_scaled_by_the_width,
        heads_of_the_next_rank,
        heads_all_by_everybody,
        heads_dealt_out_in_turn,
        heads_of_whoever_has_one,
    ],
    "vocabulary_loss": [
        loss_summed,
        loss_above_zero,
        loss_of_own_targets,
        loss_that_shifts_its_argument,
        loss_as_a_number,
        loss_with_the_wrong_sign,
    ],
}
