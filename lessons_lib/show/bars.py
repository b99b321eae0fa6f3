"""Level bars, in one piece or in parts, each with its number behind it."""

from collections.abc import Mapping

import numpy as np
from matplotlib.patches import Patch

from .labels import draw_guess, key
from .picture import picture
from .style import HALO, INK, assign_colours, figure


def bars(rows, xlabel, title="", *, notes=None, colours=None, numbers=False, guess=None, unit="", xlim=None, ax=None):
    """Draw a level bar per row, in one piece or in parts one after the other; a `Picture`.

    Args:
        rows: {name: number} or {name: {part: number}}, from top to bottom, where no number is below 0.
        xlabel: what the bars measure, with the unit: "time (ms)".
        title: the title of the figure.
        notes: {name: what is written behind the bar}; by default the number, or the sum of the parts, in three digits.
        colours: {name or part: a colour, or the name of a thing in `COLOURS`}.
        numbers: whether each part has its number in it, in three digits; one of 0 has none.
        guess: the learner's number, drawn as a dashed upright line; None or `...` draws none.
        unit: the unit of the guess.
        xlim: (low, high), which a slider's picture needs so that its axis stays still.
        ax: axes to draw in, instead of a new figure.

    Raises:
        TypeError, ValueError: `rows` is empty, or holds what is no number from 0 up.
    """
    if not isinstance(rows, Mapping) or not rows:
        raise TypeError(f"rows={rows!r}: a dict {{name: number}} that is not empty is needed")
    parts = {name: _parts(name, row) for name, row in rows.items()}
    kinds = list(dict.fromkeys(kind for row in parts.values() for kind in row))
    chosen = assign_colours(kinds, colours)
    ax = ax or figure(height=1.2 + 0.45 * len(rows))[1]
    for y, (name, row) in enumerate(parts.items()):
        ends = np.cumsum([0, *row.values()])
        ax.barh([y] * len(row), row.values(), 0.62, left=ends[:-1], color=[chosen[kind] for kind in row])
        for middle, number in zip((ends[:-1] + ends[1:]) / 2, row.values(), strict=True):
            if numbers and number:
                ax.text(middle, y, f"{number:.3g}", ha="center", va="center", color=INK, path_effects=[HALO])
        ax.text(ends[-1], y, f"  {(notes or {}).get(name, f'{ends[-1]:.3g}')}", va="center", color=INK)
    ax.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel)
    ax.grid(False, axis="y")
    draw_guess(ax, guess, "x", unit)
    ends = [sum(row.values()) for row in parts.values()] + [line.get_xdata()[0] for line in ax.lines]
    ax.set_xlim(xlim or (0, 1.05 * max(ends) or 1))
    if set(kinds) - set(rows):
        key(ax, [(Patch(facecolor=chosen[kind]), kind) for kind in kinds])
    if title:
        ax.set_title(title)
    return picture(ax.figure, f"{title or xlabel}: {', '.join(map(str, rows))}")


def _parts(name, row):
    """{part: number}; a bar in one piece is a part with the name of its row."""
    row = row if isinstance(row, Mapping) else {name: row}
    for kind, number in row.items():
        if not (np.isreal(number) and 0 <= number < np.inf):
            raise ValueError(f"rows[{name!r}] has {kind!r}={number!r}: a finite number from 0 up is needed")
    return {kind: float(number) for kind, number in row.items()}
