"""Other answers to the exercises of lesson 11."""

import itertools

import numpy as np
import torch

from lessons_lib import schedules
from lessons_lib.schedules import Message, Schedule

# --- right ------------------------------------------------------------------------------------------------------------


def reduce_scatter_chunk_by_chunk(world_size):
    rounds = [[] for _ in range(world_size - 1)]
    for chunk in range(world_size):
        src = chunk
        for messages in rounds:
            src = (src + 1) % world_size
            messages.append((src, (src + 1) % world_size, chunk, "add"))
    return rounds


def reduce_scatter_of_the_library(world_size):
    return schedules.ring_reduce_scatter(world_size).rounds


def reduce_scatter_with_numpy(world_size):
    ranks = np.arange(world_size)
    for k in range(1, world_size):
        columns = ranks, np.roll(ranks, -1), np.roll(ranks, k), ["add"] * world_size
        yield tuple(zip(*columns, strict=True))


def all_gather_by_memory(world_size):
    newest, rounds = list(range(world_size)), []
    for _ in range(world_size - 1):
        rounds.append([Message(r, (r + 1) % world_size, newest[r], "copy") for r in range(world_size)])
        newest = [newest[r - 1] for r in range(world_size)]
    return rounds


def all_gather_from_the_reduce_scatter(world_size):
    return [
        [m._replace(chunk=(m.chunk + 1) % world_size, op="copy") for m in messages[::-1]]
        for messages in schedules.ring_reduce_scatter(world_size).rounds
    ]


def cut_with_the_remainder_first(numel, num_chunks):
    size, rest = divmod(numel, num_chunks)
    bounds, start = [], 0
    for k in range(num_chunks):
        stop = start + size + (k < rest)
        bounds.append([start, stop])
        start = stop
    return bounds


