"""Networks for sequences: an unrolled cell, a look-up and weights of attention, and a transformer block."""

import numpy as np
from matplotlib.patches import FancyBboxPatch

from .labels import arrow
from .picture import picture
from .style import COLOURS, GREY, INK, figure

_HALF_BOX = 0.34  # of a cell, where neighbours are 1.8 apart
_HEAD = {"mutation_scale": 12}  # of an arrow
_COLUMNS = {"key": 0.1, "score": 0.26, "weight": 0.34, "value": 0.78, "weight × value": 0.96}  # of a look-up


def unrolled(num_steps=4):
    """A recurrent cell as a loop, and beside it the same cell drawn once per step; a `Picture`."""
    fig, ax = figure(7.4, 2.5)
    ax.set_axis_off()
    _draw_cell(ax, 0, "$x_t$", "$h_t$")
    arrow(ax, (_HALF_BOX, 0.17), (_HALF_BOX, -0.17), bend=-3, **_HEAD)
    ax.text(1.02, 0, "$h_{t-1}$", ha="left", va="center", color=INK)
    ax.text(0, -1.45, "folded: a loop", ha="center", color=GREY)
    first = 3.2
    for step in range(num_steps):
        x = first + 1.8 * step
        _draw_cell(ax, x, f"$x_{step + 1}$", f"$h_{step + 1}$")
        arrow(ax, (x - 1.8 + _HALF_BOX if step else x - 1.0, 0), (x - _HALF_BOX, 0), **_HEAD)
        ax.text(x - 0.9 if step else x - 1.0, 0.12, f"$h_{step}$", ha="center", va="bottom", color=INK)
    middle = first + 0.9 * (num_steps - 1)
    ax.text(middle, -1.45, "unrolled: the same cell, with the same weights, at every step", ha="center", color=GREY)
    ax.set(xlim=(-1.0, first + 1.8 * num_steps - 1.2), ylim=(-1.6, 1.25))
    return picture(fig, f"a recurrent cell as a loop, and unrolled over {num_steps} steps")


def _draw_cell(ax, x, below, above):
    _draw_box(ax, x, 0, _HALF_BOX, "cell")
    arrow(ax, (x, -0.85), (x, -_HALF_BOX), **_HEAD)
    arrow(ax, (x, _HALF_BOX), (x, 0.85), **_HEAD)
    ax.text(x, -0.9, below, ha="center", va="top", color=INK)
    ax.text(x, 0.9, above, ha="center", va="bottom", color=INK)


def transformer_block():
    """The stream of a pre-norm transformer block, and the two branches that add to it; a `Picture`."""
    fig, ax = figure(7.4, 2.7)
    ax.set_axis_off()
    ax.text(-0.2, 0, "$x$", ha="right", va="center", color=INK)
    ax.text(8.8, 0, "new $x$", ha="left", va="center", color=INK)
    branches = {"attend:\npositions talk": 0.0, "think:\neach by itself": 4.3}
    stream = -0.1
    for number, (name, start) in enumerate(branches.items(), 1):
        plus = start + 3.9
        arrow(ax, (stream, 0), (plus - 0.18, 0), **_HEAD)
        arrow(ax, (start + 0.3, 0), (start + 0.3, 1.2 - _HALF_BOX), **_HEAD)
        _draw_box(ax, start + 0.3, 1.2, 0.42, f"norm{number}")
        arrow(ax, (start + 0.72, 1.2), (start + 1.3, 1.2), **_HEAD)
        _draw_box(ax, start + 2.3, 1.2, 1.0, name)
        ax.plot([start + 3.3, plus, plus], [1.2, 1.2, 0.6], color=INK, linewidth=1.2)
        arrow(ax, (plus, 1.2), (plus, 0.18), **_HEAD)
        ax.text(plus, 0, "+", ha="center", va="center", color=INK, bbox={"boxstyle": "circle,pad=0.15", "fc": "white"})
        stream = plus + 0.18
    arrow(ax, (stream, 0), (8.7, 0), **_HEAD)
    ax.text(4.2, -0.5, "the stream: D numbers per position, to which each branch adds", ha="center", color=GREY)
    ax.set(xlim=(-0.6, 9.6), ylim=(-0.8, 1.9))
    return picture(fig, "a transformer block: the stream, and two branches that add to it, each behind a layer norm")


