"""When a device and its loaders are at work: one lane each, on one clock."""

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from .labels import draw_guess, key
from .picture import picture
from .style import COLOURS, figure, rank_colour

_SPARE_LANES_INCHES = 0.9  # of each panel: title and axis


def lanes(runs, *, guess=None, num_lanes=None, until_s=0.0):
    """Draw runs above each other on one axis of time: when the device computes, and when loaders load; a `Picture`.

    Args:
        runs: {title: [(lane, start_s, end_s), …]}. What happens in the lane "device" is computing, in others loading.
            Time starts at 0 with the first span of each run.
        guess: {title: the total time in seconds that the learner guessed for this run}.
        num_lanes: for how many lanes each run has room, which a slider's picture needs so that nothing moves.
        until_s: the axis reaches at least to this time.

    Raises:
        TypeError, ValueError: there is no run, or one has no spans.
    """
    if not isinstance(runs, Mapping) or not runs:
        raise TypeError(f"runs={runs!r}: a dict {{title: spans}} that is not empty is needed")
    if not all(runs.values()):
        raise ValueError(f"runs={list(runs)!r}: each needs at least one span (lane, start_s, end_s)")
    rooms = [num_lanes or len({lane for lane, _, _ in spans}) for spans in runs.values()]
    height = sum(_SPARE_LANES_INCHES + 0.4 * room for room in rooms)
    fig, axes = figure(9, height, rows=len(runs), sharex=True, squeeze=False)
    for ax, room, (title, spans) in zip(axes[:, 0], rooms, runs.items(), strict=True):
        zero_s = min(start for _, start, _ in spans)
        for lane, start, end in sorted(spans):
            colour = COLOURS["compute" if lane == "device" else "send"]
            ax.barh(lane, 1e3 * (end - start), 0.7, 1e3 * (start - zero_s), color=colour, edgecolor="white")
        ax.set(title=title, ylim=(-0.6, room - 0.4))
        ax.grid(False, axis="y")
        guess_s = (guess or {}).get(title)
        is_open = guess_s is None or guess_s is ...
        draw_guess(ax, None if is_open else round(1e3 * guess_s, 1), "x", "ms")
    samples = {"compute": COLOURS["compute"], "load": COLOURS["send"]}
    key(axes[0, 0], [(Patch(facecolor=colour), name) for name, colour in samples.items()])
    ends = [1e3 * until_s, *(ax.dataLim.x1 for ax in axes[:, 0])]
    axes[-1, 0].set(xlabel="time (ms)", xlim=(0, 1.01 * max(ends)))
    names = sorted({lane for spans in runs.values() for lane, _, _ in spans})
    return picture(fig, f"when each is at work: {', '.join(names)}")  # titles may hold what was measured


def owners(table, xlabel, ylabel, title=""):
    """Draw a table of ranks, each cell in the colour of the rank that it belongs to; a `Picture`.

    Args:
        table: (rows, columns), the number of a rank from 0 to 7 in each cell, or NaN for none.
        xlabel, ylabel: what the columns and the rows are.
        title: the title of the figure.
    """
    fig, ax = figure(8, 3.4)
    colours = ListedColormap([rank_colour(rank) for rank in range(8)])
    ax.imshow(table, cmap=colours, vmin=-0.5, vmax=7.5, aspect="auto", interpolation="nearest")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ranks = np.unique(table[np.isfinite(table)]).astype(int).tolist()
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    ax.legend(handles=[Patch(color=rank_colour(rank), label=f"rank {rank}") for rank in ranks], **beside)
    ax.grid(False)
    ax.set_title(title)
    return picture(fig, f"{title}: the rank that each cell belongs to, in its colour")
