"""How `count` and `simulate` read a program: its messages, what lives at once on each rank, its time on a clock."""

from collections import defaultdict
from dataclasses import dataclass

from ..errors import check_whole
from ..trace import Span, Trace
from .program import replay
from .simulation import MAX_DRAWN, Simulation


@dataclass(frozen=True)
class ProgramCounts:
    """What a program makes every rank do; each attribute is a list with one number per rank.

    Attributes:
        computed: {op: how often}.
        messages_sent, messages_received: blocks.
        bytes_sent, bytes_received: bytes of these blocks.
        most_kept: how many blocks at once are kept for a later pass, at most (a pipeline's stashes).
    """

    computed: list
    messages_sent: list
    messages_received: list
    bytes_sent: list
    bytes_received: list
    most_kept: list


def count_steps(program, block_bytes=0):
    """Count what each rank of a `Program` does: `count`."""
    size_of = _size_of(block_bytes)
    ranks = range(program.world_size)
    counts = ProgramCounts([{} for _ in ranks], *([0 for _ in ranks] for _ in range(5)))
    for rank, _, step, held in replay(program):
        if step.op == "send":
            counts.messages_sent[rank] += 1
            counts.bytes_sent[rank] += size_of(step.block)
        elif step.op == "recv":
            counts.messages_received[rank] += 1
            counts.bytes_received[rank] += size_of(step.block)
        else:
            counts.computed[rank][step.op] = counts.computed[rank].get(step.op, 0) + 1
        counts.most_kept[rank] = max(counts.most_kept[rank], program.num_kept(held))
    return counts


def simulate_steps(program, cost_s, block_bytes, links, spans=None):
    """Play a `Program` on a virtual clock: `simulate`."""
    size_of, time_of = _size_of(block_bytes), _time_of(cost_s)
    keep = spans if spans is not None else sum(map(len, program.steps)) <= MAX_DRAWN
    now_s, out_free_s = [0.0] * program.world_size, [0.0] * program.world_size
    arrivals_s, trace = defaultdict(list), Trace(source="simulated")
    for rank, _, step, _ in replay(program):
        if step.op == "send":
            latency_s, bandwidth_Bps = links.between(rank, step.peer)
            size_bytes = size_of(step.block)
            leave_s = max(now_s[rank], out_free_s[rank])
            out_free_s[rank] = leave_s + size_bytes / bandwidth_Bps
            arrivals_s[rank, step.peer].append(out_free_s[rank] + latency_s)
        elif step.op == "recv":
            arrive_s = arrivals_s[step.peer, rank].pop(0)
            if keep and arrive_s > now_s[rank]:
                trace.record(Span(rank, "wait", now_s[rank], arrive_s, step.peer))
            now_s[rank] = max(now_s[rank], arrive_s)
        else:
            start_s, now_s[rank] = now_s[rank], now_s[rank] + time_of(rank, step)
            if keep:
                trace.record(Span(rank, "compute", start_s, now_s[rank], label=step.label))
    return Simulation(max(now_s), now_s, trace)


def _size_of(block_bytes):
    """A function block -> bytes."""
    if callable(block_bytes):
        return block_bytes
    check_whole("block_bytes", block_bytes, 0)
    return lambda block: block_bytes


def _time_of(cost_s):
    """A function (rank, step) -> seconds, which checks what it gives."""

    def time_of(rank, step):
        if not callable(cost_s) and step.op not in (cost_s or {}):
            raise ValueError(f"cost_s={cost_s!r}: seconds for {step.op!r} are needed too")
        seconds = cost_s(rank, step) if callable(cost_s) else cost_s[step.op]
        if not seconds >= 0:
            raise ValueError(f"cost_s gives {seconds!r} for {step}: 0 or more seconds are needed")
        return seconds

    return time_of
