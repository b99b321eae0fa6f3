"""What every rank did, and when: one lane per rank, on one clock."""

from collections import defaultdict
from collections.abc import Mapping

from matplotlib.collections import PatchCollection
from matplotlib.patches import Patch, Rectangle

from .labels import arrow, draw_guess, key, mark
from .picture import picture
from .style import COLOURS, GREY, HALO, INK, TIME_UNITS, figure, si
from .tracks import tracks_of

_HATCHES = {"compute": "", "send": "", "recv": "////", "add": "xxxx", "copy": "....", "wait": "\\\\\\\\"}  # by kind
_IDLE = "#E4E4E4"
_MAX_LANES = 64
_MAX_ARROWS = 40
_ROOMY_LANES = 8  # up to so many, bars are high enough for hatches and labels
_MAX_LABELS = 4  # of what is computed, in the key
_NUMBERS = "0123456789., "  # the key says "forward" once for "forward 0.3" and "forward 1.3"


def timeline(trace, title="", *, ranks=None, guess=None, marks=None, until_s=0.0, ax=None):
    """Draw a `Trace`: what each rank computed, sent, received, added and copied, and when it waited; a `Picture`.

    What a rank does at once (sending while receiving) lies in tracks of its lane; where a lane is blank, the rank is
    idle. The key names what `comm.compute("…")` says is computed. Arrows join a send to its receipt while there are
    few. Time starts at 0 with the first span. The title says so when times are simulated or come from emulated links.

    Args:
        trace: a `Trace`, such as `launch(..., trace=True).trace` or `simulate(...).trace`.
        title: the title of the figure.
        ranks: the ranks to show, at most 64; by default the first 64.
        guess: the total time in seconds that the learner guessed.
        marks: {label: time in seconds}, drawn as upright lines, such as a formula beside what was measured.
        until_s: the axis reaches at least to this time, so that timelines above each other can have one scale.
        ax: axes to draw in, instead of a new figure.

    Raises:
        TypeError: `trace` is something else.
        ValueError: `trace` is empty, or `ranks` are not in it.
    """
    spans, shown, left_out = _select(trace, ranks)
    start_s, total_s = min(span.start_s for span in spans), _length_s(spans)
    unit_s, unit = si(max(total_s, until_s), TIME_UNITS)
    tracks = tracks_of(spans, shown)
    boxes = {id(s): ((s.start_s - start_s) / unit_s, y, (s.end_s - s.start_s) / unit_s, h) for s, y, h in tracks}
    lane_inches = _lane_inches(len(shown), min(height for *_, height in tracks))
    ax = ax or figure(width=8.5, height=1.4 + lane_inches * max(2, len(shown)))[1]
    _draw_frame(ax, shown, total_s / unit_s, unit)
    ax.set_xlim(0, 1.005 * max(total_s, until_s) / unit_s)
    samples = _draw_spans(ax, spans, boxes, lane_inches, len(shown) <= _ROOMY_LANES)
    _draw_arrows(ax, spans, boxes)
    _draw_lines(ax, guess, marks or {}, unit_s, unit)
    key(ax, samples)
    source = trace.source if trace.source != "measured" and trace.source not in title else ""
    told = " · ".join(filter(None, [title or "What every rank did", source, left_out]))
    ax.set_title(told)
    return picture(ax.figure, f"{told}: timeline of {len(shown)} ranks")


