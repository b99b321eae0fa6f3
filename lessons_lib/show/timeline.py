"""What every rank did, and when: one lane per rank, on one clock."""

from collections import defaultdict

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.patches import Patch, Rectangle

from .labels import arrow, draw_guess, key
from .picture import picture
from .style import COLOURS, HALO, INK, TIME_UNITS, figure, si

_HATCHES = {"compute": "", "send": "", "recv": "////", "add": "xxxx", "copy": "....", "wait": "\\\\\\\\"}  # by kind
_MAX_LANES = 64
_MAX_ARROWS = 40
_ROOMY_LANES = 8  # up to so many, bars are high enough for hatches and labels
_SLACK = 0.02  # of a span's length: what overlaps less is taken as one after the other


def timeline(trace, title="", *, ranks=None, guess=None, ax=None):
    """Draw a `Trace`: what each rank computed, sent, received, added and copied, and when it waited; a `Picture`.

    What a rank does at once (sending while receiving) lies in tracks of its lane; a blank lane is an idle rank.
    Arrows join a send to its receipt while there are few. Time starts at 0 with the first span. The title says so
    when the times are simulated or come from emulated links.

    Args:
        trace: a `Trace`, such as `launch(..., trace=True).trace` or `simulate(...).trace`.
        title: the title of the figure.
        ranks: the ranks to show, at most 64; by default the first 64.
        guess: the total time in seconds that the learner guessed.
        ax: axes to draw in, instead of a new figure.

    Raises:
        TypeError: `trace` is something else.
        ValueError: `trace` is empty, or `ranks` are not in it.
    """
    spans, shown, left_out = _select(trace, ranks)
    start_s = min(span.start_s for span in spans)
    total_s = max(1e-9, max(span.end_s for span in spans) - start_s)
    unit_s, unit = si(total_s, TIME_UNITS)
    tracks = _tracks(spans, shown)
    boxes = {id(s): ((s.start_s - start_s) / unit_s, y, (s.end_s - s.start_s) / unit_s, h) for s, y, h in tracks}
    lane_inches = _lane_inches(len(shown), min(height for *_, height in tracks))
    ax = ax or figure(width=8.5, height=1.4 + lane_inches * max(2, len(shown)))[1]
    looks = {kind: _look(kind, len(shown)) for kind in _HATCHES if kind in {span.kind for span in spans}}
    for kind, look in looks.items():
        _draw_bars(ax, [span for span in spans if span.kind == kind], boxes, look, total_s / unit_s, lane_inches)
    _draw_arrows(ax, spans, boxes)
    _draw_frame(ax, shown, total_s / unit_s, unit)
    if guess is not None and guess is not ...:
        draw_guess(ax, guess / unit_s, "x", unit)
        ax.set_xlim(right=1.01 * max(guess, total_s) / unit_s)
    key(ax, [(Patch(**look | {"linewidth": 0}), "receive" if kind == "recv" else kind) for kind, look in looks.items()])
    source = trace.source if trace.source != "measured" and trace.source not in title else ""
    told = " · ".join(filter(None, [title or "What every rank did", source, left_out]))
    ax.set_title(told)
    return picture(ax.figure, f"{told}: timeline of {len(shown)} ranks")


def _lane_inches(num_lanes, bar):
    """Height of a lane whose lowest bar takes the share `bar`: up to `_ROOMY_LANES`, a label fits into each bar."""
    if num_lanes <= _ROOMY_LANES:
        return min(1.0, max(0.5, 0.19 / bar))
    return 0.24 if num_lanes <= 24 else 0.12


def _select(trace, ranks):
    if not hasattr(trace, "spans") or not hasattr(trace, "source"):
        raise TypeError(f"trace is a {type(trace).__name__}: a Trace is needed, such as launch(..., trace=True).trace")
    there = sorted({span.rank for span in trace.spans})
    if not there:
        raise ValueError("trace is empty: launch with trace=True, and let the ranks do something")
    shown = there[:_MAX_LANES] if ranks is None else list(ranks)
    if not 0 < len(shown) <= _MAX_LANES or set(shown) - set(there):
        raise ValueError(f"ranks={ranks!r}: give 1 to {_MAX_LANES} of the trace's ranks {there[0]} to {there[-1]}")
    left_out = f"{len(shown)} of {len(there)} ranks" if len(shown) < len(there) else ""
    return [span for span in trace.spans if span.rank in set(shown)], shown, left_out


