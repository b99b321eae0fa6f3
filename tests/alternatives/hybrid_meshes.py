"""Other answers to the exercises of lesson 18."""

import itertools
import math

import torch


def coordinates(sizes, rank):
    found = {}
    for axis in reversed(sizes):
        rank, found[axis] = divmod(rank, sizes[axis])
    return found


def groups_by_coordinates(sizes, axes):
    groups = {}
    for rank in range(math.prod(sizes.values())):
        at = coordinates(sizes, rank)
        groups.setdefault(tuple(at[axis] for axis in sizes if axis not in axes), []).append(rank)
    for group in groups.values():
        group.sort(key=lambda rank: [coordinates(sizes, rank)[axis] for axis in axes])
    return list(groups.values())


def groups_by_strides(sizes, axes):
    strides, stride = {}, 1
    for axis in reversed(sizes):
        strides[axis], stride = stride, stride * sizes[axis]

    def numbers(names):
        return [
            sum(strides[axis] * at for axis, at in zip(names, spot, strict=True))
            for spot in itertools.product(*(range(sizes[axis]) for axis in names))
        ]

    others = [axis for axis in sizes if axis not in axes]
    return [[start + step for step in numbers(axes)] for start in numbers(others)]


def groups_as_tensors(sizes, axes):
    return [torch.tensor(group) for group in groups_by_strides(sizes, axes)]


def groups_in_another_order(sizes, axes):
    return groups_by_strides(sizes, axes)[::-1]


def groups_of_neighbouring_coordinates(sizes, axes):
    """Every pair of neighbours instead of the whole group."""
    groups = groups_by_strides(sizes, axes)
    return [[a, b] for group in groups for a, b in itertools.pairwise(group)] or groups


def groups_with_the_axis_of_rank_0(sizes, axes):
    return groups_by_strides(sizes, axes)[:1]


def groups_without_those_of_one(sizes, axes):
    return [group for group in groups_by_strides(sizes, axes) if len(group) > 1]


def placed_by_recursion(sizes, traffic, node_size, fast, slow):
    world_size = math.prod(sizes.values())

    def cost_s(axis, links):
        return traffic[axis][0] * links.latency_s + traffic[axis][1] / links.bandwidth_Bps

    def best(left, span):
        found = (0.0, ())
        for i, axis in enumerate(left):
            reach = span * sizes[axis]
            links = fast if world_size <= node_size or node_size % reach == 0 else slow
            rest_s, order = best(left[:i] + left[i + 1 :], reach)
            if not found[1] or rest_s + cost_s(axis, links) < found[0]:
                found = rest_s + cost_s(axis, links), (*order, axis)
        return found

    return best(tuple(sizes), 1)[1]


