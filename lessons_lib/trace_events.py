"""A trace as Perfetto and chrome://tracing read it: events in a list, times in microseconds."""

_ROWS = {"send": 1, "recv": 2}  # the others are in row 0
_ROW_NAMES = ("computes and waits", "sends", "receives")


def trace_events(spans):
    """The events of `Span`s: names of ranks and rows, what took time, and an arrow for each message.

    Source: Trace Event Format (Google, 2016): "X" is something that took time, "M" a name, "s" and "f" the start and
    the end of an arrow.
    """
    return [*_names(spans), *map(_event, spans), *_arrows(spans)]


def _place(span):
    return {"pid": span.rank, "tid": _ROWS.get(span.kind, 0)}


def _names(spans):
    for rank in sorted({span.rank for span in spans}):
        named = {"ph": "M", "pid": rank, "tid": 0}
        yield {**named, "name": "process_name", "args": {"name": f"rank {rank}"}}
        yield {**named, "name": "process_sort_index", "args": {"sort_index": rank}}
    for rank, row in sorted({tuple(_place(span).values()) for span in spans}):
        yield {"ph": "M", "pid": rank, "tid": row, "name": "thread_name", "args": {"name": _ROW_NAMES[row]}}


def _event(span):
    known = {"peer": span.peer, "size_bytes": span.size_bytes or None, "group": span.group or None}
    times = {"ts": span.start_s * 1e6, "dur": (span.end_s - span.start_s) * 1e6}
    args = {name: value for name, value in known.items() if value is not None}
    return {"ph": "X", "name": span.label or span.kind, "cat": span.kind, **times, **_place(span), "args": args}


def _arrows(spans):
    """From each send to where its message came, in the order in which both ended."""
    arrived = _arrived(spans)
    sends = sorted((span for span in spans if span.kind == "send"), key=lambda span: span.end_s)
    for number, send in enumerate(sends):
        if came := arrived.get((send.rank, send.peer, send.size_bytes, send.group)):
            arrow = {"name": "message", "cat": "message", "id": number}
            yield {"ph": "s", **arrow, "ts": send.start_s * 1e6, **_place(send)}
            end = came.pop(0)
            yield {"ph": "f", "bp": "e", **arrow, "ts": end.end_s * 1e6, **_place(end)}


def _arrived(spans):
    """{(src, dst, bytes, group): spans} of messages that came. One that was received and then added has two spans."""
    arrived, received = {}, {}
    for span in sorted(spans, key=lambda span: span.end_s):
        key = (span.peer, span.rank, span.size_bytes, span.group)
        if span.kind == "recv":
            received[key] = received.get(key, 0) + 1
        elif span.kind not in ("add", "copy") or span.peer is None:
            continue
        elif received.get(key):
            received[key] -= 1
            continue
        arrived.setdefault(key, []).append(span)
    return arrived
