"""Other answers to the exercises of lesson 11."""

from lessons_lib import schedules
from lessons_lib.schedules import Message, Schedule


def reduce_scatter_to_the_left(world_size):
    N = world_size
    return [[Message(r, (r - 1) % N, (r + k + 1) % N, "add") for r in range(N)] for k in range(N - 1)]


def reduce_scatter_chunk_by_chunk(world_size):
    rounds = [[] for _ in range(world_size - 1)]
    for chunk in range(world_size):
        src = chunk
        for messages in rounds:
            src = (src + 1) % world_size
            messages.append((src, (src + 1) % world_size, chunk, "add"))
    return rounds


def reduce_scatter_of_the_library(world_size):
    return schedules.ring_reduce_scatter(world_size)


def all_gather_to_the_left(world_size):
    N = world_size
    return [[Message(r, (r - 1) % N, (r + k) % N, "copy") for r in range(N)] for k in range(N - 1)]


def all_gather_by_memory(world_size):
    newest, rounds = list(range(world_size)), []
    for _ in range(world_size - 1):
        rounds.append([Message(r, (r + 1) % world_size, newest[r], "copy") for r in range(world_size)])
        newest = [newest[r - 1] for r in range(world_size)]
    return Schedule(world_size, world_size, rounds)


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


def all_gather_one_chunk_ahead(world_size):
    N = world_size
    return [[Message(r, (r + 1) % N, (r - k + 1) % N, "copy") for r in range(N)] for k in range(N - 1)]


def all_gather_by_a_broadcast_each(world_size):
    N = world_size
    return [[Message(c, r, c, "copy") for r in range(N) if r != c] for c in range(N)]


def cut_backwards(numel, num_chunks):
    return schedules.chunk_bounds(numel, num_chunks)[::-1]


def cut_with_floats(numel, num_chunks):
    size = round(numel / num_chunks)
    return [(k * size, k * size + size) for k in range(num_chunks)]


def halving_doubling_without_the_last_swap(world_size):
    rounds = schedules.halving_doubling(world_size).rounds
    return rounds[: len(rounds) // 2 - 1] + rounds[len(rounds) // 2 + 1 :]


def halving_doubling_with_idle_rounds(world_size):
    return [messages for swap in schedules.halving_doubling(world_size).rounds for messages in (swap, [])]


alternatives = {
    "reduce_scatter": [
        reduce_scatter_to_the_left,
        reduce_scatter_chunk_by_chunk,
        reduce_scatter_of_the_library,
    ],
    "all_gather": [all_gather_to_the_left, all_gather_by_memory],
    "cut": [cut_with_the_remainder_first, cut_rounded_up],
    "halving_doubling": [halving_doubling_by_low_bits, halving_doubling_of_the_library],
}
wrong = {
    "reduce_scatter": [a_flat_list, a_whole_ring, every_other_rank_in_a_round],
    "all_gather": [a_whole_ring, all_gather_one_chunk_ahead, all_gather_by_a_broadcast_each],
    "cut": [cut_backwards, cut_with_floats],
    "halving_doubling": [
        a_whole_ring,
        halving_doubling_without_the_last_swap,
        halving_doubling_with_idle_rounds,
    ],
}