def cut_rounded_up(numel, num_chunks):
    cuts = [-(-k * numel // num_chunks) for k in range(num_chunks + 1)]
    return ((cuts[k], cuts[k + 1]) for k in range(num_chunks))


def cut_with_numpy(numel, num_chunks):
    cuts = np.arange(num_chunks + 1) * numel // num_chunks
    return list(itertools.pairwise(cuts))


def cut_with_tensors(numel, num_chunks):
    stops = torch.tensor([len(part) for part in torch.arange(numel).tensor_split(num_chunks)]).cumsum(0)
    return list(zip([0, *stops[:-1]], stops, strict=True))


def cut_by_recursion(numel, num_chunks):
    if num_chunks == 1:
        return [(0, numel)]
    stop = numel - numel // num_chunks
    return [*cut_by_recursion(stop, num_chunks - 1), (stop, numel)]


def cut_at_rounded_numbers(numel, num_chunks):
    return list(itertools.pairwise(round(k * numel / num_chunks) for k in range(num_chunks + 1)))


def halving_doubling_by_low_bits(world_size):
    halving, distance = [], 1
    while distance < world_size:
        halving.append(
            [
                Message(r, r ^ distance, c, "add")
                for r in range(world_size)
                for c in range(world_size)
                if (c ^ r ^ distance) % (2 * distance) == 0
            ]
        )
        distance *= 2
    doubling = [[Message(m.dst, m.src, m.chunk, "copy") for m in swap] for swap in reversed(halving)]
    return halving + doubling


def halving_doubling_of_the_library(world_size):
    return schedules.halving_doubling(world_size).rounds


def halving_doubling_by_recursion(world_size, first=0, size=None):
    size = size or world_size
    if size == 1:
        return []
    half, low, high = size // 2, first, first + size // 2
    swap = [(r, r ^ half, c, "add") for r in range(low, high) for c in range(high, high + half)]
    swap += [(r, r ^ half, c, "add") for r in range(high, high + half) for c in range(low, high)]
    left = halving_doubling_by_recursion(world_size, low, half)
    right = halving_doubling_by_recursion(world_size, high, half)
    inner = [a + b for a, b in zip(left, right, strict=True)]
    return [swap, *inner, [(dst, src, chunk, "copy") for src, dst, chunk, _ in swap]]


# --- wrong ------------------------------------------------------------------------------------------------------------


def a_flat_list(world_size):
    return [Message(r, (r + 1) % world_size, r, "add") for r in range(world_size)]


def a_whole_ring(world_size):
    return schedules.ring(world_size).rounds


def every_other_rank_in_a_round(world_size):
    N = world_size
    return [
        [Message(r, (r + 1) % N, (r - k - 1) % N, "add") for r in range(N) if r % 2 == parity]
        for k in range(N - 1)
        for parity in (0, 1)
    ]


def reduce_scatter_one_chain_after_the_other(world_size):
    N = world_size
    return [[Message((c + k + 1) % N, (c + k + 2) % N, c, "add")] for c in range(N) for k in range(N - 1)]


def reduce_scatter_without_wrapping(world_size):
    N = world_size
    return [[Message(r, r + 1, (r - k - 1) % N, "add") for r in range(N)] for k in range(N - 1)]


def reduce_scatter_with_negative_chunks(world_size):
    N = world_size
    return [[Message(r, (r + 1) % N, r - k - 1, "add") for r in range(N)] for k in range(N - 1)]


def reduce_scatter_with_fractions(world_size):
    N = world_size
    return [[Message(r, (r + 1) % N, float((r - k - 1) % N), "add") for r in range(N)] for k in range(N - 1)]


def reduce_scatter_as_a_schedule(world_size):
    return Schedule(world_size, world_size, reduce_scatter_of_the_library(world_size), collective="reduce_scatter")


def reduce_scatter_one_round_short(world_size):
    return schedules.ring_reduce_scatter(world_size).rounds[:-1]


def reduce_scatter_with_an_idle_round(world_size):
    return [*schedules.ring_reduce_scatter(world_size).rounds, []]


def reduce_scatter_for_four_ranks(world_size):
    return [[Message(r, (r + 1) % 4, (r - k - 1) % 4, "add") for r in range(4)] for k in range(3)]


def reduce_scatter_in_both_directions(world_size):
    N = world_size
    left = [[Message(r, (r - 1) % N, (r + k + 1) % N, "add") for r in range(N)] for k in range(N - 1)]
    right = schedules.ring_reduce_scatter(world_size).rounds
    return [
        [m for m in a if m.chunk % 2] + [m for m in b if m.chunk % 2 == 0] for a, b in zip(left, right, strict=True)
    ]


def all_gather_one_chunk_ahead(world_size):
    N = world_size
    return [[Message(r, (r + 1) % N, (r - k + 1) % N, "copy") for r in range(N)] for k in range(N - 1)]


def all_gather_by_a_broadcast_each(world_size):
    N = world_size
    return [[Message(c, r, c, "copy") for r in range(N) if r != c] for c in range(N)]


def all_gather_one_chunk_after_the_other(world_size):
    N = world_size
    return [[Message((c + k) % N, (c + k + 1) % N, c, "copy")] for c in range(N) for k in range(N - 1)]


def all_gather_one_round_short(world_size):
    N = world_size
    return [[Message(r, (r + 1) % N, (r - k) % N, "copy") for r in range(N)] for k in range(N - 2)]


def all_gather_by_a_star(world_size):
    N = world_size
    to_0 = [Message(r, 0, r, "copy") for r in range(1, N)]
    return [to_0, [Message(0, r, c, "copy") for r in range(1, N) for c in range(N) if c != r]] if N > 1 else []


def all_gather_by_doubling(world_size):
    N, rounds, have = world_size, [], 1
    while have < N:
        rounds.append(
            [Message(r, (r + have) % N, (r - c) % N, "copy") for r in range(N) for c in range(min(have, N - have))]
        )
        have *= 2
    return rounds


def cut_backwards(numel, num_chunks):
    return schedules.chunk_bounds(numel, num_chunks)[::-1]


def cut_with_rounded_sizes(numel, num_chunks):
    size = round(numel / num_chunks)
    return [(k * size, k * size + size) for k in range(num_chunks)]


def cut_with_whole_floats(numel, num_chunks):
    return [(float(start), float(stop)) for start, stop in schedules.chunk_bounds(numel, num_chunks)]


def cut_with_the_middle_swollen(numel, num_chunks):
    size, rest = divmod(numel, num_chunks)
    sizes = [size + rest * (k == num_chunks // 2) for k in range(num_chunks)]
    return list(itertools.pairwise([0, *itertools.accumulate(sizes)]))


def cut_as_slices(numel, num_chunks):
    return [slice(start, stop) for start, stop in schedules.chunk_bounds(numel, num_chunks)]


def cut_as_starts_and_sizes(numel, num_chunks):
    return [(start, stop - start) for start, stop in schedules.chunk_bounds(numel, num_chunks)]


def cut_as_one_flat_list(numel, num_chunks):
    return [number for bounds in schedules.chunk_bounds(numel, num_chunks) for number in bounds]


def cut_without_empty_chunks(numel, num_chunks):
    return [(start, stop) for start, stop in schedules.chunk_bounds(numel, num_chunks) if stop > start]


def cut_with_empty_chunks_first(numel, num_chunks):
    size = -(-numel // num_chunks)
    cuts = [max(0, numel - k * size) for k in range(num_chunks, -1, -1)]
    return list(itertools.pairwise(cuts))


def cut_for_ever(numel, num_chunks):
    return ((k * numel // num_chunks, (k + 1) * numel // num_chunks) for k in itertools.count())


def halving_doubling_without_the_last_swap(world_size):
    rounds = schedules.halving_doubling(world_size).rounds
    return rounds[: len(rounds) // 2 - 1] + rounds[len(rounds) // 2 + 1 :]


def halving_doubling_with_idle_rounds(world_size):
    return [messages for swap in schedules.halving_doubling(world_size).rounds for messages in (swap, [])]


def halving_doubling_up_and_down_a_tree(world_size):
    N, distances = world_size, [world_size >> k for k in range(1, world_size.bit_length())]
    up = [[Message(r + d, r, c, "add") for r in range(0, N, 2 * d) for c in range(N)] for d in distances]
    return up + [[m._replace(src=m.dst, dst=m.src, op="copy") for m in messages] for messages in reversed(up)]


def halving_doubling_without_partners(world_size):
    """The same rounds and bytes, from each rank to one and from another: no swaps."""
    N, rounds, distance = world_size, [], world_size // 2
    while distance:
        rounds.append(
            [Message(r, (r + distance) % N, (r + distance + c) % N, "add") for r in range(N) for c in range(distance)]
        )
        distance //= 2
    back = [[Message(m.dst, m.src, m.chunk, "copy") for m in messages] for messages in reversed(rounds)]
    return rounds + back


def halving_doubling_by_whole_tensors(world_size):
    N, rounds, distance = world_size, [], 1
    while distance < N:
        rounds.append([Message(r, r ^ distance, c, "add") for r in range(N) for c in range(N)])
        distance *= 2
    return rounds


def halving_doubling_for_eight_ranks(world_size):
    return schedules.halving_doubling(min(world_size, 8)).rounds


def halving_doubling_chunk_by_chunk(world_size):
    return [[message] for swap in schedules.halving_doubling(world_size).rounds for message in swap]


def direct(world_size):
    return schedules.direct(world_size).rounds


alternatives = {
    "reduce_scatter": [reduce_scatter_chunk_by_chunk, reduce_scatter_of_the_library, reduce_scatter_with_numpy],
    "all_gather": [all_gather_by_memory, all_gather_from_the_reduce_scatter],
    "cut": [
        cut_with_the_remainder_first,
        cut_rounded_up,
        cut_with_numpy,
        cut_with_tensors,
        cut_by_recursion,
        cut_at_rounded_numbers,
    ],
    "halving_doubling": [
        halving_doubling_by_low_bits,
        halving_doubling_of_the_library,
        halving_doubling_by_recursion,
    ],
}
wrong = {
    "reduce_scatter": [
        a_flat_list,
        a_whole_ring,
        every_other_rank_in_a_round,
        reduce_scatter_one_chain_after_the_other,
        reduce_scatter_without_wrapping,
        reduce_scatter_with_negative_chunks,
        reduce_scatter_with_fractions,
        reduce_scatter_as_a_schedule,
        reduce_scatter_one_round_short,
        reduce_scatter_with_an_idle_round,
        reduce_scatter_for_four_ranks,
        reduce_scatter_in_both_directions,
    ],
    "all_gather": [
        a_whole_ring,
        all_gather_one_chunk_ahead,
        all_gather_by_a_broadcast_each,
        all_gather_one_chunk_after_the_other,
        all_gather_one_round_short,
        all_gather_by_a_star,
        all_gather_by_doubling,
    ],
    "cut": [
        cut_backwards,
        cut_with_rounded_sizes,
        cut_with_whole_floats,
        cut_with_the_middle_swollen,
        cut_as_slices,
        cut_as_starts_and_sizes,
        cut_as_one_flat_list,
        cut_without_empty_chunks,
        cut_with_empty_chunks_first,
        cut_for_ever,
    ],
    "halving_doubling": [
        a_whole_ring,
        direct,
        halving_doubling_without_the_last_swap,
        halving_doubling_with_idle_rounds,
        halving_doubling_up_and_down_a_tree,
        halving_doubling_without_partners,
        halving_doubling_by_whole_tensors,
        halving_doubling_for_eight_ranks,
        halving_doubling_chunk_by_chunk,
    ],
}
