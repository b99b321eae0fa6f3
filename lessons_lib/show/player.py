"""Step through a schedule round by round: ranks on a circle, chunks that fill up, and the messages of the round."""

from math import cos, hypot, pi, sin

import ipywidgets as widgets
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from .control import Control
from .labels import key
from .schedule import DASHES, MAX_STRIPED, caption, draw_cells, draw_grid, legend, plural, states
from .schedule import schedule as still_picture
from .style import COLOURS, INK, figure, headline, picture, rank_colour, text_colour

_NUMBERED_ARROWS = 16  # up to so many arrows in a round carry the number of their chunk
_CAPTION = (
    "column: a chunk, with a layer for each contribution, in its rank's colour · "
    "number on an arrow: the chunk that travels · frame: changed in this round"
)
_BOX = (1.36, 0.8)  # of a rank, in inches
_SPREAD = (2.95, 2.0)  # of the circle


def player(schedule, title=""):
    """A `Control` that plays a schedule: a button and a slider over its rounds.

    Up to 8 ranks stand on a circle; in each, a column is a chunk, and a layer of it the contribution of the rank of
    that colour. More ranks, up to 64, are a grid of ranks and chunks. A page without a kernel shows the rounds at once.

    Raises TypeError or ValueError for what is no schedule, and for more than 64 ranks or chunks.
    """
    after, last = states(schedule), len(schedule.rounds)
    draw = _circle if max(schedule.world_size, schedule.num_chunks) <= MAX_STRIPED else _grid

    def draw_round(round):
        messages = schedule.rounds[round - 1] if round else []
        what = title or f"{schedule.name} on {plural(schedule.world_size, 'rank')}"
        told = f"{what} · {_summary(messages, round, last)}"
        return picture(draw(schedule, after, round, messages, told), told)

    slider = widgets.IntSlider(0, 0, last, description="round", layout=widgets.Layout(width="min(32rem, 100%)"))
    play = widgets.Play(min=0, max=last, interval=1200, description="play the rounds")
    widgets.link((play, "value"), (slider, "value"))
    return Control(draw_round, {"round": slider}, True, still_picture(schedule, title), extra=[play])


def _summary(messages, round, last):
    if not round:
        return f"start of {last} rounds"
    ops = sorted({message.op for message in messages})
    return f"round {round} of {last}: {' and '.join(ops) or 'nothing moves'}"


def _grid(schedule, after, round, messages, told):
    fig, ax = figure(7.5, 5.2)
    draw_grid(ax, schedule, after[round], messages)
    ax.set_title(told)
    caption(fig, legend(schedule.world_size, len(messages)))
    return fig


def _circle(schedule, after, round, messages, told):
    size = schedule.world_size
    tall = 2.5 if size > 2 else 0.6
    fig, ax = figure(8, 1.15 + 2 * tall)
    turns = [2 * pi * (r / size if size > 2 else r / 2 - 0.25) for r in range(size)]
    places = [(_SPREAD[0] * sin(turn), _SPREAD[1] * cos(turn)) for turn in turns]
    changed = {(message.dst, message.chunk) for message in messages}
    boxes = [_rank(ax, schedule, rank, place, after[round][rank], changed) for rank, place in enumerate(places)]
    together = {}
    for src, dst, chunk, op in messages:
        together.setdefault((src, dst, op), []).append(chunk)
    for (src, dst, op), chunks in together.items():
        label = _chunks(chunks) if len(together) <= _NUMBERED_ARROWS else ""
        both_ways = any((dst, src, each) in together for each in DASHES)
        _arrow(ax, places[src], places[dst], boxes[src], boxes[dst], op, label, both_ways)
    ax.set(xlim=(-3.85, 3.85), ylim=(-tall, tall), aspect="equal")
    ax.set_axis_off()
    arrows = [(Line2D([], [], color=text_colour(COLOURS[op]), linestyle=DASHES[op], linewidth=2), op) for op in DASHES]
    key(ax, arrows)
    headline(fig, told)
    caption(fig, _CAPTION)
    return fig


def _rank(ax, schedule, rank, place, held, changed):
    """The box of a rank: a column a chunk, filled layer by layer; what this round has changed is framed."""
    (width, height), (x, y) = _BOX, (place[0] - _BOX[0] / 2, place[1] - _BOX[1] / 2)
    edge = rank_colour(rank)
    box = FancyBboxPatch(
        (x, y),
        width,
        height,
        "round,pad=0.06,rounding_size=0.1",
        facecolor="white",
        edgecolor=edge,
        linewidth=2,
        zorder=1.5,
    )
    ax.add_patch(box)
    ax.text(place[0], y + height - 0.02, f"rank {rank}", color=text_colour(edge), ha="center", va="top", zorder=4)
    step = width / schedule.num_chunks
    areas = {c: (x + (c + 0.1) * step, y + 0.18, 0.8 * step, height - 0.42) for c in range(schedule.num_chunks)}
    draw_cells(ax, dict(enumerate(held)), areas, schedule.world_size, [c for c in areas if (rank, c) in changed], True)
    for chunk in areas:
        ax.text(x + (chunk + 0.5) * step, y + 0.15, str(chunk), ha="center", va="top", zorder=4, color=INK)
    return box


def _arrow(ax, start, end, start_box, end_box, op, label, both_ways):
    """An arrow that bends towards the middle of the circle, past the ranks between; of a pair, each to its own side."""
    turn = start[0] * end[1] - start[1] * end[0]
    bend = 0.12 if both_ways or abs(turn) < 1e-9 else -0.2 if turn > 0 else 0.2
    look = {"color": text_colour(COLOURS[op]), "linewidth": 2 if label else 1, "linestyle": DASHES[op], "zorder": 1.2}
    ends = {"patchA": start_box, "patchB": end_box, "shrinkA": 2, "shrinkB": 2, "mutation_scale": 16 if label else 9}
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", connectionstyle=f"arc3,rad={bend}", **ends, **look))
    across, up = end[0] - start[0], end[1] - start[1]
    along = 0.5 if hypot(across, up) < 3 else 0.36  # long arrows cross in the middle
    side = 2 * along * (1 - along) * bend
    if label:
        disc = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": look["color"]}
        at = start[0] + along * across + side * up, start[1] + along * up - side * across
        ax.text(*at, label, ha="center", va="center", color=INK, bbox=disc, zorder=6)


def _chunks(chunks):
    run = chunks == list(range(chunks[0], chunks[-1] + 1)) and len(chunks) > 2
    return f"{chunks[0]}–{chunks[-1]}" if run else ", ".join(map(str, chunks))