def _draw_box(ax, x, y, half_width, text):
    """A rounded box in the colour of a cell, with its text in the middle."""
    look = {"boxstyle": "round,pad=0,rounding_size=0.1", "facecolor": "#DCEBF5", "edgecolor": COLOURS["ring"]}
    ax.add_patch(FancyBboxPatch((x - half_width, y - _HALF_BOX), 2 * half_width, 2 * _HALF_BOX, linewidth=1.5, **look))
    ax.text(x, y, text, ha="center", va="center", color=INK)


def lookup(query, keys, values, title=""):
    """One query among keys: scores, weights as bars, values, and their weighted mean; a `Picture`.

    Args:
        query: (d,) numbers.
        keys: (n, d) numbers.
        values: (n,) numbers.
        title: the text above the figure.

    Raises:
        ValueError: the shapes do not fit.
    """
    query, keys, values = (np.asarray(each, dtype=float) for each in (query, keys, values))
    if query.ndim != 1 or keys.shape != (len(values), len(query)):
        raise ValueError(f"keys of shape {keys.shape}: {values.shape + query.shape} is needed")
    scores = keys @ query
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    fig, ax = figure(7.4, 0.8 + 0.42 * (len(keys) + 2))
    ax.set_axis_off()
    ax.set(
        xlim=(0, 1), ylim=(-len(keys) - 0.7, 0.7), title=title or f"The query {_vector(query)} among {len(keys)} keys"
    )
    for name, x in _COLUMNS.items():
        ax.text(x, 0, name, ha="left" if name == "weight" else "right", va="center", color=GREY)
    for i, row in enumerate(zip(keys, scores, weights, values, strict=True), 1):
        _draw_row(ax, -i, *row)
    ax.text(_COLUMNS["value"], -len(keys) - 1, "sum", ha="right", va="center", color=GREY)
    ax.text(
        _COLUMNS["weight × value"], -len(keys) - 1, f"{weights @ values:.2f}", ha="right", va="center", weight="bold"
    )
    return picture(fig, f"attention weights {', '.join(f'{w:.2f}' for w in weights)}, output {weights @ values:.2f}")


def _draw_row(ax, y, key, score, weight, value):
    cells = {
        "key": _vector(key),
        "score": f"{score:g}",
        "value": f"{value:g}",
        "weight × value": f"{weight * value:.2f}",
    }
    for name, text in cells.items():
        ax.text(_COLUMNS[name], y, text, ha="right", va="center", color=INK)
    ax.barh(y, 0.28 * weight, 0.6, left=_COLUMNS["weight"], color=COLOURS["ring"])
    ax.text(_COLUMNS["weight"] + 0.28 * weight + 0.01, y, f"{weight:.2f}", va="center", color=INK)


def _vector(numbers):
    return "(" + ", ".join(f"{each:g}" for each in numbers) + ")"


def weights(tables, names):
    """Tables of attention weights side by side, dark where a position looks; a `Picture`.

    Args:
        tables: {title: (T, T) weights}; a row is the position that looks, a column the one that is looked at.
        names: T short labels of the positions.
    """
    fig, axes = figure(4.75 * len(tables), 5.2, columns=len(tables), squeeze=False)
    positions = range(len(names))
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        ax.imshow(table, cmap="Greys", vmin=0)
        ax.set(xticks=positions, yticks=positions, xticklabels=names, yticklabels=names)
        ax.set(xlabel="looks at", ylabel="position")
        ax.set_title(title)
        ax.grid(False)
    return picture(fig, f"attention weights of {len(tables)} heads over {len(names)} positions")
