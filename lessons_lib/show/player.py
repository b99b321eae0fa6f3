"""Step through a schedule round by round: ranks on a circle, chunks that fill up, and the messages of the round."""

from math import cos, hypot, pi, sin

import ipywidgets as widgets
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from .control import Control
from .labels import arrow, key
from .picture import picture
from .schedule import DASHES, MAX_STRIPED, caption, draw_cells, draw_grid, legend, plural, states
from .schedule import schedule as still_picture
from .style import COLOURS, INK, figure, headline, rank_colour, text_colour

_NUMBERED_ARROWS = 16  # up to so many arrows in a round carry the number of their chunk
_CAPTION = (
    "column: a chunk, with a layer for each contribution, in its rank's colour · "
    "number on an arrow: the chunk that travels · frame: changed in this round"
)
_BOX = (1.36, 0.8)  # of a rank, in inches
_SPREAD = (2.95, 2.0)  # of the circle


def player(schedule, title=""):
    """Make a control that plays a schedule: a button and a slider over its rounds.

    Up to 8 ranks stand on a circle; in each, a column is a chunk, and a layer of it is the contribution of the rank of
    that colour. More ranks are drawn as a grid of ranks and chunks. A page without a kernel shows the rounds at once.

    Args:
        schedule: a `Schedule` of at most 64 ranks and 64 chunks.
        title: the title of the figure; by default the name of the schedule and the number of ranks.

    Returns:
        A `Control`.

    Raises:
        TypeError: `schedule` is something else.
        ValueError: there are more ranks or chunks.
    """
    after, last = states(schedule), len(schedule.rounds)
    draw = _circle if max(schedule.world_size, schedule.num_chunks) <= MAX_STRIPED else _grid
    what = title or f"{schedule.name} on {plural(schedule.world_size, 'rank')}"

    def draw_round(round):
        messages = schedule.rounds[round - 1] if round else []
        ops = " and ".join(sorted({message.op for message in messages})) or "nothing moves"
        told = f"{what} · " + (f"round {round} of {last}: {ops}" if round else f"start of {last} rounds")
        return picture(draw(schedule, after[round], messages, told), told)

    slider = widgets.IntSlider(0, 0, last, description="round", layout=widgets.Layout(width="min(32rem, 100%)"))
    play = widgets.Play(min=0, max=last, interval=1200, description="play the rounds")
    widgets.link((play, "value"), (slider, "value"))
    return Control(draw_round, {"round": slider}, True, still_picture(schedule, title), extra=[play])


def _grid(schedule, held, messages, told):
    fig, ax = figure(7.5, 5.2)
    draw_grid(ax, schedule, held, messages)
    ax.set_title(told)
    caption(fig, legend(schedule.world_size, len(messages)))
    return fig


def _circle(schedule, held, messages, told):
    size = schedule.world_size
    tall = 2.5 if size > 2 else 0.6
    fig, ax = figure(8, 1.15 + 2 * tall)
    turns = [2 * pi * (r / size if size > 2 else r / 2 - 0.25) for r in range(size)]
    places = [(_SPREAD[0] * sin(turn), _SPREAD[1] * cos(turn)) for turn in turns]
    frames = [_frame(ax, rank, place) for rank, place in enumerate(places)]
    _draw_chunks(ax, places, held, {(message.dst, message.chunk) for message in messages})
    together = {}
    for src, dst, chunk, op in messages:
        together.setdefault((src, dst, op), []).append(chunk)
    for (src, dst, op), chunks in together.items():
        label = _chunks(chunks) if len(together) <= _NUMBERED_ARROWS else ""
        both_ways = any((dst, src, each) in together for each in DASHES)
        _arrow(ax, places[src], places[dst], frames[src], frames[dst], op, label, both_ways)
    ax.set(xlim=(-3.85, 3.85), ylim=(-tall, tall), aspect="equal")
    ax.set_axis_off()
    key(ax, [(Line2D([], [], linewidth=2, **_line(op)), op) for op in DASHES])
    headline(fig, told)
    caption(fig, _CAPTION)
    return fig


def _line(op):
    return {"color": text_colour(COLOURS[op]), "linestyle": DASHES[op]}


def _frame(ax, rank, place):
    """Draw the box of a rank, with its name."""
    (width, height), colour = _BOX, rank_colour(rank)
    x, y = place[0] - width / 2, place[1] - height / 2
    look = {"facecolor": "white", "edgecolor": colour, "linewidth": 2, "zorder": 1.5}
    box = FancyBboxPatch((x, y), width, height, "round,pad=0.06,rounding_size=0.1", **look)
    ax.add_patch(box)
    ax.text(place[0], y + height - 0.02, f"rank {rank}", color=text_colour(colour), ha="center", va="top", zorder=4)
    return box


def _draw_chunks(ax, places, held, changed):
    """Draw a column per chunk into the box of each rank, filled layer by layer; what the round changed is framed."""
    cells, step = {}, _BOX[0] / len(held[0])
    for rank, (x, y) in enumerate(places):
        left, low = x - _BOX[0] / 2, y - _BOX[1] / 2
        for chunk in range(len(held[0])):
            cells[rank, chunk] = left + (chunk + 0.1) * step, low + 0.18, 0.8 * step, _BOX[1] - 0.42
            ax.text(left + (chunk + 0.5) * step, low + 0.15, chunk, ha="center", va="top", zorder=4, color=INK)
    draw_cells(ax, held, cells, changed, upright=True)


def _arrow(ax, start, end, start_box, end_box, op, label, both_ways):
    """Draw an arrow that bends towards the middle, past the ranks between; the two of a pair bend apart."""
    turn = start[0] * end[1] - start[1] * end[0]
    bend = 0.12 if both_ways or abs(turn) < 1e-9 else -0.2 if turn > 0 else 0.2
    look = _line(op) | {"linewidth": 2 if label else 1, "mutation_scale": 16 if label else 9, "zorder": 1.2}
    arrow(ax, start, end, bend, patchA=start_box, patchB=end_box, **look)
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
