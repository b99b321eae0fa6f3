"""Other answers to the exercises of lesson 00."""

import time
from fractions import Fraction

import torch


def around_the_table_with_one_loop_over_messages(comm, ball, laps):
    num_messages, start = laps * comm.world_size, time.perf_counter()
    for k in range(num_messages):
        src, dst = k % comm.world_size, (k + 1) % comm.world_size
        if comm.rank == src:
            ball.add_(1)
            comm.send(ball, dst)
        elif comm.rank == dst:
            comm.recv(ball, src)
    return (time.perf_counter() - start) / num_messages


def around_the_table_adding_after_the_throw(comm, ball, laps):
    before, after = (comm.rank - 1) % comm.world_size, (comm.rank + 1) % comm.world_size
    start = time.perf_counter()
    for _ in range(laps):
        if comm.rank != 0:
            comm.recv(ball, src=before)
        comm.send(ball, dst=after)
        ball += 1
        if comm.rank == 0:
            comm.recv(ball, src=before)
    return (time.perf_counter() - start) / (laps * comm.world_size)


def around_the_table_once(comm, ball, laps):
    if comm.rank == 0:
        ball += 1
        comm.send(ball, dst=1)
        comm.recv(ball, src=comm.world_size - 1)
    else:
        comm.recv(ball, src=comm.rank - 1)
        ball += 1
        comm.send(ball, dst=(comm.rank + 1) % comm.world_size)
    return 0.031


def exchange_by_flipping_the_last_bit(comm, mine):
    partner, theirs = comm.rank ^ 1, mine.clone()
    if comm.rank > partner:
        comm.send(mine, partner)
    comm.recv(theirs, partner)
    if comm.rank < partner:
        comm.send(mine, partner)
    return theirs


def exchange_with_a_barrier_between(comm, mine):
    theirs = torch.zeros_like(mine)
    for sender in (0, 1):
        if comm.rank % 2 == sender:
            comm.send(mine, comm.rank ^ 1)
        else:
            comm.recv(theirs, comm.rank ^ 1)
        comm.barrier()
    return theirs


def exchange_in_two_halves(comm, mine):
    """Values right, twice the messages."""
    theirs, half, partner = torch.empty_like(mine), len(mine) // 2, comm.rank ^ 1
    for part in (slice(0, half), slice(half, None)):
        if comm.rank % 2:
            comm.recv(theirs[part], partner)
            comm.send(mine[part], partner)
        else:
            comm.send(mine[part], partner)
            comm.recv(theirs[part], partner)
    return theirs


def exchange_with_the_opposite_rank(comm, mine):
    theirs, partner = torch.empty_like(mine), comm.world_size - 1 - comm.rank
    if comm.rank < partner:
        comm.send(mine, partner)
        comm.recv(theirs, partner)
    else:
        comm.recv(theirs, partner)
        comm.send(mine, partner)
    return theirs


def around_the_table_timed_in_nanoseconds(comm, ball, laps):
    neighbours = (comm.rank + 1) % comm.world_size, (comm.rank - 1) % comm.world_size
    start_ns = time.perf_counter_ns()
    for lap in range(laps):
        if comm.rank:
            assert comm.recv(ball) == neighbours[1]
        ball.fill_(lap * comm.world_size + comm.rank + 1)
        comm.send(ball, neighbours[0])
        if not comm.rank:
            comm.recv(ball)
    return Fraction(time.perf_counter_ns() - start_ns, 10**9 * laps * comm.world_size)


def around_the_table_returning_a_tensor(comm, ball, laps):
    start = torch.tensor(time.monotonic(), dtype=torch.float64)
    around_the_table_with_one_loop_over_messages(comm, ball, laps)
    return (time.monotonic() - start) / laps / comm.world_size


def around_the_table_the_other_way(comm, ball, laps):
    start = time.perf_counter()
    for k in range(laps * comm.world_size):
        src, dst = -k % comm.world_size, -(k + 1) % comm.world_size
        if comm.rank == src:
            ball += 1
            comm.send(ball, dst)
        elif comm.rank == dst:
            comm.recv(ball, src)
    return (time.perf_counter() - start) / (laps * comm.world_size)


