"""Run a schedule on a virtual clock: how long would it take on these links, also with a thousand ranks?"""

from collections import Counter
from dataclasses import dataclass
from operator import itemgetter

from ..trace import Span, Trace
from .links import Links
from .schedule import check_is_schedule

MAX_DRAWN = 20_000  # messages: a timeline of more spans takes longer to draw than anybody looks at it
_TRANSFER = itemgetter(0, 1, 3)  # (src, dst, op) of a message


@dataclass(frozen=True)
class Simulation:
    """What a virtual clock said.

    Attributes:
        total_s: when the last rank is done (seconds of virtual time).
        finish_s: when each rank is done.
        trace: a `Trace` of what each rank did; empty where spans were not kept.
    """

    total_s: float
    finish_s: list
    trace: Trace


def simulate(schedule, size_bytes, links, spans=None):
    """Play the rounds on links of given latency and bandwidth.

    A rank starts a round when it has ended the one before. A transfer of M bytes leaves when both its ranks are there
    and the way out of `src` is free. It takes M / bandwidth on the way out and on the way in, and arrives a latency
    later; to add it takes M / reduce_Bps.

    Args:
        schedule: any `Schedule`.
        size_bytes: the size of the tensor. Chunks may be fractions of a byte.
        links: `Links`.
        spans: whether to keep what each rank did; by default for schedules of at most 20,000 messages.

    Returns:
        `Simulation`. For the ring, total_s = 2(N-1)(α + M/(Nβ)) with latency α and bandwidth β.

    Raises:
        TypeError: `schedule` is no `Schedule`, or `links` no `Links`.
        ValueError: `size_bytes` is negative.
    """
    check_is_schedule(schedule)
    if not isinstance(links, Links):
        raise TypeError(f"links is a {type(links).__name__}: a Links is needed, such as Links(latency_s=1e-3)")
    if not size_bytes >= 0:
        raise ValueError(f"size_bytes={size_bytes!r}: 0 or more bytes are needed")
    keep = spans if spans is not None else sum(map(len, schedule.rounds)) <= MAX_DRAWN
    trace = Trace(source="simulated")
    done_s = [0.0] * schedule.world_size
    for messages in schedule.rounds:
        done_s = _play(messages, size_bytes / schedule.num_chunks, links, done_s, trace.spans if keep else None)
    return Simulation(max(done_s), done_s, trace)


def _play(messages, chunk_bytes, links, ready_s, spans):
    """Play one round. `ready_s`: when each rank starts it. Returns when each rank has ended it."""
    out_free_s, in_free_s, done_s = ready_s.copy(), ready_s.copy(), ready_s.copy()
    # A Counter keeps the order of the first messages, and is several times as fast as `transfers`, which lists chunks.
    for (src, dst, op), num_chunks in Counter(map(_TRANSFER, messages)).items():
        latency_s, bandwidth_Bps = links.between(src, dst)
        payload = chunk_bytes * num_chunks
        wire_s = payload / bandwidth_Bps
        leave_s = max(out_free_s[src], in_free_s[dst] - latency_s, ready_s[dst] - latency_s, ready_s[src])
        sent_s = out_free_s[src] = leave_s + wire_s
        arrive_s = in_free_s[dst] = leave_s + latency_s + wire_s
        add_s = max(arrive_s, done_s[dst])
        end_s = add_s + (payload / links.reduce_Bps if op == "add" else 0.0)
        if spans is not None:
            spans.append(Span(src, "send", leave_s, sent_s, dst, int(payload)))
            spans.append(Span(dst, "recv", arrive_s - wire_s, arrive_s, src, int(payload)))
            if end_s > arrive_s:
                spans.append(Span(dst, op, add_s, end_s, src, int(payload)))
        done_s[dst] = end_s
        done_s[src] = max(done_s[src], sent_s)
    return done_s
