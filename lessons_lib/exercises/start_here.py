"""Exercises of lesson 00: a ball passed round a table, and a deadlock to mend."""

import numbers
import time

import torch

from lessons_lib import Links
from lessons_lib.exercises.cases import spread
from lessons_lib.exercises.compare import as_number
from lessons_lib.exercises.core import Exercise, Outcome, edit, on_ranks

LATENCY_S = 0.015  # times the number of ranks, emulated: long against anything a busy machine adds to it


def around_the_table(comm, ball, laps):
    """Pass `ball` round, rank 0 → 1 → … → N − 1 → 0, `laps` times; rank 0 returns seconds a message.

    comm: the communicator of N ≥ 2 ranks. ball: a tensor with one number in it, 0 on every rank at the start.
    Each rank adds 1 to the ball before it hands it on, so rank 0 ends with the number of messages: laps · N.
    The seconds are those of the whole game, divided by the number of messages. laps is at least 1.
    What the other ranks return does not matter.
    """
    before, after = (comm.rank - 1) % comm.world_size, (comm.rank + 1) % comm.world_size
    start = time.perf_counter()
    for _ in range(laps):
        if comm.rank != 0:
            comm.recv(ball, src=before)
        ball += 1
        comm.send(ball, dst=after)
        if comm.rank == 0:
            comm.recv(ball, src=before)
    return (time.perf_counter() - start) / (laps * comm.world_size)


def _play(comm, fn, laps):
    """What a rank holds at the end, returns and throws, and how long it played."""
    ball, throws, start_s = torch.zeros(1), [], time.perf_counter()

    def noted(send):
        def noted_send(tensor, dst):
            throws.append(f"{tensor.tolist()} to rank {dst}")
            return send(tensor, dst)

        return noted_send

    comm.send, comm.isend = noted(comm.send), noted(comm.isend)
    seconds = fn(comm, ball, laps)
    return ball.item(), seconds, throws, time.perf_counter() - start_s


def _table(fn, world_size, laps):
    """What rank 0 holds and says, and the way of the ball."""
    latency_s = LATENCY_S * world_size
    ran = on_ranks(_play, fn, laps, world_size=world_size, links=Links(latency_s=latency_s))
    ball, seconds, _, played_s = ran.value["rank 0"]
    throws = {f"{rank} throws": throws for rank, (_, _, throws, _) in ran.value.items()}
    returned = _in_words(seconds, world_size, laps, latency_s, played_s)
    return Outcome({**throws, "ball on rank 0": ball, "rank 0 returned": returned}, ran.cost)


def _in_words(seconds, world_size, laps, latency_s, played_s):
    """The time, as what takes that long; what is no time stays as it is.

    An emulated message is never faster than its latency, and nothing that was timed takes longer than was played.
    """
    seconds = as_number(seconds)
    if not isinstance(seconds, numbers.Real) or isinstance(seconds, bool):
        return seconds
    message_s = played_s / (laps * world_size)
    known = {
        "the time of a message": 1,
        "the time of a lap": world_size,
        "the time of the whole game": laps * world_size,
    }
    for words, count in known.items():
        if count * latency_s <= seconds <= 1.02 * count * message_s:
            return words
    return "less time than a message takes" if seconds < latency_s else "the time of no whole number of messages"


def _own_ball_each(comm, ball, laps):
    """What a rank catches must be what it hands on: receive into `ball` itself, not into another tensor."""
    before, after = (comm.rank - 1) % comm.world_size, (comm.rank + 1) % comm.world_size
    start = time.perf_counter()
    for _ in range(laps):
        caught = torch.zeros(1)
        if comm.rank != 0:
            comm.recv(caught, src=before)
        ball += 1
        comm.send(ball, dst=after)
        if comm.rank == 0:
            comm.recv(caught, src=before)
    return (time.perf_counter() - start) / (laps * comm.world_size)


def _always_with_rank_0(comm, ball, laps):
    """Here the ball comes back to rank 0 after every throw. Hand it to the next neighbour, (rank + 1) % N."""
    start = time.perf_counter()
    for _ in range(laps):
        for other in range(1, comm.world_size):
            if comm.rank == 0:
                ball += 1
                comm.send(ball, dst=other)
                comm.recv(ball, src=other)
            elif comm.rank == other:
                comm.recv(ball, src=0)
                ball += 1
                comm.send(ball, dst=0)
    return (time.perf_counter() - start) / (2 * laps * (comm.world_size - 1))