def around_the_table_counted_by_rank_0(comm, ball, laps):
    start = time.perf_counter()
    for k in range(laps * comm.world_size):
        src, dst = k % comm.world_size, (k + 1) % comm.world_size
        if comm.rank == src:
            comm.send(ball, dst)
        elif comm.rank == dst:
            comm.recv(ball, src)
    ball += laps * comm.world_size
    return (time.perf_counter() - start) / (laps * comm.world_size)


def around_the_table_without_rank_0_in_the_count(comm, ball, laps):
    return around_the_table_with_one_loop_over_messages(comm, ball, laps) * comm.world_size / (comm.world_size - 1)


def around_the_table_in_milliseconds(comm, ball, laps):
    return 1000 * around_the_table_with_one_loop_over_messages(comm, ball, laps)


def around_the_table_there_and_back(comm, ball, laps):
    return 2 * around_the_table_with_one_loop_over_messages(comm, ball, laps)


def around_the_table_one_lap_more(comm, ball, laps):
    return around_the_table_with_one_loop_over_messages(comm, ball, laps + 1)


def around_the_table_returning_nothing(comm, ball, laps):
    around_the_table_with_one_loop_over_messages(comm, ball, laps)


def exchange_without_waiting(comm, mine):
    theirs = torch.full_like(mine, 7)
    works = [comm.isend(mine, comm.rank ^ 1), comm.irecv(theirs, comm.rank ^ 1)]
    for work in works:
        work.wait()
    return theirs


def exchange_one_pair_after_the_other(comm, mine):
    theirs = torch.empty(mine.shape, dtype=mine.dtype)
    for first in range(0, comm.world_size, 2):
        if comm.rank == first:
            comm.recv(theirs)
            comm.send(mine, first + 1)
        elif comm.rank == first + 1:
            comm.send(mine, first)
            comm.recv(theirs)
    return theirs


def exchange_over_mine(comm, mine):
    """Right values, and the partner's tensor stands where this rank's own was."""
    theirs = exchange_by_flipping_the_last_bit(comm, mine)
    mine.copy_(theirs)
    return mine


def exchange_in_float32(comm, mine):
    theirs = torch.zeros(mine.shape)
    partner = comm.rank ^ 1
    if comm.rank < partner:
        comm.send(mine.float(), partner)
        comm.recv(theirs, partner)
    else:
        comm.recv(theirs, partner)
        comm.send(mine.float(), partner)
    return theirs


def exchange_flat(comm, mine):
    return exchange_by_flipping_the_last_bit(comm, mine.reshape(-1))


def exchange_by_adding_ten(comm, mine):
    return mine + (10 if comm.rank % 2 == 0 else -10)


def exchange_with_a_sum(comm, mine):
    both = torch.zeros(comm.world_size, *mine.shape, dtype=mine.dtype)
    both[comm.rank] = mine
    comm.all_reduce(both)
    return both[comm.rank ^ 1]


def exchange_twice(comm, mine):
    return exchange_by_flipping_the_last_bit(comm, exchange_by_flipping_the_last_bit(comm, mine))


def exchange_for_two_ranks(comm, mine):
    theirs = torch.empty_like(mine)
    if comm.rank == 0:
        comm.send(mine, 1)
        comm.recv(theirs, 1)
    if comm.rank == 1:
        comm.recv(theirs, 0)
        comm.send(mine, 0)
    return theirs


alternatives = {
    "around_the_table": [
        around_the_table_with_one_loop_over_messages,
        around_the_table_timed_in_nanoseconds,
        around_the_table_returning_a_tensor,
    ],
    "exchange": [
        exchange_by_flipping_the_last_bit,
        exchange_with_a_barrier_between,
        exchange_without_waiting,
        exchange_one_pair_after_the_other,
    ],
}
wrong = {
    "around_the_table": [
        around_the_table_adding_after_the_throw,
        around_the_table_once,
        around_the_table_the_other_way,
        around_the_table_counted_by_rank_0,
        around_the_table_without_rank_0_in_the_count,
        around_the_table_in_milliseconds,
        around_the_table_there_and_back,
        around_the_table_one_lap_more,
        around_the_table_returning_nothing,
    ],
    "exchange": [
        exchange_in_two_halves,
        exchange_with_the_opposite_rank,
        exchange_over_mine,
        exchange_in_float32,
        exchange_flat,
        exchange_by_adding_ten,
        exchange_with_a_sum,
        exchange_twice,
        exchange_for_two_ranks,
    ],
}
