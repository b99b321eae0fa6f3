"""The one look of every figure: the palette and styled axes.

The colours are those of Okabe and Ito, which people with the common kinds of colour blindness can tell apart. What must
survive grey print too also differs in hatch, marker or line style. Figures are plain `matplotlib.figure.Figure`
objects: there is no pyplot state, so a callback may draw beside a running cell.
"""

import itertools
import math
import re
import textwrap

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

INK, GREY = "#222222", "#767676"
_BLUE, _ORANGE, _GREEN, _VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_PURPLE, _SKY, _YELLOW, _SLATE = "#CC79A7", "#56B4E9", "#E8D83A", "#5B5B6B"

RANK_COLOURS = (_BLUE, _ORANGE, _GREEN, _VERMILION, _PURPLE, _SKY, _YELLOW, _SLATE)
_ALGORITHMS = {"ring": _BLUE, "star": _VERMILION, "tree": _GREEN, "direct": _PURPLE, "halving_doubling": _ORANGE}
_OPTIMISERS = {"sgd": _BLUE, "momentum": _ORANGE, "rmsprop": _GREEN, "adam": _VERMILION, "adamw": _PURPLE}
_KINDS = {"compute": _BLUE, "send": _ORANGE, "recv": _SKY, "add": _GREEN, "copy": _PURPLE, "wait": "#B8B8B8"}
_PASSES = {"forward": _BLUE, "backward": _ORANGE, "input": _ORANGE, "weight": _GREEN}  # of a pipeline
_VERDICTS = {"right": _GREEN, "half_right": _SKY, "misleading": _ORANGE, "outdated": _PURPLE, "wrong": _VERMILION}
_OTHERS = {"open": "#B8B8B8", "hierarchical": _SKY, "torch": _SLATE, "guess": "#A3157A"}
COLOURS = _ALGORITHMS | _OPTIMISERS | _KINDS | _PASSES | _VERDICTS | _OTHERS
LINE_STYLES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "os^DvPX*"
HALO = patheffects.withStroke(linewidth=3, foreground="white")  # keeps text readable on a line
PAGE_DPI = 100  # a 10-point letter is 14 page pixels high