def _tracks(spans, shown):
    """[(span, top, height), …]: the lane of the k-th rank shown is centred on k; what overlaps lies in its own track.

    Computing is above sending, sending above what comes in; where groups never overlap on any rank, they share a track.
    """
    tracks = {rank: [] for rank in shown}
    by_start = sorted(spans, key=lambda span: (span.start_s, span.end_s))
    for group_name in ("own", "out", "in"):
        groups = {rank: [s for s in by_start if s.rank == rank and _group(s) == group_name] for rank in shown}
        base = 0
        while any(any(_clashes(groups[r], [s for s, at in tracks[r] if at >= base])) for r in shown):
            base += 1
        for rank, group in groups.items():
            free_s = defaultdict(lambda: -np.inf)
            for span in group:
                track = base
                while free_s[track] > span.start_s + _SLACK * (span.end_s - span.start_s):
                    track += 1
                free_s[track] = span.end_s
                tracks[rank].append((span, track))
    high = 0.8 / (1 + max(at for placed in tracks.values() for _, at in placed))
    boxes = []
    for lane, placed in enumerate(tracks.values()):
        everything = [span for span, _ in placed]
        for (span, at), clashes in zip(placed, _clashes(everything, everything), strict=True):
            alone = span.kind == "compute" and clashes <= 1  # itself
            boxes.append((span, lane - 0.4, 0.8) if alone else (span, lane - 0.4 + at * high, high))
    return boxes


def _group(span):
    own = span.kind == "compute" or (span.kind == "wait" and span.peer is None)
    return "own" if own else "out" if span.kind == "send" else "in"


def _clashes(group, others):
    """For each span of `group`: how many of `others` it overlaps for more than `_SLACK` of its length."""
    starts, ends = (np.array([getattr(span, edge) for span in others]) for edge in ("start_s", "end_s"))
    overlaps = ((np.minimum(ends, s.end_s) - np.maximum(starts, s.start_s), s.end_s - s.start_s) for s in group)
    return [np.count_nonzero(overlap > _SLACK * length) for overlap, length in overlaps]


def _look(kind, num_lanes):
    roomy = num_lanes <= _ROOMY_LANES
    hatch, width = (_HATCHES[kind], 0.4) if roomy else ("", 0.0)
    return {"facecolor": COLOURS[kind], "hatch": hatch, "edgecolor": "white", "linewidth": width}


def _draw_bars(ax, spans, boxes, look, total, lane_inches):
    """The spans of a kind; a label inside where it fits (judged by the share of the width that it takes)."""
    letters = 10.5 * ax.figure.get_figwidth()
    patches = [Rectangle((x, y), width, height) for x, y, width, height in (boxes[id(span)] for span in spans)]
    ax.add_collection(PatchCollection(patches, zorder=2, **look))
    for span in spans:
        x, y, width, height = boxes[id(span)]
        if span.label and height * lane_inches >= 0.16 and len(span.label) + 1 < letters * width / total:
            ink = {"color": "white"} if span.kind == "compute" else {"color": INK, "path_effects": [HALO]}
            ax.text(x + width / 2, y + height / 2, span.label, ha="center", va="center", zorder=3, **ink)


def _draw_arrows(ax, spans, boxes):
    """From where a message leaves to where it is received: the k-th send of a pair of ranks and its k-th receipt."""
    sends, receipts = defaultdict(list), defaultdict(list)
    for span in sorted(spans, key=lambda span: span.end_s):
        if span.kind == "send":
            sends[span.rank, span.peer].append(span)
        elif span.kind != "wait":
            receipts[span.peer, span.rank, span.kind == "recv"].append(span)
    pairs = []
    for (src, dst), out in sends.items():
        taken = [receipts[src, dst, True], receipts[src, dst, False]]
        pairs += next((list(zip(out, into, strict=True)) for into in taken if len(into) == len(out)), [])
    for send, receipt in pairs if len(pairs) <= _MAX_ARROWS else []:
        (x0, y0, _, h0), (x1, y1, w1, h1) = boxes[id(send)], boxes[id(receipt)]
        down = y1 > y0  # lanes count downwards
        start, end = (x0, y0 + h0 * down), (x1 + w1, y1 + h1 * (not down))
        arrow(ax, start, end, mutation_scale=8, shrinkA=0, shrinkB=0, linewidth=0.9, zorder=4)


def _draw_frame(ax, shown, total, unit):
    ax.barh(range(len(shown)), total, height=0.8, color="#ECECEC", zorder=0.5)
    every = 1 if len(shown) <= 16 else 4 if len(shown) <= 32 else 8
    ax.set(xlim=(0, 1.005 * total), ylim=(len(shown) - 0.5, -0.5), xlabel=f"time ({unit})")
    ax.set_yticks(range(0, len(shown), every), [f"rank {rank}" for rank in shown[::every]])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(False, axis="y")
