"""Pipelines as the papers draw them: a lane per rank, a box per pass of a micro-batch, with its number."""

import re
from collections.abc import Mapping

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from .labels import draw_guess, key
from .picture import picture
from .style import COLOURS, GREY, INK, TIME_UNITS, figure, si

_HATCHES = {"forward": "", "backward": "////", "input": "////", "weight": "...."}
_NAMES = {
    "forward": "forward (F)",
    "backward": "backward (B)",
    "input": "gradient of the input (I)",
    "weight": "gradient of the weights (W)",
}
_STEP = re.compile(rf"({'|'.join(_NAMES)}) (\d+)\.(\d+)")  # how a `Step` of a pipeline is labelled
_IDLE = "#EEEEEE"
_DIGIT_INCHES = 0.085  # of a letter of 10 points


def pipelines(traces, *, guess=None, until_s=0.0, num_ranks=0):
    """Draw traces of pipelines above each other on one axis of time, which the longest one fills; a `Picture`.

    Each box holds the number of its micro-batch, where there is room. Of a rank's stages, later ones are paler. Time
    starts at 0 with the first computing of each trace; titles say so when times are simulated or come from emulation.

    Args:
        traces: {title: `Trace`}, such as `simulate(program, cost_s=...).trace` and `launch(..., trace=True).trace`.
        guess: {title: the total time in seconds that the learner guessed for this trace}.
        until_s, num_ranks: the axes reach at least to this time, and have room for so many ranks, which a slider's
            picture needs so that nothing moves.

    Raises:
        TypeError: `traces` is no dict of traces, or there is none.
        ValueError: a trace holds no step of a pipeline.
    """
    if not isinstance(traces, Mapping) or not traces:
        raise TypeError(f"traces is a {type(traces).__name__}: a dict {{title: Trace}} that is not empty is needed")
    boxes = {title: _boxes(title, trace) for title, trace in traces.items()}
    lanes = [max(num_ranks, len({rank for rank, *_ in each})) for each in boxes.values()]
    inches = sum(0.34 * count + 0.62 for count in lanes) + 0.55
    fig, axes = figure(8.8, inches, rows=len(boxes), squeeze=False, sharex=True, height_ratios=lanes)
    longest_s = max(until_s, *(end for each in boxes.values() for *_, end in each))
    unit_s, unit = si(longest_s, TIME_UNITS)
    for ax, room, (title, trace) in zip(axes[:, 0], lanes, traces.items(), strict=True):
        _draw(ax, boxes[title], room, unit_s, longest_s / unit_s)
        source = f" · {trace.source}" * (trace.source != "measured" and trace.source not in title)
        ax.set_title(title + source)
        draw_guess(ax, guess[title] / unit_s if guess and title in guess else None, "x", unit)
    there = {op for each in boxes.values() for _, op, *_ in each}
    samples = [(Patch(**_look(op, 0)), name) for op, name in _NAMES.items() if op in there]
    key(axes[0, 0], [*samples, (Patch(facecolor=_IDLE, edgecolor=GREY, linewidth=0.5), "idle")])
    ends = [1.005 * longest_s / unit_s, *(1.01 * line.get_xdata()[0] for ax in axes[:, 0] for line in ax.lines)]
    axes[-1, 0].set(xlabel=f"time ({unit})", xlim=(0, max(ends)))
    return picture(fig, f"pipelines on one axis of time: {'; '.join(traces)}"[:190])


def _boxes(title, trace):
    """[(rank, op, stage, micro-batch, start_s, end_s), …] of a trace, from 0 s on."""
    if not hasattr(trace, "spans"):
        raise TypeError(f"traces[{title!r}] is a {type(trace).__name__}: a Trace is needed")
    found = []
    for span in trace.spans:
        if step := _STEP.fullmatch(span.label):
            op, stage, micro_batch = step.groups()
            found.append((span.rank, op, int(stage), int(micro_batch), span.start_s, span.end_s))
    if not found:
        raise ValueError(f"traces[{title!r}] has no step of a pipeline: launch a step of one with trace=True")
    zero_s = min(start for *_, start, _ in found)
    return [(*box, start - zero_s, end - zero_s) for *box, start, end in sorted(found)]


def _draw(ax, boxes, num_lanes, unit_s, longest):
    ranks = sorted({rank for rank, *_ in boxes})
    stages = {rank: sorted({stage for r, _, stage, *_ in boxes if r == rank}) for rank in ranks}
    ax.barh(ranks, max(end for *_, end in boxes) / unit_s, height=0.84, color=_IDLE, zorder=0.5)
    per_inch = longest / (ax.figure.get_figwidth() - 1.0)
    for rank, op, stage, micro_batch, start_s, end_s in boxes:
        look = _look(op, stages[rank].index(stage))
        start, width = start_s / unit_s, (end_s - start_s) / unit_s
        ax.barh(rank, width, height=0.84, left=start, zorder=1.2, **look)
        if width / per_inch > _DIGIT_INCHES * (len(str(micro_batch)) + 0.5):
            ink = "white" if _is_dark(look["facecolor"]) else INK
            face = {"facecolor": look["facecolor"], "edgecolor": "none", "pad": 0.6}
            place = {"ha": "center", "va": "center", "fontsize": 10, "color": ink, "zorder": 3}
            ax.text(start + width / 2, rank, str(micro_batch), bbox=face, clip_on=True, **place)
    ax.set(ylim=(min(ranks) + num_lanes - 0.5, min(ranks) - 0.5))
    ax.set_yticks(ranks, [f"rank {rank}" for rank in ranks])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(False, axis="y")


def _look(op, number):
    """How a pass looks on the `number`-th stage of its rank: white is mixed into the colour for later stages."""
    pale = 1 - 0.5 ** min(number, 2)
    colour = tuple((1 - pale) * np.array(to_rgb(COLOURS[op])) + pale)
    return {"facecolor": colour, "hatch": _HATCHES[op], "edgecolor": "white", "linewidth": 0.6}


def _is_dark(rgb):
    return np.array(rgb) @ (0.299, 0.587, 0.114) < 0.55