def rank_colour(rank):
    """Return the colour of a rank, which is the same in every lesson.

    Args:
        rank: the number of the rank; from rank 8 on the colours come round again.

    Raises:
        ValueError: `rank` is no integer from 0 up.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
        raise ValueError(f"rank={rank!r}: an integer from 0 up is needed")
    return RANK_COLOURS[rank % len(RANK_COLOURS)]


def colour(name):
    """Return the colour of a thing, which is the same in every lesson.

    Args:
        name: a key of `COLOURS`, where case does not matter and a space or a hyphen may stand for "_", or "rank 3".

    Raises:
        ValueError: `name` has no colour of its own.
    """
    if found := find_colour(name):
        return found
    raise ValueError(f"name={name!r}: one of {', '.join(COLOURS)}, 'rank 0', 'rank 1', … is needed")


def find_colour(name):
    """Return the colour of the thing `name` as `colour` does, or None where it has none of its own."""
    key = re.sub(r"[\s-]+", "_", str(name).strip().lower())
    rank = re.fullmatch(r"rank_(\d+)", key)
    return rank_colour(int(rank[1])) if rank else COLOURS.get(key)


def assign_colours(names, colours=None):
    """Choose a colour for each name, so that known things have their own and no two others share one.

    Args:
        names: the things to colour.
        colours: {name: a colour, or the name of a thing in `COLOURS`}, for names that shall have another colour.

    Returns:
        {name: colour}. A name without a wish and without a colour of its own gets a free one.
    """
    colours = colours or {}
    chosen = {name: find_colour(colours.get(name, name)) or colours.get(name) for name in names}
    free = [each for each in RANK_COLOURS if each not in chosen.values()] or RANK_COLOURS
    nameless = [name for name in names if chosen[name] is None]
    return chosen | dict(zip(nameless, itertools.cycle(free)))


def text_colour(of):
    """Darken the colour `of` until text in it can be read on white, at a contrast of 4.5 : 1 or more."""
    rgb = np.array(to_rgb(of))
    while 1.05 / (rgb**2.2 @ (0.2126, 0.7152, 0.0722) + 0.05) < 4.5:  # the sum: relative luminance
        rgb *= 0.93
    return tuple(rgb)


class LessonAxes(Axes):
    """Axes whose title starts at the left and wraps, so that it does not run out of the picture."""

    title_pad = 8

    def set_title(self, label, fontdict=None, loc="left", **options):
        columns = self.get_gridspec().ncols
        options = {"fontsize": 12 if columns == 1 else 11, "color": INK, "pad": self.title_pad} | options
        letters = (11.5 * self.figure.get_figwidth() / columns - 8) * 12 / options["fontsize"]
        wrapped = "\n".join(textwrap.fill(line, max(16, int(letters))) for line in str(label).split("\n"))
        return super().set_title(wrapped, fontdict, loc, **options)

    def make_room(self, points):
        """Raise the title until there are `points` between it and the axes."""
        self.title_pad = max(points, self.title_pad)
        self.set_title(self.get_title(loc="left"))


def figure(width=7.0, height=3.2, columns=1, rows=1, **subplots):
    """Make a figure with the look of the lessons, to draw in and to show with `show.picture(fig)`.

    Args:
        width, height: inches on the page, which has 100 pixels per inch.
        columns, rows: how many axes stand side by side and above each other.
        subplots: options of `matplotlib.figure.Figure.subplots`, such as sharey=True.

    Returns:
        (fig, ax), or (fig, axes) with an array of axes where there are several.

    Raises:
        ValueError: a size is not greater than 0.
    """
    for argument, value in (("width", width), ("height", height), ("columns", columns), ("rows", rows)):
        if not value > 0:
            raise ValueError(f"{argument}={value!r}: a number greater than 0 is needed")
    fig = Figure(figsize=(width, height), dpi=PAGE_DPI, layout="constrained", facecolor="white")
    fig.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    axes = fig.subplots(rows, columns, subplot_kw={"axes_class": LessonAxes}, **subplots)
    for ax in fig.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(GREY)
        ax.tick_params(labelsize=10, color=GREY, labelcolor=INK)
        ax.grid(color="#E4E4E4", linewidth=0.8)
        ax.set_axisbelow(True)
    return fig, axes


def headline(fig, title):
    """Write `title` over all panels of `fig`."""
    fig.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)


def si(value, units):
    """Choose the unit in which `value` reads well.

    Args:
        value: the number, in the unit of size 1.
        units: [(size, name), …], with the largest unit first.

    Returns:
        (size, name) of the largest unit that is not larger than `value`, or of the smallest.
    """
    return next((unit for unit in units if value >= unit[0]), units[-1])


TIME_UNITS = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")]
BYTE_UNITS = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1, "bytes")]


def log_axis(axis, values):
    """Make `axis` logarithmic, with plain numbers at its ticks; a few powers of two become the ticks themselves."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    values = np.unique(values[np.isfinite(values) & (values > 0)])
    spread = np.ptp(np.log10(values)) if len(values) else 0
    if 1 < len(values) <= 11 and np.all(np.log2(values) % 1 == 0):
        axis.set_major_locator(FixedLocator(values))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if spread < 2 else (1,), numticks=9))
    axis.set_major_formatter(_plain)
    axis.set_minor_formatter(NullFormatter())


def _plain(value, _=None):
    """Write a tick of a logarithmic axis: 0.01, 1000, 65536, 10⁴, 1.05·10⁶."""
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = f"{value / 10**exponent:.3g}"
    if -4 < exponent < 5 and not (mantissa == "1" and exponent == 4):
        return f"{value:g}"
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}" if mantissa == "1" else f"{mantissa}·10{digits}"
