"""Exercises of lesson 00: a ball passed round a table, and a deadlock to mend."""

import numbers
import time

import torch

from lessons_lib import Links
from lessons_lib.exercises.compare import as_number
from lessons_lib.exercises.core import Exercise, Outcome, on_ranks

LATENCY_S = 0.03  # emulated: long against anything a busy machine adds to it
COSTS = ["messages sent by a rank", "messages received by a rank"]


def around_the_table(comm, ball, laps):
    """Pass `ball` round, rank 0 → 1 → … → N − 1 → 0, `laps` times; rank 0 returns seconds a message.

    comm: the communicator of N ≥ 2 ranks. ball: a tensor with one number in it, 0 on every rank at the start.
    Each rank adds 1 to the ball before it hands it on, so rank 0 ends with the number of messages: laps · N.
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
    ball = torch.zeros(1)
    seconds = fn(comm, ball, laps)
    return ball.item(), seconds


def _table(fn, world_size, laps):
    """What rank 0 holds and says. An emulated message is never faster than its latency, so times can be told apart."""
    ranks = on_ranks(_play, fn, laps, world_size=world_size, links=Links(latency_s=LATENCY_S), costs=COSTS)
    ball, seconds = ranks.value["rank 0"]
    value = {"ball on rank 0": ball, "rank 0 returned": _in_words(seconds, world_size, laps)}
    return Outcome(value, ranks.cost)


def _in_words(seconds, world_size, laps):
    """The time, as what takes that long; what is no time stays as it is."""
    seconds = as_number(seconds)
    if not isinstance(seconds, numbers.Real) or isinstance(seconds, bool):
        return seconds
    known = [
        (laps * world_size, "the time of the whole game"),
        (world_size, "the time of a lap"),
        (1, "the time of a message"),
    ]
    return next((words for count, words in known if seconds >= count * LATENCY_S), "less time than a message takes")


def _time_of_a_lap(comm, ball, laps):
    """That is the time of a whole lap: N messages follow one another in it. Divide by N too."""
    return around_the_table.reference(comm, ball, laps) * comm.world_size


def _time_of_everything(comm, ball, laps):
    """That is the time of the whole game. How many messages travelled in it?"""
    return around_the_table.reference(comm, ball, laps) * comm.world_size * laps


def _all_send_first(comm, ball, laps):
    """Every rank sends before it receives, so nobody is ready to take a ball. One rank opens the game; the others wait
    for the ball before they send."""
    before, after = (comm.rank - 1) % comm.world_size, (comm.rank + 1) % comm.world_size
    start = time.perf_counter()
    for _ in range(laps):
        ball += 1
        comm.send(ball, dst=after)
        comm.recv(ball, src=before)
    return (time.perf_counter() - start) / (laps * comm.world_size)


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
    cases=[(3, 3), (2, 4)],
    outcome=_table,
    mistakes=[_time_of_a_lap, _time_of_everything, _all_send_first, _own_ball_each, _always_with_rank_0],
    hints=[
        "With two ranks this is the ping-pong of the lesson. Which rank opens, and what do the others do first?",
        "The neighbours are (comm.rank - 1) % comm.world_size and (comm.rank + 1) % comm.world_size.",
        "In a lap rank 0 does: add, send, recv. The others do: recv, add, send. A game has laps · N messages.",
    ],
)


def exchange(comm, mine):
    """Swap tensors with a partner, 0 with 1, 2 with 3, and so on; return what the partner had.

    comm: the communicator of an even number of ranks. mine: this rank's tensor, which must stay as it is; the
    partner's has the same shape and dtype. One message each way is enough.
    """
    theirs = torch.empty_like(mine)
    if comm.rank % 2 == 0:
        comm.send(mine, dst=comm.rank + 1)
        comm.recv(theirs, src=comm.rank + 1)
    else:
        comm.recv(theirs, src=comm.rank - 1)
        comm.send(mine, dst=comm.rank - 1)
    return theirs


def _swap(comm, fn, numel):
    return fn(comm, 10.0 * comm.rank + torch.arange(numel))


def _exchanged(fn, world_size, numel):
    return on_ranks(_swap, fn, numel, world_size=world_size, costs=COSTS)


def _partner(comm):
    return comm.rank + 1 if comm.rank % 2 == 0 else comm.rank - 1


def _both_send(comm, mine):
    """Both partners send first, and a send waits until it is received. Let one of the two receive first."""
    theirs = torch.empty_like(mine)
    comm.send(mine, dst=_partner(comm))
    comm.recv(theirs, src=_partner(comm))
    return theirs


def _both_receive(comm, mine):
    """Both partners wait for a message that neither has sent. Let one of the two send first."""
    theirs = torch.empty_like(mine)
    comm.recv(theirs, src=_partner(comm))
    comm.send(mine, dst=_partner(comm))
    return theirs


def _only_rank_0_differs(comm, mine):
    """Two ranks can do it now; with four, ranks 2 and 3 are still alike. Even against odd tells any pair apart."""
    theirs, partner = torch.empty_like(mine), _partner(comm)
    if comm.rank == 0:
        comm.send(mine, dst=partner)
        comm.recv(theirs, src=partner)
    else:
        comm.recv(theirs, src=partner)
        comm.send(mine, dst=partner)
    return theirs


def _next_rank_as_partner(comm, mine):
    """rank + 1 is the partner of even ranks only: for an odd rank it is rank - 1."""
    theirs, partner = torch.empty_like(mine), (comm.rank + 1) % comm.world_size
    if comm.rank % 2 == 0:
        comm.send(mine, dst=partner)
        comm.recv(theirs, src=partner)
    else:
        comm.recv(theirs, src=partner)
        comm.send(mine, dst=partner)
    return theirs


def _into_own_tensor(comm, mine):
    """The odd rank receives over `mine` and then sends back what it was just given. Receive into a tensor of its own,
    torch.empty_like(mine)."""
    if comm.rank % 2 == 0:
        comm.send(mine, dst=_partner(comm))
        comm.recv(mine, src=_partner(comm))
    else:
        comm.recv(mine, src=_partner(comm))
        comm.send(mine, dst=_partner(comm))
    return mine


def _returns_mine(comm, mine):
    """The messages travel well, but what comes back is `mine`: return what was received."""
    exchange.reference(comm, mine)
    return mine


def _everybody_gets_everything(comm, mine):
    """Each rank sends its tensor to everybody, although only its partner wants it."""
    everything = torch.empty(comm.world_size, len(mine))
    for rank in range(comm.world_size):
        if rank == comm.rank:
            everything[rank] = mine
            for other in range(comm.world_size):
                if other != rank:
                    comm.send(mine, dst=other)
        else:
            comm.recv(everything[rank], src=rank)
    return everything[_partner(comm)]


exchange = Exercise(
    exchange,
    cases=[(2, 3), (4, 5)],
    outcome=_exchanged,
    mistakes=[
        _both_send,
        _both_receive,
        _only_rank_0_differs,
        _next_rank_as_partner,
        _into_own_tensor,
        _returns_mine,
        _everybody_gets_everything,
    ],
    hints=[
        "The partners must not be alike: whatever one does first, the other has to do the opposite.",
        "Even ranks and odd ranks: `if comm.rank % 2 == 0:` send, then receive; and the odd ones?",
        "Receive into `theirs = torch.empty_like(mine)`, so that `mine` is still there to be sent.",
    ],
)
