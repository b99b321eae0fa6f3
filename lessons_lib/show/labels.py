"""Direct labels: text beside the thing it names, moved apart so that no two overlap."""

import numbers

import numpy as np
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox, ScaledTranslation

from .style import COLOURS, INK, text_colour


def spread(centres, sizes, low, high):
    """Move centres as little as possible, so that intervals of these sizes are disjoint and in [low, high].

    Minimises Σ (cᵢ' − cᵢ)² subject to cᵢ₊₁' − cᵢ' ≥ (sᵢ + sᵢ₊₁) / 2 as an isotonic regression: each value is
    the largest, over where a stretch may begin before it, of the smallest means of stretches that end after it.
    """
    order = np.argsort(centres, kind="stable")
    sizes = np.asarray(sizes, dtype=float)[order]
    shift = np.cumsum(sizes) - sizes / 2
    total, n = np.cumsum([0, *(np.asarray(centres)[order] - shift)]), len(sizes)
    start = [
        max(min((total[k] - total[j]) / (k - j) for k in range(i + 1, n + 1)) for j in range(i + 1)) for i in range(n)
    ]
    moved = np.empty(n)
    moved[order] = np.clip(start, low, max(low, high - sizes.sum())) + shift
    return moved


class EdgeLabels(Artist):
    """Labels along the "right" or "top" edge of axes, joined by a thin line to the points they name.

    They are placed while drawing, so they follow when limits or sizes change, and the layout makes room for
    them.
    """

    def __init__(self, ax, edge):
        super().__init__()
        self.ax, self.edge, self.items = ax, edge, []
        self.set_clip_on(False)
        ax.add_artist(self)

    def add(self, point, transform, label, colour):
        """Label the point, given in coordinates of `transform`. Empty labels are left out."""
        if not label:
            return
        ha, va = ("left", "center") if self.edge == "right" else ("center", "bottom")
        text = Text(0, 0, label, color=text_colour(colour), fontsize=10, ha=ha, va=va, figure=self.ax.figure)
        leader = Line2D([], [], color=colour, linewidth=0.8, linestyle=(0, (1, 1.5)), figure=self.ax.figure)
        self.items.append((point, transform, text, leader))

    def get_children(self):
        return [artist for _, _, *pair in self.items for artist in pair]

    def _place(self, renderer):
        box, scale = self.ax.bbox, renderer.points_to_pixels(1)
        points = [np.clip(transform.transform(point), box.min, box.max) for point, transform, _, _ in self.items]
        extents = [text.get_window_extent(renderer) for _, _, text, _ in self.items]
        if self.edge == "top":
            sizes = [extent.width + 8 * scale for extent in extents]
            places = spread([x for x, _ in points], sizes, box.x0, box.x1 + 40 * scale)
        else:
            sizes = [extent.height + 1.5 * scale for extent in extents]
            places = spread([y for _, y in points], sizes, box.y0 - 4 * scale, box.y1 + 6 * scale)
        for (x, y), place, (_, _, text, leader) in zip(points, places, self.items, strict=True):
            if self.edge == "top":
                text.set_position((place, box.y1 + 4 * scale))
                leader.set_data([x, place], [box.y1, box.y1 + 3 * scale])
            else:
                text.set_position((box.x1 + 12 * scale, place))
                leader.set_data([x + 2 * scale, box.x1 + 10 * scale], [y, place])

    def get_tightbbox(self, renderer=None):
        if not self.items or renderer is None:
            return None
        self._place(renderer)
        return Bbox.union([text.get_window_extent(renderer) for _, _, text, _ in self.items])

    def draw(self, renderer):
        if self.items and self.get_visible():
            self._place(renderer)
            for _, _, text, leader in self.items:
                leader.draw(renderer)
                text.draw(renderer)


def edge_labels(ax, edge="right"):
    """The `EdgeLabels` of these axes, made when there are none yet."""
    found = [a for a in ax.get_children() if isinstance(a, EdgeLabels) and a.edge == edge]
    return found[0] if found else EdgeLabels(ax, edge)


def mark(ax, value, label, axis="y", colour=INK, linestyle="-"):
    """Draw a labelled line across axes.

    Args:
        ax: the axes.
        value: where the line crosses `axis`, in its units.
        label: the name of the line, written at its end; "" writes none.
        axis: "x" for an upright line, "y" for a level one.
        colour, linestyle: the look of the line, as matplotlib names it.

    Raises:
        ValueError: `axis` is something else.
    """
    if axis not in ("x", "y"):
        raise ValueError(f'axis={axis!r}: "x" or "y" is needed')
    look = {"color": colour, "linestyle": linestyle, "linewidth": 1.4, "zorder": 1.8}
    if axis == "y":
        ax.axhline(value, **look)
        edge_labels(ax).add((1, value), ax.get_yaxis_transform(), label, colour)
    else:
        ax.axvline(value, **look)
        edge_labels(ax, "top").add((value, 1), ax.get_xaxis_transform(), label, colour)
        ax.make_room(24)


def key(ax, entries):
    """Draw rows of samples between title and axes; `entries` are pairs (`Patch` or `Line2D`, name)."""
    letters = 11 * ax.figure.get_figwidth() / ax.get_gridspec().ncols
    columns = _columns([6 + len(str(name)) for _, name in entries], letters)
    lift = 16 * any(isinstance(each, EdgeLabels) and each.edge == "top" for each in ax.get_children())
    raised = ax.transAxes + ScaledTranslation(0, lift / 72, ax.figure.dpi_scale_trans)
    place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "bbox_transform": raised, "ncols": columns}
    look = {"frameon": False, "fontsize": 10, "borderpad": 0.2, "columnspacing": 1.4, "handletextpad": 0.5}
    ax.legend(*zip(*entries, strict=True), handlelength=2.4, **place, **look)
    ax.make_room(8 + lift + 17 * -(-len(entries) // columns))


def _columns(widths, room):
    """Into how many columns, filled one after the other as matplotlib does, entries of these widths fit."""
    fitting = (n for n in range(len(widths), 1, -1) if sum(map(max, np.array_split(widths, n))) <= room)
    return next(fitting, 1)


def draw_guess(ax, guess, axis="y", unit="", named=True):
    """Draw the learner's guess as a dashed, labelled line across axes.

    Args:
        ax: the axes.
        guess: the number; None or `...`, for what is not guessed yet, draws nothing.
        axis: "x" for an upright line, "y" for a level one.
        unit: the unit of the guess, which is written behind it.
        named: whether the line is labelled.

    Raises:
        TypeError: `guess` is no finite number.
    """
    if guess is None or guess is ...:
        return
    if isinstance(guess, bool) or not isinstance(guess, numbers.Real) or not np.isfinite(guess):
        raise TypeError(f"guess={guess!r}: a finite number or None is needed")
    label = named * f"your guess: {float(guess):g}{' ' * bool(unit)}{unit}"
    mark(ax, float(guess), label, axis, COLOURS["guess"], linestyle=(0, (6, 3)))


def arrow(ax, start, end, bend=0.0, **look):
    """Draw an arrow with a filled head, bent to its right by `bend` of its length."""
    look = {"color": INK, "arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}"} | look
    ax.add_patch(FancyArrowPatch(start, end, **look))
