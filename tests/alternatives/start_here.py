"""Other answers to the exercises of lesson 00."""

import time

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


alternatives = {
    "around_the_table": [around_the_table_with_one_loop_over_messages],
    "exchange": [exchange_by_flipping_the_last_bit, exchange_with_a_barrier_between],
}
wrong = {
    "around_the_table": [around_the_table_adding_after_the_throw, around_the_table_once],
    "exchange": [exchange_in_two_halves, exchange_with_the_opposite_rank],
}