def placed_by_groups(sizes, traffic, node_size, fast, slow):
    def time_s(order):
        total = 0.0
        for axis, (num_messages, size_bytes) in traffic.items():
            groups = groups_by_coordinates({name: sizes[name] for name in order}, (axis,))
            inside = all(group[0] // node_size == rank // node_size for group in groups for rank in group)
            links = fast if inside else slow
            total += num_messages * links.latency_s + size_bytes / links.bandwidth_Bps
        return total

    return min(itertools.permutations(reversed(sizes)), key=time_s)


def placed_by_the_gain(sizes, traffic, node_size, fast, slow):
    """Greedy: last the axis that fits and gains most on fast links, and so on."""
    left, order, span = set(sizes), [], 1

    def gain(axis):
        num_messages, size_bytes = traffic[axis]
        return num_messages * (slow.latency_s - fast.latency_s) + size_bytes * (
            1 / slow.bandwidth_Bps - 1 / fast.bandwidth_Bps
        )

    while left:
        fitting = [axis for axis in left if node_size % (span * sizes[axis]) == 0] or list(left)
        axis = max(fitting, key=gain)
        order.insert(0, axis)
        left.remove(axis)
        span *= sizes[axis]
    return tuple(order)


def placed_as_in_the_book(sizes, traffic, node_size, fast, slow):
    names = ["dp", "ep", "pp", "cp", "tp"]
    return tuple(sorted(sizes, key=lambda axis: names.index(axis) if axis in names else 0))


def placed_without_latency(sizes, traffic, node_size, fast, slow):
    return placed_by_groups(sizes, {axis: (0, size) for axis, (_, size) in traffic.items()}, node_size, fast, slow)


def placed_without_bytes(sizes, traffic, node_size, fast, slow):
    return placed_by_groups(sizes, {axis: (n, 0) for axis, (n, _) in traffic.items()}, node_size, fast, slow)


def placed_by_the_slowest_axis(sizes, traffic, node_size, fast, slow):
    """As if all axes sent at once."""

    def time_s(order):
        times = []
        for axis, (num_messages, size_bytes) in traffic.items():
            groups = groups_by_coordinates({name: sizes[name] for name in order}, (axis,))
            inside = all(group[0] // node_size == rank // node_size for group in groups for rank in group)
            links = fast if inside else slow
            times.append(num_messages * links.latency_s + size_bytes / links.bandwidth_Bps)
        return max(times)

    return min(itertools.permutations(sizes), key=time_s)


def placed_as_given(sizes, traffic, node_size, fast, slow):
    return tuple(sizes)


def placed_without_small_axes(sizes, traffic, node_size, fast, slow):
    order = placed_by_groups(sizes, traffic, node_size, fast, slow)
    return tuple(axis for axis in order if sizes[axis] > 1)


def bytes_of_parts(dp, pp, tp, num_layers, width, rows, context, itemsize):
    stream = rows * context * width * itemsize
    matrices = [width * width / tp] * 4 + [4 * width * width / tp] * 2
    per_rank = sum(matrices) * (num_layers // pp) * itemsize
    neighbours = 0 if pp == 1 else 1 if pp == 2 else 2

    def ring(num_ranks, size_bytes):
        return 2 * (num_ranks - 1) * size_bytes / num_ranks

    return {"dp": ring(dp, per_rank), "pp": neighbours * stream, "tp": num_layers // pp * 4 * ring(tp, stream)}


def bytes_in_another_order(*args):
    return dict(reversed(bytes_of_parts(*args).items()))


def bytes_rounded(*args):
    return {axis: int(size) // 8 * 8 for axis, size in bytes_of_parts(*args).items()}


def bytes_with_two_all_reduces(*args):
    found = bytes_of_parts(*args)
    return found | {"tp": found["tp"] / 2}


def bytes_of_every_stage(*args):
    found, pp = bytes_of_parts(*args), args[1]
    return found | {"pp": found["pp"] / min(pp - 1, 2) * 2 * (pp - 1) if pp > 1 else 0}


def bytes_of_positions_split_too(*args):
    found, tp = bytes_of_parts(*args), args[2]
    return found | {"pp": found["pp"] / tp}


def bytes_times_the_ranks(*args):
    return {axis: size * n for (axis, size), n in zip(bytes_of_parts(*args).items(), args, strict=False)}


def clipped_by_one_vector(mesh, gradients, max_norm):
    world_size = mesh.comm.world_size
    squares = [torch.zeros(1, dtype=torch.float64)]
    for gradient, axes in gradients:
        parts = math.prod(mesh.sizes[axis] for axis in axes)
        squares.append(torch.linalg.vector_norm(gradient.double()).reshape(1) ** 2 * parts / world_size)
    total = torch.cat(squares).sum().reshape(1)
    mesh.comm.all_reduce(total, op="sum")
    norm = float(total) ** 0.5
    factor = min(1.0, max_norm / norm) if norm else 1.0
    for gradient, _ in gradients:
        gradient *= factor
    return norm


def clipped_where_coordinates_are_0(mesh, gradients, max_norm):
    total = torch.zeros((), dtype=torch.float64)
    for gradient, axes in gradients:
        if all(at == 0 for axis, at in mesh.coordinates.items() if axis not in axes):
            total += (gradient.double() ** 2).sum()
    mesh.comm.all_reduce(total)
    norm = math.sqrt(total)
    for gradient, _ in gradients:
        if norm > max_norm:
            gradient.copy_(gradient * (max_norm / norm))
    return norm


def clipped_as_torch_does(mesh, gradients, max_norm):
    """torch adds 1e-6 to the norm."""
    norm = clipped_by_one_vector(mesh, gradients, math.inf)
    for gradient, _ in gradients:
        gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm


def clipped_one_by_one(mesh, gradients, max_norm):
    """One all-reduce for each gradient: ranks with other lists do not even agree."""
    total = 0.0
    for gradient, axes in gradients:
        one = gradient.double().square().sum() * math.prod(mesh.sizes[axis] for axis in axes) / mesh.comm.world_size
        mesh.comm.all_reduce(one)
        total += one.item()
    norm = total**0.5
    if norm > max_norm:
        for gradient, _ in gradients:
            gradient.mul_(max_norm / norm)
    return norm


def clipped_with_two_numbers(mesh, gradients, max_norm):
    total = torch.zeros(2, dtype=torch.float64)
    for gradient, axes in gradients:
        parts = math.prod(mesh.sizes[axis] for axis in axes)
        total[0] += gradient.double().square().sum() * parts / mesh.comm.world_size
    mesh.comm.all_reduce(total)
    norm = total[0].sqrt().item()
    if norm > max_norm:
        for gradient, _ in gradients:
            gradient.mul_(max_norm / norm)
    return norm


def clipped_in_new_tensors(mesh, gradients, max_norm):
    norm = clipped_by_one_vector(mesh, [(gradient.clone(), axes) for gradient, axes in gradients], max_norm)
    for k, (gradient, axes) in enumerate(gradients):
        gradients[k] = gradient * min(1.0, max_norm / max(norm, 1e-9)), axes
    return norm


def clipped_and_the_norm_as_it_is_now(mesh, gradients, max_norm):
    return min(clipped_by_one_vector(mesh, gradients, max_norm), max_norm)


def clipped_each_by_its_own_norm(mesh, gradients, max_norm):
    norm = clipped_by_one_vector(mesh, gradients, math.inf)
    for gradient, _ in gradients:
        own = gradient.double().norm().item()
        if own > max_norm:
            gradient.mul_(max_norm / own)
    return norm


def clipped_without_stages(mesh, gradients, max_norm):
    """Divides by all other axes but pp, as if no stage were a copy."""
    total = torch.zeros((), dtype=torch.float64)
    for gradient, axes in gradients:
        total += gradient.double().square().sum() / math.prod(
            size for axis, size in mesh.sizes.items() if axis not in (*axes, "pp")
        )
    mesh.comm.all_reduce(total)
    norm = total.sqrt().item()
    if norm > max_norm:
        for gradient, _ in gradients:
            gradient.mul_(max_norm / norm)
    return norm


alternatives = {
    "mesh_groups": [groups_by_coordinates, groups_by_strides],
    "place_axes": [placed_by_recursion, placed_by_groups],
    "bytes_per_axis": [bytes_of_parts, bytes_in_another_order],
    "clip_over_mesh": [clipped_by_one_vector, clipped_where_coordinates_are_0],
}
wrong = {
    "mesh_groups": [
        groups_as_tensors,
        groups_in_another_order,
        groups_of_neighbouring_coordinates,
        groups_with_the_axis_of_rank_0,
        groups_without_those_of_one,
    ],
    "place_axes": [
        placed_by_the_gain,
        placed_as_in_the_book,
        placed_without_latency,
        placed_without_bytes,
        placed_by_the_slowest_axis,
        placed_as_given,
        placed_without_small_axes,
    ],
    "bytes_per_axis": [
        bytes_rounded,
        bytes_with_two_all_reduces,
        bytes_of_every_stage,
        bytes_of_positions_split_too,
        bytes_times_the_ranks,
    ],
    "clip_over_mesh": [
        clipped_as_torch_does,
        clipped_one_by_one,
        clipped_with_two_numbers,
        clipped_in_new_tensors,
        clipped_and_the_norm_as_it_is_now,
        clipped_each_by_its_own_norm,
        clipped_without_stages,
    ],
}
