"""What each rank did and when, and how many bytes it moved."""

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from .trace_events import trace_events
from .waits import Wait, Waits

KINDS = ("compute", "send", "recv", "add", "copy", "wait")


@dataclass(frozen=True)
class Span:
    """Something that took time on one rank. All ranks of one machine read the same monotonic clock, in seconds.

    `rank` and `peer` are numbers in the launch, also for what a group did; `group` is its name, or "".
    """

    rank: int
    kind: str
    start_s: float
    end_s: float
    peer: int | None = None
    size_bytes: int = 0
    label: str = ""
    group: str = ""


@dataclass
class Trace:
    """The spans of one rank or of many. `source`: "measured", "emulated links" or "simulated".

    `late` has a `Wait` for each rank that came later than another one to something that all do together.
    """

    spans: list = field(default_factory=list)
    source: str = "measured"
    late: list = field(default_factory=list)

    def record(self, span):
        self.spans.append(span)

    def add(self, rank, kind, start_s, peer=None, size_bytes=0, label=""):
        """Record a span that began at `start_s` and ends now."""
        self.record(Span(rank, kind, start_s, now_s(), peer, size_bytes, label))

    def came_late(self, rank, peer, start_s, call):
        """Record that `rank` has waited since `start_s` for `peer` to come to `call`."""
        self.keep_late(Wait(rank, peer, start_s, now_s(), call))

    def keep_late(self, wait):
        self.late.append(wait)

    def waits(self):
        """The straggler report: who waited for whom, how long, in which call (lesson 20). A `Waits`.

        Of two ranks that wait for a third to come to a collective, each has a `Wait` for it. Whole collectives of torch
        do not say whom they wait for.
        """
        in_messages = [
            Wait(span.rank, span.peer, span.start_s, span.end_s, span.label, span.group)
            for span in self.spans
            if span.kind == "wait" and span.peer is not None
        ]
        return Waits([*self.late, *in_messages])

    def save(self, path):
        """Write the trace for a viewer such as Perfetto (ui.perfetto.dev) or chrome://tracing, as JSON.

        Each rank has a row for computing and waiting, one for what it sends and one for what it receives; an arrow
        stands for a message. The file says whether the trace was measured or simulated.
        """
        saved = {"traceEvents": trace_events(self.spans), "otherData": {"source": self.source}}
        Path(path).write_text(json.dumps(saved), encoding="utf-8")

    @contextmanager
    def span(self, rank, kind, label=""):
        start_s = now_s()
        try:
            yield
        finally:
            self.add(rank, kind, start_s, label=label)

    def message(self, rank, part, size_bytes, wait_s, ready_s, start_s):
        """Record a message as its taker saw it: waited from `wait_s`, could from `ready_s`, took from `start_s`."""
        end_s = now_s()
        leave_s = min(max(ready_s, wait_s), start_s)
        if leave_s > wait_s:
            self.record(Span(rank, "wait", wait_s, leave_s, part.peer))
        if start_s > leave_s:
            self.record(Span(rank, "recv", leave_s, start_s, part.peer, size_bytes))
        self.record(Span(rank, part.op, start_s, end_s, part.peer, size_bytes))
        self.record(Span(part.peer, "send", leave_s, end_s, rank, size_bytes))

    def meeting(self, dst, src, size_bytes, wait_s, ready_s):
        """Record a `send` and its `recv`, which end now: `dst` was there from `wait_s` on, `src` from `ready_s` on."""
        met_s, end_s = max(wait_s, ready_s), now_s()
        for rank, peer, came_s, kind in ((src, dst, ready_s, "send"), (dst, src, wait_s, "recv")):
            if met_s > came_s:
                self.record(Span(rank, "wait", came_s, met_s, peer))
            self.record(Span(rank, kind, met_s, end_s, peer, size_bytes))

    @classmethod
    def merged(cls, traces):
        """One trace of all ranks, ordered by time and starting at 0 s."""
        traces = [trace for trace in traces if trace is not None]
        spans = sorted((span for trace in traces for span in trace.spans), key=lambda s: (s.start_s, s.rank))
        late = sorted((wait for trace in traces for wait in trace.late), key=lambda w: (w.start_s, w.rank))
        zero = min((each[0].start_s for each in (spans, late) if each), default=0.0)
        spans, late = (
            [replace(each, start_s=each.start_s - zero, end_s=each.end_s - zero) for each in several]
            for several in (spans, late)
        )
        return cls(spans, traces[0].source if traces else "measured", late)


class GroupTrace(Trace):
    """The spans of one rank in a group, which count in the trace `parent` as well.

    `ranks[r]` is the number in the launch of the group's rank r, and `name` the name of the group.
    """

    def __init__(self, parent, name, ranks):
        super().__init__(source=parent.source)
        self._parent, self._name, self._ranks = parent, name, ranks

    def record(self, span):
        peer = span.peer if span.peer is None else self._ranks[span.peer]
        self._keep(replace(span, rank=self._ranks[span.rank], peer=peer, group=self._name))

    def _keep(self, span):
        self.spans.append(span)
        keep = self._parent._keep if isinstance(self._parent, GroupTrace) else self._parent.record
        keep(span)

    def keep_late(self, wait):
        ranks = {"rank": self._ranks[wait.rank], "peer": self._ranks[wait.peer], "group": self._name}
        self._hand_on(replace(wait, **ranks))

    def _hand_on(self, wait):
        """Keep a wait that is named as the launch does, here and above."""
        self.late.append(wait)
        above = self._parent
        above._hand_on(wait) if isinstance(above, GroupTrace) else above.keep_late(wait)


class OnlyWaits:
    """What a trace keeps of an operation that is no payload: who came late to it, and no message."""

    def __init__(self, trace):
        self.came_late = trace.came_late

    def message(self, *args):
        """Keep nothing."""


def now_s():
    """Seconds on a clock that all processes of this machine share."""
    return time.perf_counter()


@dataclass
class Ledger:
    """What a rank has really moved: payload bytes and messages, rounds of schedules, and calls by name.

    What a group moves counts here too, and alone in `groups`, a `Ledger` for each name of a group.
    """

    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    rounds: int = 0
    calls: dict = field(default_factory=dict)
    groups: dict = field(default_factory=dict)
    _parent: "Ledger | None" = field(default=None, repr=False, compare=False)

    def sent(self, size_bytes, num_messages=1):
        for ledger in self._and_above():
            ledger.messages_sent += num_messages
            ledger.bytes_sent += size_bytes

    def received(self, size_bytes, num_messages=1):
        for ledger in self._and_above():
            ledger.messages_received += num_messages
            ledger.bytes_received += size_bytes

    def ended(self, num_rounds):
        for ledger in self._and_above():
            ledger.rounds += num_rounds

    def call(self, name):
        for ledger in self._and_above():
            ledger.calls[name] = ledger.calls.get(name, 0) + 1

    def group(self, name):
        """The ledger of the groups of that name."""
        return self.groups.setdefault(name, Ledger(_parent=self))

    def _and_above(self):
        ledger = self
        while ledger is not None:
            yield ledger
            ledger = ledger._parent