around_the_table = Exercise(
    around_the_table,
    cases=[(3, 3), (2, 4), (5, 1)],
    outcome=_table,
    mistakes=[
        edit(
            "(laps * comm.world_size)",
            "laps",
            "That is the time of a whole lap: N messages follow one another in it. Divide by N too.",
        ),
        edit(
            " / (laps * comm.world_size)",
            "",
            "That is the time of the whole game. How many messages travelled in it?",
        ),
        edit(
            "comm.rank != 0",
            "False",
            "comm.rank == 0",
            "True",
            "Every rank sends before it receives, so nobody is ready to take a ball. One rank opens the game; the "
            "others wait for the ball before they send.",
        ),
        edit(
            "before, after",
            "after, before",
            "The ball goes round the other way: it comes from (comm.rank - 1) % N and goes to (comm.rank + 1) % N.",
        ),
        edit(
            "ball += 1",
            "ball = ball + 1",
            "`ball = ball + 1` makes another tensor, and the one that was given stays at 0. `ball += 1` changes it.",
        ),
        _own_ball_each,
        _always_with_rank_0,
    ],
    hints=[
        "With two ranks this is the ping-pong of the lesson. Which rank opens, and what do the others do first?",
        "The neighbours are (comm.rank - 1) % comm.world_size and (comm.rank + 1) % comm.world_size.",
        "In a lap rank 0 does: add, send, recv. The others do: recv, add, send. A game has laps · N messages.",
    ],
)


def exchange(comm, mine):
    """Swap tensors with a partner, 0 with 1, 2 with 3, and so on; return what the partner had.

    comm: the communicator of an even number of ranks. mine: this rank's tensor, which must stay as it is; the
    partner's has the same shape and dtype, any of them. One message each way is enough.
    """
    is_even = comm.rank % 2 == 0
    partner = comm.rank + 1 if is_even else comm.rank - 1
    theirs = torch.empty_like(mine)
    if is_even:
        comm.send(mine, partner)
        comm.recv(theirs, partner)
    else:
        comm.recv(theirs, partner)
        comm.send(mine, partner)
    return theirs


def _swap(comm, fn, shape, dtype):
    large = torch.randint(2**62, shape, generator=torch.Generator().manual_seed(comm.rank))  # no float holds all digits
    return fn(comm, spread(large.to(dtype)))


def _exchanged(fn, world_size, shape, dtype):
    return on_ranks(_swap, fn, shape, dtype, world_size=world_size)


exchange = Exercise(
    exchange,
    cases=[(2, (3,), torch.float32), (4, (2, 2), torch.int64), (6, (), torch.float64), (2, (2, 0), torch.bool)],
    outcome=_exchanged,
    mistakes=[
        edit(
            "if is_even:",
            "if True:",
            "Both partners send first, and a send waits until it is received. Let one of the two receive first.",
        ),
        edit(
            "if is_even:",
            "if False:",
            "Both partners wait for a message that neither has sent. Let one of the two send first.",
        ),
        edit(
            "if is_even:",
            "if comm.rank == 0:",
            "Two ranks can do it now; with four, ranks 2 and 3 are still alike. Even against odd tells any pair apart.",
        ),
        edit(
            "comm.rank + 1 if is_even else comm.rank - 1",
            "(comm.rank + 1) % comm.world_size",
            "rank + 1 is the partner of even ranks only: for an odd rank it is rank - 1.",
        ),
        edit(
            "torch.empty_like(mine)",
            "mine",
            "The odd rank receives over `mine` and then sends back what it was just given. Receive into a tensor of "
            "its own, torch.empty_like(mine).",
        ),
        edit(
            "return theirs",
            "return mine",
            "The messages travel well, but what comes back is `mine`: return what was received.",
        ),
    ],
    hints=[
        "The partners must not be alike: whatever one does first, the other has to do the opposite.",
        "Even ranks and odd ranks: `if comm.rank % 2 == 0:` send, then receive; and the odd ones?",
        "Receive into `theirs = torch.empty_like(mine)`, so that `mine` is still there to be sent.",
    ],
)
