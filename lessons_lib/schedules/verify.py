"""Prove a schedule without starting a process."""

from numbers import Integral

from ..errors import InvalidSchedule
from .schedule import OPS, Message, check_is_schedule


def verify(schedule):
    """Follow every contribution through the rounds and check what each rank ends with.

    Every rank's share of every chunk is one bit; adding is the union of disjoint sets of bits, copying replaces a set.

    Raises:
        InvalidSchedule: naming round, rank and chunk, when a message names a rank or chunk that does not exist, talks
            to itself, adds a contribution that is already there, overwrites a chunk that its target sends in the same
            round or that another message writes, or when a contribution is missing at the end.
    """
    check_is_schedule(schedule)
    held = initial_shares(schedule)
    for number, messages in enumerate(schedule.rounds):
        _check_round(schedule, number, messages)
        taken = [(message, held[message.src][message.chunk]) for message in messages]
        for (_, dst, chunk, op), share in taken:
            if op == "add" and held[dst][chunk] & share:
                twice = _ranks(held[dst][chunk] & share)
                raise InvalidSchedule(f"the contribution of rank {twice[0]} is added a second time", number, dst, chunk)
            held[dst][chunk] = held[dst][chunk] | share if op == "add" else share
    _check_end(schedule, held)


def check_schedule(schedule, world_size):
    """Raise `InvalidSchedule` unless `schedule` is right and made for `world_size` ranks."""
    if schedule.world_size != world_size:
        raise InvalidSchedule(f"{schedule.name} is made for {schedule.world_size} ranks, here are {world_size}")
    verify(schedule)


def initial_shares(schedule):
    """held[rank][chunk] as bits: bit r is rank r's contribution, bit N + r what rank r holds that nobody asked for."""
    size, chunks = schedule.world_size, schedule.num_chunks
    if schedule.collective in ("all_reduce", "reduce_scatter"):
        return [[1 << rank] * chunks for rank in range(size)]
    broadcast = schedule.collective == "broadcast"
    roots = [schedule.root if broadcast else owner(schedule, chunk) for chunk in range(chunks)]
    return [[1 << (rank if rank == root else size + rank) for root in roots] for rank in range(size)]


def owner(schedule, chunk):
    """The rank whose chunk it is: that ends with it in a reduce-scatter, and starts with it in an all-gather."""
    return chunk * schedule.world_size // schedule.num_chunks


def _check_round(schedule, number, messages):
    if not isinstance(messages, list | tuple) or not all(isinstance(message, Message) for message in messages):
        raise InvalidSchedule(f"a round is a list of Message(src, dst, chunk, op), not {messages!r:.200}", number)
    reading = {(m.src, m.chunk) for m in messages}
    writing = {}
    for message in messages:
        src, dst, chunk, op = message
        if op not in OPS:
            raise InvalidSchedule(f"op {op!r} is unknown: add or copy", number, dst, chunk)
        for name, value, limit in (
            ("src", src, schedule.world_size),
            ("dst", dst, schedule.world_size),
            ("chunk", chunk, schedule.num_chunks),
        ):
            if not isinstance(value, int | Integral) or not 0 <= value < limit:
                raise InvalidSchedule(f"{name} {value} of {message} is not in 0..{limit - 1}", number, dst, chunk)
        if src == dst:
            raise InvalidSchedule("the rank sends to itself", number, dst, chunk)
        if (dst, chunk) in reading:
            raise InvalidSchedule(f"rank {src} overwrites the chunk while the rank sends it", number, dst, chunk)
        if (before := writing.get((dst, chunk))) and (before, op) != ("add", "add"):
            raise InvalidSchedule("two messages write the chunk, and not both add", number, dst, chunk)
        writing[dst, chunk] = op


def _check_end(schedule, held):
    everybody = (1 << schedule.world_size) - 1
    for rank, chunks in enumerate(held):
        for chunk, share in enumerate(chunks):
            home = owner(schedule, chunk)
            if schedule.collective == "reduce_scatter" and home != rank:
                continue
            wanted = {"broadcast": 1 << schedule.root, "all_gather": 1 << home}.get(schedule.collective, everybody)
            place = len(schedule.rounds), rank, chunk
            if missing := _ranks(wanted & ~share):
                raise InvalidSchedule(f"the contribution of rank {missing[0]} is missing at the end", *place)
            if extra := _ranks(share & ~wanted):
                held_by = extra[0] % schedule.world_size
                raise InvalidSchedule(f"what rank {held_by} held before is mixed in at the end", *place)


def _ranks(bits):
    return [rank for rank in range(bits.bit_length()) if bits >> rank & 1]
