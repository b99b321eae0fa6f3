"""Prove a schedule without starting a process."""

from numbers import Integral

from ..errors import InvalidSchedule
from .program import Program, verify_program
from .promise import initial_shares, promised_share, ranks_in
from .replay import replay
from .schedule import OPS, Message, check_is_schedule


def verify(schedule):
    """Prove a schedule, or a `Program`: follow every contribution and check what each rank ends with.

    A rank's share of a chunk is the set of ranks whose numbers are in it. To add is to unite two sets that must have
    no rank in common; to copy is to replace a set.

    Args:
        schedule: a `Schedule` or a `Program`.

    Raises:
        TypeError: `schedule` is something else.
        InvalidProgram: a program does not compute what it promises. The error names rank, step and block.
        InvalidSchedule: a message names a rank or chunk that does not exist, talks to itself, adds a contribution that
            is already there, overwrites a chunk that its target sends in the same round or that another message
            writes, or a contribution is missing at the end. The error names round, rank and chunk.
    """
    if isinstance(schedule, Program):
        verify_program(schedule)
        return
    check_is_schedule(schedule, "a Schedule or a Program")
    held = initial_shares(schedule)
    for _ in replay(_checked_rounds(schedule), held, _united):
        pass
    _check_end(schedule, held)


def check_schedule(schedule, world_size):
    """Raise `InvalidSchedule` unless `schedule` is right and made for `world_size` ranks."""
    if schedule.world_size != world_size:
        raise InvalidSchedule(f"{schedule.name} is made for {schedule.world_size} ranks, here are {world_size}")
    verify(schedule)


def _united(mine, theirs):
    if mine & theirs:
        raise InvalidSchedule(f"the contribution of rank {ranks_in(mine & theirs)[0]} is added a second time")
    return mine | theirs


def _checked_rounds(schedule):
    """The rounds, each checked just before it is played: an earlier mistake is named first."""
    limits = schedule.world_size, schedule.world_size, schedule.num_chunks
    for number, messages in enumerate(schedule.rounds):
        if not isinstance(messages, list | tuple) or not all(isinstance(message, Message) for message in messages):
            raise InvalidSchedule(f"a round is a list of Message(src, dst, chunk, op), not {messages!r:.200}", number)
        for message in messages:
            _check_message(limits, number, message)
        _check_conflicts(number, messages)
        yield messages


def _check_message(limits, number, message):
    src, dst, chunk, op = message
    if op not in OPS:
        raise InvalidSchedule(f"op {op!r} is unknown: add or copy", number, dst, chunk)
    for name, value, limit in zip(Message._fields, message, limits, strict=False):
        # int is asked first because a test against the abstract Integral is ten times slower.
        if not isinstance(value, int | Integral) or not 0 <= value < limit:
            raise InvalidSchedule(f"{name} {value} of {message} is not in 0..{limit - 1}", number, dst, chunk)
    if src == dst:
        raise InvalidSchedule("the rank sends to itself", number, dst, chunk)


def _check_conflicts(number, messages):
    """Refuse two messages of one round whose order would change the result."""
    sent = {(message.src, message.chunk) for message in messages}
    written = {}
    for src, dst, chunk, op in messages:
        if (dst, chunk) in sent:
            raise InvalidSchedule(f"rank {src} overwrites the chunk while the rank sends it", number, dst, chunk)
        if (before := written.get((dst, chunk))) and (before, op) != ("add", "add"):
            raise InvalidSchedule("two messages write the chunk, and not both add", number, dst, chunk)
        written[dst, chunk] = op


def _check_end(schedule, held):
    for rank, shares in enumerate(held):
        for chunk, share in enumerate(shares):
            promised = promised_share(schedule, rank, chunk)
            if promised is None:
                continue
            location = len(schedule.rounds), rank, chunk
            if missing := ranks_in(promised & ~share):
                raise InvalidSchedule(f"the contribution of rank {missing[0]} is missing at the end", *location)
            if extra := ranks_in(share & ~promised):
                held_by = extra[0] % schedule.world_size
                raise InvalidSchedule(f"what rank {held_by} held before is mixed in at the end", *location)
