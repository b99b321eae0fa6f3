"""Two sides of a comparison take turns in the same processes; what they took becomes a row of the table."""

import statistics
import time
from dataclasses import dataclass

import torch

from ..comm.block import Block
from ..comm.factory import meet, meeting_bytes

KB, MB = 1 << 10, 1 << 20
GLOO = f"gloo (torch {torch.__version__.split('+')[0]})"


@dataclass(frozen=True)
class Row:
    """One line of the table: `ratio` and its middle half (`low`, `high`) in the sense that `goal` is put in."""

    work: str
    peer: str
    ours_s: float
    theirs_s: float
    ratio: float
    low: float
    high: float
    goal: str


def compared(work, peer, ours_s, theirs_s, goal, inverse=False):
    """A `Row` of two lists of times measured in turns. ratio: theirs / ours, or ours / theirs if `inverse`."""
    pairs = list(zip(ours_s, theirs_s, strict=True))[1:]
    ratios = [ours / theirs if inverse else theirs / ours for ours, theirs in pairs]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Row(work, peer, statistics.median(ours_s), statistics.median(theirs_s), ratio, low, high, goal)


def take_turns(comm, repeats, *sides, calls=1):
    """Time the functions of `sides` in turns, all ranks starting together: a list of times (s) for each side.

    A turn is `calls` calls in a row, as training makes them; its time is that of one call.
    """
    times = [[] for _ in sides]
    for _ in range(repeats):
        for side, took_s in zip(sides, times, strict=True):
            comm.barrier()
            start_s = time.perf_counter()
            for _ in range(calls):
                side()
            took_s.append((time.perf_counter() - start_s) / calls)
    return times


def slowest(results):
    """Of what each rank measured, the time of the slowest rank in every turn."""
    return [[max(turn) for turn in zip(*side, strict=True)] for side in zip(*results, strict=True)]


def shared_memory(comm):
    """A second communicator for the ranks of `comm`, over shared memory, so that both can take turns."""
    name = torch.zeros(256, dtype=torch.uint8)
    if comm.rank == 0:
        block = Block(meeting_bytes("shared_memory", comm.world_size))
        name[: len(block.name)] = torch.tensor(list(block.name.encode()), dtype=torch.uint8)
    comm.broadcast(name)
    meeting_place = bytes(name.tolist()).rstrip(b"\0").decode()
    return meet("shared_memory", comm.rank, comm.world_size, meeting_place, start_timeout_s=60.0, timeout_s=60.0)


def in_words(size_bytes):
    return f"{size_bytes // MB} MB" if size_bytes >= MB else f"{size_bytes // KB} KB"
