"""An algorithm for many processes as data: rounds of messages (lesson 11)."""

import gc
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import NamedTuple

from ..errors import check_whole

OPS = ("add", "copy")
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "gather", "scatter", "all_to_all")


class Message(NamedTuple):
    """Rank `dst` takes a chunk from rank `src`, and adds it to its own chunk or copies it over its own.

    A message is seen from outside, by both ranks at once, so nobody can write a send without its receive.

    Attributes:
        src, dst: the rank that gives, and the rank that takes.
        chunk: the number of the chunk.
        op: "add" or "copy".
    """

    src: int
    dst: int
    chunk: int
    op: str


@dataclass(frozen=True)
class Schedule:
    """Rounds of messages. Within a round all messages happen at once, each reading what stood at its start.

    Args:
        world_size: the number of ranks, N.
        num_chunks: into how many nearly equal chunks the tensor is cut.
        rounds: a list of rounds, each a list of `Message`.
        name: how figures and errors call the schedule.
        collective: what the schedule promises: "all_reduce", "broadcast"; "reduce_scatter", "all_gather", "gather" or
            "scatter" (in all four, rank r owns chunk r); or "all_to_all" (chunk s * N + d goes from rank s to rank d).
            `verify` checks that it keeps the promise.
        root: the rank that a broadcast or a scatter starts from, and that a gather ends at.

    Raises:
        ValueError: a size is below one, `rounds` is no list, `collective` or `root` is unknown, or the chunks of an
            all-to-all are not the same number for each pair of ranks.
    """

    world_size: int
    num_chunks: int
    rounds: list
    name: str = "own schedule"
    collective: str = "all_reduce"
    root: int = 0

    def __post_init__(self):
        check_world_size(self.world_size)
        check_whole("num_chunks", self.num_chunks, 1)
        if not isinstance(self.rounds, list | tuple):
            raise ValueError(f"rounds={self.rounds!r}: a list of rounds is needed, each a list of Message")
        if self.collective not in COLLECTIVES:
            raise ValueError(f"collective={self.collective!r}: one of {', '.join(COLLECTIVES)} is needed")
        if self.collective == "all_to_all" and self.num_chunks % self.world_size**2:
            raise ValueError(
                f"num_chunks={self.num_chunks}: a multiple of {self.world_size**2} is needed, the same for each pair"
            )
        if not isinstance(self.root, Integral) or not 0 <= self.root < self.world_size:
            raise ValueError(f"root={self.root!r}: a rank from 0 to {self.world_size - 1} is needed")

    def __hash__(self):
        return hash((self.world_size, self.num_chunks, self.name, self.collective, self.root))  # lists have no hash


class Transfer(NamedTuple):
    """All chunks that one rank gives another in one round with one op: they travel as one."""

    src: int
    dst: int
    chunks: tuple
    op: str


def transfers(messages):
    """Group the messages of one round.

    Returns:
        A list of `Transfer`s, in the order of their first messages.
    """
    grouped = {}
    for src, dst, chunk, op in messages:
        grouped.setdefault((src, dst, op), []).append(chunk)
    return [Transfer(src, dst, tuple(chunks), op) for (src, dst, op), chunks in grouped.items()]


@contextmanager
def no_collection():
    """Let Python's garbage collector rest, around a block of code or a function that goes through many messages.

    It would walk again and again through all of them, though none is garbage: to make a ring of 1,024 ranks took three
    times as long.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def chunk_bounds(numel, num_chunks):
    """Cut a tensor into chunks whose sizes differ by at most one element.

    Args:
        numel: the number of elements; 0 or more.
        num_chunks: the number of chunks; 1 or more. Some are empty where there are more chunks than elements.

    Returns:
        A list of (start, stop), one pair per chunk.
    """
    check_whole("numel", numel, 0)
    check_whole("num_chunks", num_chunks, 1)
    cuts = [k * numel // num_chunks for k in range(num_chunks + 1)]
    return list(pairwise(cuts))


def check_world_size(world_size):
    check_whole("world_size", world_size, 1)


def check_is_schedule(schedule, needed="a Schedule"):
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule is a {type(schedule).__name__}: {needed} is needed")
