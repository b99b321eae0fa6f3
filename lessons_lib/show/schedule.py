"""A schedule as a picture: what every rank holds after each round, and the messages that brought it there."""

import operator
import textwrap

import numpy as np
from matplotlib import patheffects
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb

from ..schedules.promise import initial_shares
from ..schedules.replay import replay
from ..schedules.schedule import check_is_schedule
from .labels import arrow
from .picture import picture
from .style import COLOURS, INK, figure, headline, rank_colour, text_colour

MAX_STRIPED = 8  # up to so many ranks, a cell shows whose contributions it holds; beyond, how many
MAX_RANKS = 64
EMPTY = "#E6E6E6"
DASHES = {"add": "-", "copy": (0, (4, 1.5))}
_SHADED = "the darker, the more contributions a rank holds of a chunk"
_STRIPED = "stripe: the contribution of the rank of that colour · frame: complete · arrow: add · dashed: copy"
_DOTTED = " · dot: changed in this round"
_MAX_ARROWS = 16  # in a panel


def states(schedule):
    """What every rank holds at the start and after each round. A wrong schedule can be drawn too.

    Args:
        schedule: a `Schedule` of at most 64 ranks and 64 chunks.

    Returns:
        states[k][rank][chunk]: the ranks whose data this rank holds of this chunk after k rounds, as bits.

    Raises:
        TypeError: `schedule` is something else.
        ValueError: there are more ranks or chunks, or a message names a rank or chunk that does not exist.
    """
    check_is_schedule(schedule)
    size, chunks = schedule.world_size, schedule.num_chunks
    if max(size, chunks) > MAX_RANKS:
        raise ValueError(f"schedule has {size} ranks and {chunks} chunks: at most {MAX_RANKS} of each can be drawn")
    for number, messages in enumerate(schedule.rounds):
        for message in messages:
            if not (0 <= message.src < size and 0 <= message.dst < size and 0 <= message.chunk < chunks):
                raise ValueError(f"round {number}: {message} needs ranks below {size} and chunks below {chunks}")
    held = [[share & everybody(size) for share in shares] for shares in initial_shares(schedule)]
    after = [[list(shares) for shares in held]]
    for _ in replay(schedule.rounds, held, operator.or_):
        after.append([list(shares) for shares in held])
    return after


def everybody(world_size):
    """The contributions of all ranks, as bits."""
    return (1 << world_size) - 1


