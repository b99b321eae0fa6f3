"""Run a schedule on a virtual clock: what would it take on these links, with a thousand ranks if need be?"""

from dataclasses import dataclass

from ..trace import Span, Trace
from .links import Links
from .schedule import check_is_schedule, transfers


@dataclass(frozen=True)
class Simulation:
    """When each rank is done (seconds of virtual time), when all are, and the spans to draw."""

    total_s: float
    finish_s: list
    trace: Trace


def simulate(schedule, size_bytes, links, spans=None):
    """Play the rounds on links of given latency and bandwidth.

    A rank starts a round when it has ended the one before. A message leaves when both its ranks are there and the way
    out of `src` is free, takes M / bandwidth on the way out and on the way in, and arrives a latency later; adding it
    takes M / reduce_Bps. Chunks from one rank to another in one round travel together.

    Args:
        schedule: any `Schedule`.
        size_bytes: the tensor's size; cut into chunks that may be fractions of a byte.
        links: `Links`.
        spans: whether to keep what each rank did; by default for schedules of up to 20,000 messages.

    Returns:
        `Simulation`. For the ring, total_s = 2(N-1)(α + M/(Nβ)) with latency α and bandwidth β.
    """
    check_is_schedule(schedule)
    if not isinstance(links, Links):
        raise TypeError(f"links is a {type(links).__name__}: a Links is needed, such as Links(latency_s=1e-3)")
    if not size_bytes >= 0:
        raise ValueError(f"size_bytes={size_bytes!r}: 0 or more bytes are accepted")
    size = schedule.world_size
    chunk_bytes = size_bytes / schedule.num_chunks
    keep = spans if spans is not None else sum(map(len, schedule.rounds)) <= 20_000
    ready = [0.0] * size
    trace = Trace(source="simulated")
    for messages in schedule.rounds:
        out_free, in_free, done = ready.copy(), ready.copy(), ready.copy()
        for src, dst, chunks, op in transfers(messages):
            latency_s, bandwidth_Bps = links.between(src, dst)
            payload = chunk_bytes * len(chunks)
            wire_s = payload / bandwidth_Bps
            leave = max(out_free[src], in_free[dst] - latency_s, ready[dst] - latency_s, ready[src])
            out_free[src] = leave + wire_s
            arrive = in_free[dst] = leave + latency_s + wire_s
            end = max(arrive, done[dst]) + (payload / links.reduce_Bps if op == "add" else 0.0)
            if keep:
                trace.spans.append(Span(src, "send", leave, leave + wire_s, dst, int(payload)))
                trace.spans.append(Span(dst, "recv", arrive - wire_s, arrive, src, int(payload)))
                if end > arrive:
                    trace.spans.append(Span(dst, op, max(arrive, done[dst]), end, src, int(payload)))
            done[dst] = end
            done[src] = max(done[src], out_free[src])
        ready = done
    return Simulation(max(ready), ready, trace)