def timelines(traces, *, guess=None, marks=None):
    """Draw traces above each other on one axis of time, which the longest one fills; a `Picture`.

    Args:
        traces: {title: `Trace`}.
        guess: {title: the total time in seconds that the learner guessed for this trace}.
        marks: {title: {label: time in seconds}}, drawn as upright lines.

    Raises:
        TypeError, ValueError: a trace does not fit, as in `timeline`, or there is none.
    """
    if not isinstance(traces, Mapping) or not traces:
        raise TypeError(f"traces is a {type(traces).__name__}: a dict {{title: Trace}} that is not empty is needed")
    selected = [_select(trace, None) for trace in traces.values()]
    lanes = [0.4 + len(shown) * _lane_inches(len(shown), bar=0.4) for _, shown, _ in selected]
    fig, axes = figure(8.5, sum(1.1 + each for each in lanes), rows=len(traces), squeeze=False, height_ratios=lanes)
    until_s = max(_length_s(spans) for spans, _, _ in selected)
    for ax, (title, trace) in zip(axes[:, 0], traces.items(), strict=True):
        lines = {"guess": (guess or {}).get(title), "marks": (marks or {}).get(title)}
        timeline(trace, title, until_s=until_s, ax=ax, **lines)
    for ax in axes[:-1, 0]:
        ax.set_xlabel("")
    end = max(ax.get_xlim()[1] for ax in fig.axes)  # a guess may lie behind the longest trace
    for ax in fig.axes:
        ax.set_xlim(0, end)
    return picture(fig, f"timelines on one axis: {'; '.join(ax.get_title(loc='left') for ax in axes[:, 0])}")


def _lane_inches(num_lanes, bar):
    """Height of a lane whose lowest bar takes the share `bar`: up to `_ROOMY_LANES`, a label fits into each bar."""
    if num_lanes <= _ROOMY_LANES:
        return min(1.0, max(0.5, 0.19 / bar))
    return 0.24 if num_lanes <= 24 else 0.12


def _length_s(spans):
    """Seconds from the first start to the last end, and never 0."""
    return max(1e-9, max(span.end_s for span in spans) - min(span.start_s for span in spans))


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


def _draw_spans(ax, spans, boxes, lane_inches, roomy):
    """Draw the spans kind by kind, and return the entries of the key."""
    samples = []
    for kind in (kind for kind in _HATCHES if kind in {span.kind for span in spans}):
        own = [span for span in spans if span.kind == kind]
        look = {"facecolor": COLOURS[kind], "hatch": _HATCHES[kind] * roomy, "edgecolor": "white"}
        _draw_bars(ax, own, boxes, look | {"linewidth": 0.4 * roomy}, lane_inches)
        labels = list(dict.fromkeys(name for span in own if (name := (span.label or "").rstrip(_NUMBERS))))
        named = f": {', '.join(labels[:_MAX_LABELS])}" * bool(labels) + ", …" * (len(labels) > _MAX_LABELS)
        samples.append((Patch(**look, linewidth=0), ("receive" if kind == "recv" else kind) + named))
    return [*samples, (Patch(facecolor=_IDLE, edgecolor=GREY, linewidth=0.5), "idle")]


def _draw_bars(ax, spans, boxes, look, lane_inches):
    """Draw the spans of a kind; a label inside where it fits (judged by the share of the width that it takes)."""
    letters = 10.5 * ax.figure.get_figwidth() / ax.get_gridspec().ncols
    patches = [Rectangle((x, y), width, height) for x, y, width, height in (boxes[id(span)] for span in spans)]
    ax.add_collection(PatchCollection(patches, zorder=1.2, **look))
    for span in spans:
        x, y, width, height = boxes[id(span)]
        share = width / ax.get_xlim()[1]
        if span.label and height * lane_inches >= 0.16 and len(span.label) + 1 < letters * share:
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


def _draw_lines(ax, guess, marks, unit_s, unit):
    """Draw upright lines at the marks and at the guess, and widen the axis to show them."""
    for label, time_s in marks.items():
        mark(ax, time_s / unit_s, label, "x", linestyle=(0, (2, 2)))
    if guess is not None and guess is not ...:
        draw_guess(ax, guess / unit_s, "x", unit)
    ends = [line.get_xdata()[0] for line in ax.lines]
    ax.set_xlim(0, max([ax.get_xlim()[1], *(1.01 * end for end in ends)]))


def _draw_frame(ax, shown, total, unit):
    """Draw the lanes, grey from the start to the end of the trace, and name them."""
    ax.barh(range(len(shown)), total, height=0.8, color=_IDLE, zorder=0.5)
    every = 1 if len(shown) <= 16 else 4 if len(shown) <= 32 else 8
    ax.set(ylim=(len(shown) - 0.5, -0.5), xlabel=f"time ({unit})")
    ax.set_yticks(range(0, len(shown), every), [f"rank {rank}" for rank in shown[::every]])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(False, axis="y")
