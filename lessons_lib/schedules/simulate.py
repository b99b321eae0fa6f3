"""Run a schedule or a program on a virtual clock: how long would it take, also with a thousand ranks?"""

from collections import Counter
from operator import itemgetter
from typing import NamedTuple

from ..trace import Span, Trace
from .links import Links
from .program import Program
from .program_readers import simulate_steps
from .schedule import check_is_schedule, no_collection
from .simulation import MAX_DRAWN, Simulation

_ENDS = itemgetter(0, 1, 3)  # (src, dst, op) of a message


def simulate(schedule, size_bytes=None, links=None, spans=None, cost_s=None, block_bytes=0):
    """Play a schedule, or a `Program`, on links of given latency and bandwidth.

    In a schedule a rank starts a round when it has ended the one before. A transfer of M bytes leaves when both its
    ranks are there and the way out of `src` is free. It takes M / bandwidth on the way out and on the way in, and
    arrives a latency later; to add it takes M / reduce_Bps.

    In a program a rank starts a step when it has ended the one before. A send costs the rank no time: the block leaves
    when the way out of the rank is free, takes its bytes / bandwidth, and arrives a latency later. A receive waits for
    that.

    Args:
        schedule: a `Schedule`, or a `Program` that `verify` accepts.
        size_bytes: of a schedule, the size of the tensor. Chunks may be fractions of a byte.
        links: `Links`; of a program not needed where messages take no time.
        spans: whether to keep what each rank did; by default for at most 20,000 messages or steps.
        cost_s: of a program, the seconds that a computing step takes: {op: seconds}, or a function of (rank, step).
        block_bytes: of a program, how many bytes a message has: a number, or a function of the block.

    Returns:
        `Simulation`. For the ring, total_s = 2(N-1)(α + M/(Nβ)) with latency α and bandwidth β. The trace of a program
        has a span for each computing step, labelled "op stage.micro_batch" or the like, and for each wait.

    Raises:
        TypeError: `schedule` is something else, `links` no `Links`, or what is given does not belong to its kind.
        ValueError: `size_bytes`, a cost or a size is negative, or an op has no cost.
        InvalidProgram: a program is wrong.
    """
    is_program = isinstance(schedule, Program)
    if not is_program:
        check_is_schedule(schedule, "a Schedule or a Program")
    if not isinstance(links, Links) and not (is_program and links is None):
        raise TypeError(f"links is a {type(links).__name__}: a Links is needed, such as Links(latency_s=1e-3)")
    if is_program:
        if size_bytes is not None:
            raise TypeError(f"size_bytes={size_bytes!r}: a program has cost_s and block_bytes instead")
        return simulate_steps(schedule, cost_s, block_bytes, links or Links(), spans)
    if cost_s is not None or block_bytes != 0:
        raise TypeError(f"{cost_s=}, {block_bytes=}: a schedule has size_bytes instead")
    if size_bytes is None or not size_bytes >= 0:
        raise ValueError(f"size_bytes={size_bytes!r}: 0 or more bytes are needed")
    return _simulate_rounds(schedule, size_bytes, links, spans)


@no_collection()
def _simulate_rounds(schedule, size_bytes, links, spans):
    keep = spans if spans is not None else sum(map(len, schedule.rounds)) <= MAX_DRAWN
    trace = Trace(source="simulated")
    done_s, ends, transfers = [0.0] * schedule.world_size, None, []
    for messages in schedule.rounds:
        before, ends = ends, list(map(_ENDS, messages))
        if ends != before:  # in a turn of the ring the rounds differ in their chunks only
            transfers = _timed(ends, size_bytes / schedule.num_chunks, links)
        done_s = _play(transfers, done_s, trace.spans if keep else None)
    return Simulation(max(done_s), done_s, trace)


class _Timed(NamedTuple):
    """A transfer, and the seconds of its ways: the latency, on the wire, and to be added."""

    src: int
    dst: int
    latency_s: float
    wire_s: float
    add_s: float
    op: str
    size_bytes: int


def _timed(ends, chunk_bytes, links):
    """The transfers of a round, in the order of their first messages, with the time that each takes."""
    transfers = []
    for (src, dst, op), num_chunks in Counter(ends).items():
        latency_s, bandwidth_Bps = links.between(src, dst)
        payload = chunk_bytes * num_chunks
        add_s = payload / links.reduce_Bps if op == "add" else 0.0
        transfers.append(_Timed(src, dst, latency_s, payload / bandwidth_Bps, add_s, op, int(payload)))
    return transfers


def _play(transfers, ready_s, spans):
    """Play one round. `ready_s`: when each rank starts it. Returns when each rank has ended it."""
    out_free_s, in_free_s, done_s = ready_s.copy(), ready_s.copy(), ready_s.copy()
    for src, dst, latency_s, wire_s, add_s, op, size_bytes in transfers:
        # A comparison takes a fifth of the time of max(), and there are millions.
        leave_s, in_time_s = out_free_s[src], in_free_s[dst] - latency_s
        if in_time_s > leave_s:
            leave_s = in_time_s
        sent_s = out_free_s[src] = leave_s + wire_s
        arrive_s = in_free_s[dst] = leave_s + latency_s + wire_s
        start_s = arrive_s if arrive_s > done_s[dst] else done_s[dst]
        done_s[dst] = start_s + add_s
        if sent_s > done_s[src]:
            done_s[src] = sent_s
        if spans is not None:
            spans.append(Span(src, "send", leave_s, sent_s, dst, size_bytes))
            spans.append(Span(dst, "recv", arrive_s - wire_s, arrive_s, src, size_bytes))
            if done_s[dst] > arrive_s:
                spans.append(Span(dst, op, start_s, done_s[dst], src, size_bytes))
    return done_s
