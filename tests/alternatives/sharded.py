"""Other answers to the exercises of lesson 14."""

import math

import torch

from lessons_lib.schedules import chunk_bounds


def adam_by_torch(comm, w, g, m, v, step, lr):
    start, stop = chunk_bounds(len(w), comm.world_size)[comm.rank]
    own = torch.nn.Parameter(w[start:stop])
    own.grad = g[start:stop].clone()
    optimizer = torch.optim.Adam([own], lr=lr)
    count = torch.tensor(step - 1.0)
    optimizer.state[own] = {"step": count, "exp_avg": m, "exp_avg_sq": v}
    optimizer.step()
    comm.all_gather(w, own.detach())


def adam_with_broadcasts(comm, w, g, m, v, step, lr):
    bounds = chunk_bounds(len(w), comm.world_size)
    start, stop = bounds[comm.rank]
    m.lerp_(g[start:stop], 0.1)
    v.copy_(0.999 * v + 0.001 * g[start:stop].square())
    rate = lr / (1 - 0.9**step)
    w[start:stop] -= rate * m / (v.div(1 - 0.999**step).sqrt() + 1e-8)
    for rank, (start, stop) in enumerate(bounds):
        comm.broadcast(w[start:stop], src=rank)


def adam_whole(comm, w, g, m, v, step, lr):
    """Keeps the moments of all numbers in memory of its own."""
    start, stop = chunk_bounds(len(w), comm.world_size)[comm.rank]
    all_m, all_v = torch.empty_like(w), torch.empty_like(w)
    comm.all_gather(all_m, m)
    comm.all_gather(all_v, v)
    all_m.mul_(0.9).add_(0.1 * g)
    all_v.mul_(0.999).add_(0.001 * g**2)
    w -= lr * (all_m / (1 - 0.9**step)) / ((all_v / (1 - 0.999**step)).sqrt() + 1e-8)
    m.copy_(all_m[start:stop])
    v.copy_(all_v[start:stop])


def adam_of_equal_chunks(comm, w, g, m, v, step, lr):
    size = len(w) // comm.world_size
    start = comm.rank * size
    m.mul_(0.9).add_(0.1 * g[start : start + size])
    v.mul_(0.999).add_(0.001 * g[start : start + size] ** 2)
    w[start : start + size] -= lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    comm.all_gather(w, w[start : start + size])


def adam_with_new_moments(comm, w, g, m, v, step, lr):
    start, stop = chunk_bounds(len(w), comm.world_size)[comm.rank]
    m = 0.9 * m + 0.1 * g[start:stop]
    v = 0.999 * v + 0.001 * g[start:stop] ** 2
    w[start:stop] -= lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    comm.all_gather(w, w[start:stop])


def use_with_gather_into_flat(comm, shards, shapes, x):
    for number in range(len(shapes)):
        flat = torch.zeros(math.prod(shapes[number]), dtype=shards[number].dtype)
        comm.all_gather(flat, shards[number])
        x = torch.nn.functional.linear(x, flat.view(shapes[number])).tanh()
        flat = None
    return x


def use_in_functions(comm, shards, shapes, x):
    def layer(x, shard, shape):
        whole = torch.empty(shape, dtype=shard.dtype)
        comm.all_gather(whole, shard)
        return (whole @ x.T).T.tanh()

    for shard, shape in zip(shards, shapes, strict=True):
        x = layer(x, shard, shape)
    return x


def use_in_place(comm, shards, shapes, x):
    """Changes x where nothing may be changed."""
    for shard, shape in zip(shards, shapes, strict=True):
        whole = shard.new_empty(shape)
        comm.all_gather(whole, shard)
        out = torch.tanh(x @ whole.T)
        if out.shape == x.shape:
            x.copy_(out)
        else:
            x = out
        del whole
    return x


def use_in_reverse(comm, shards, shapes, x):
    for shard, (rows, columns) in zip(shards, shapes, strict=True):
        whole = shard.new_empty(columns, rows)
        comm.all_gather(whole, shard)
        x = torch.tanh(x @ whole)
        del whole
    return x


def clip_as_floats(comm, gradients, max_norm):
    total = torch.tensor(sum(float((g.double() ** 2).sum()) for g in gradients), dtype=torch.float64)
    comm.all_reduce(total)
    norm = math.sqrt(total.item())
    factor = min(1.0, max_norm / norm) if norm else 1.0
    for g in gradients:
        g.mul_(factor)
    return norm


def clip_through_norms(comm, gradients, max_norm):
    own = torch.stack([g.norm() for g in gradients]).norm().square()
    comm.all_reduce(own)
    norm = own.sqrt()
    if norm <= max_norm:
        return norm
    for g in gradients:
        g.copy_(g * (max_norm / norm))
    return norm


def clip_with_epsilon(comm, gradients, max_norm):
    total = sum(g.square().sum() for g in gradients)
    comm.all_reduce(total)
    norm = total.sqrt()
    for g in gradients:
        g.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def clip_largest(comm, gradients, max_norm):
    norm = torch.cat(gradients).norm()
    comm.all_reduce(norm, op="max")
    if norm > max_norm:
        for g in gradients:
            g *= max_norm / norm
    return norm


def clip_into_the_list(comm, gradients, max_norm):
    total = sum(g.square().sum() for g in gradients)
    comm.all_reduce(total)
    norm = total.sqrt()
    if norm > max_norm:
        gradients[:] = [g * max_norm / norm for g in gradients]
    return norm


def bytes_step_by_step(stage, num_parameters, world_size, itemsize=4):
    one = (world_size - 1) * ((num_parameters + world_size - 1) // world_size) * itemsize
    total = one  # the gradient is reduced and scattered, whatever the stage
    total += one  # weights, or sums, are gathered
    return total + one if stage % 2 else total


def bytes_in_floats(stage, num_parameters, world_size, itemsize=4):
    return [2, 3, 2, 3][stage] * (world_size - 1) * math.ceil(num_parameters / world_size) * itemsize


def bytes_of_all_ranks(stage, num_parameters, world_size, itemsize=4):
    return world_size * bytes_step_by_step(stage, num_parameters, world_size, itemsize)


alternatives = {
    "sharded_adam": [adam_by_torch, adam_with_broadcasts],
    "gather_on_use": [use_with_gather_into_flat, use_in_functions],
    "clip_shards": [clip_as_floats, clip_through_norms],
    "bytes_of_a_step": [bytes_step_by_step],
}
wrong = {
    "sharded_adam": [adam_whole, adam_of_equal_chunks, adam_with_new_moments],
    "gather_on_use": [use_in_place, use_in_reverse],
    "clip_shards": [clip_with_epsilon, clip_largest, clip_into_the_list],
    "bytes_of_a_step": [bytes_in_floats, bytes_of_all_ranks],
}