def schedule(schedule, title="", *, max_rounds=7):
    """Draw what every rank holds at the start and after each round, one row per rank and one column per chunk.

    A stripe in a cell is the contribution of the rank of that colour; with more than 8 ranks, a cell is the darker the
    more contributions it holds. Arrows are the messages of the round.

    Args:
        schedule: a `Schedule` of at most 64 ranks and 64 chunks.
        title: the title of the figure.
        max_rounds: how many rounds to draw, at least 1; of a longer schedule, evenly spaced ones and the last.

    Returns:
        A `Picture`.

    Raises:
        TypeError: `schedule` is something else.
        ValueError: there are more ranks or chunks.
    """
    after, last, size = states(schedule), len(schedule.rounds), schedule.world_size
    drawn = np.unique(np.linspace(0, last, min(last, max_rounds) + 1).round().astype(int))
    across, panel = (4, 0.32 * max(3, size)) if size <= 4 else (3, 0.25 * size) if size <= MAX_STRIPED else (4, 1.7)
    columns = min(across, len(drawn))
    rows = -(-len(drawn) // columns)
    width, height = 9.5 * max(columns, across - 1) / across, 0.9 + rows * (panel + 0.75)
    fig, axes = figure(width, height, columns, rows, squeeze=False)
    rounds = [[], *schedule.rounds]
    for ax, number in zip(axes.flat, drawn, strict=False):
        draw_grid(ax, schedule, after[number], rounds[number])
        told = f" of {last}" if size > MAX_STRIPED else f": {plural(len(rounds[number]), 'message')}"
        ax.set_title(f"round {number}{told}" if number else "start", fontsize=10)
    for ax in axes.flat[len(drawn) :]:
        ax.set_visible(False)
    title = title or f"{schedule.name} on {plural(size, 'rank')}: what each holds after each round"
    headline(fig, title)
    caption(fig, legend(size, max(len(rounds[number]) for number in drawn)))
    return picture(fig, title)


def draw_grid(ax, schedule, held, messages):
    """Ranks by chunks, and the messages as arrows (where they are many, as a dot in each cell they change), in `ax`."""
    size, chunks = schedule.world_size, schedule.num_chunks
    striped = size <= MAX_STRIPED
    if striped:
        boxes = {(r, c): (c - 0.43, r - 0.37, 0.86, 0.74) for r in range(size) for c in range(chunks)}
        draw_cells(ax, held, boxes, [(r, c) for r, c in boxes if _is_complete(schedule, held[r][c])])
    else:
        counts = np.array([[share.bit_count() for share in row] for row in held])[..., None]
        depth = np.where(counts > 0, 0.12 + 0.88 * counts / (size if _reduces(schedule) else 1), 0)
        ax.imshow(np.array(to_rgb(EMPTY)) * (1 - depth) + np.array(to_rgb(COLOURS["ring"])) * depth, aspect="auto")
    if striped and len(messages) <= _MAX_ARROWS:
        draw_arrows(ax, messages)
    elif messages:
        x, y = zip(*{(message.chunk, message.dst) for message in messages}, strict=True)
        ax.scatter(x, y, s=14 if striped else 5, color=INK, edgecolor="white", linewidth=0.6, zorder=5)
    every = 1 if striped else 8
    ax.set(xlim=(-0.5, chunks - 0.5), ylim=(size - 0.5, -0.5), xlabel="chunk")
    ax.set_xticks(range(0, chunks, 1 if chunks <= 8 else 8))
    ax.set_yticks(range(0, size, every), [f"rank {rank}" for rank in range(0, size, every)])
    for rank, label in enumerate(ax.get_yticklabels() if striped else []):
        label.set_color(text_colour(rank_colour(rank)))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def _reduces(schedule):
    return schedule.collective in ("all_reduce", "reduce_scatter")


def _is_complete(schedule, share):
    """Whether everybody has contributed to a cell, or, where data only travels, anybody."""
    return share == everybody(schedule.world_size) if _reduces(schedule) else share > 0


def legend(world_size, num_messages):
    """What the signs in `draw_grid` mean."""
    if world_size > MAX_STRIPED:
        return _SHADED + _DOTTED
    return _STRIPED + _DOTTED * (num_messages > _MAX_ARROWS)


def caption(fig, text):
    """`text` below the panels; it wraps at its " · "."""
    bound = text.replace(" ", "\xa0").replace("·\xa0", "· ")
    lines = textwrap.fill(bound, int(12.5 * fig.get_figwidth())).replace("\xa0·\n", "\n")
    fig.supxlabel(lines, x=0.01, ha="left", fontsize=10, color=INK)


def plural(count, thing):
    return f"{count} {thing}{'s' * (count != 1)}"


def draw_cells(ax, held, boxes, framed, upright=False):
    """A box for each cell, with a stripe for each contribution that `held` has of it, stacked when `upright`.

    held[rank][chunk]: bits; boxes: {(rank, chunk): (x, y, width, height)}; framed: the cells that get a frame.
    """
    stripes, colours, size = [], [], len(held)
    for (rank, chunk), (x, y, width, height) in boxes.items():
        for k in range(size):
            stripe = (x, y + k * height / size, width, height / size)
            stripes.append(_corners(*(stripe if upright else (x + k * width / size, y, width / size, height))))
            colours.append(rank_colour(k) if held[rank][chunk] >> k & 1 else EMPTY)
    ax.add_collection(PolyCollection(stripes, facecolors=colours, edgecolors=colours, linewidths=0.2, zorder=2))
    frames = [_corners(*boxes[cell]) for cell in framed]
    ax.add_collection(PolyCollection(frames, facecolors="none", edgecolors=INK, linewidths=1.6, zorder=3))


def _corners(x, y, width, height):
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def draw_arrows(ax, messages):
    """The messages of a round, from row to row in the column of their chunk; several of a chunk stand side by side."""
    outlined = [patheffects.withStroke(linewidth=3.5, foreground="white")]
    for number, (src, dst, chunk, op) in enumerate(messages):
        same = [k for k, message in enumerate(messages) if message.chunk == chunk]
        x = chunk + 0.7 * ((same.index(number) + 0.5) / len(same) - 0.5)
        bend = 0 if abs(src - dst) == 1 or len(same) > 1 else min(0.3, 1.1 / abs(src - dst))
        look = {"linewidth": 1.4, "linestyle": DASHES[op], "path_effects": outlined}
        arrow(ax, (x, src), (x, dst), bend, mutation_scale=10, clip_on=False, zorder=5, **look)
