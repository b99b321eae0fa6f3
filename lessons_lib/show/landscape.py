"""A loss as a landscape, and the ways that optimisers take through it."""

import numpy as np
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.lines import Line2D

from .labels import key
from .picture import picture
from .style import GREY, INK, LINE_STYLES, MARKERS, assign_colours, figure

_HEIGHTS = LinearSegmentedColormap.from_list("heights", ["#FFFFFF", "#BEC6CF"])  # pale


def contours(
    f,
    paths,
    xlim,
    ylim,
    title="",
    *,
    xlabel="$w_0$",
    ylabel="$w_1$",
    zlabel="loss",
    minimum=None,
    colours=None,
    ax=None,
):
    """Draw lines of equal loss with paths through them, from a white dot to a framed mark; a `Picture`.

    A bar beside the axes says which loss the shades and the lines have.

    Args:
        f: a function (x, y) that returns the loss for arrays x, y of one shape; one that takes two numbers is called
            point by point.
        paths: {name: points}, where points is an array or tensor of shape (N, 2), one row per step. With {} the
            landscape is drawn alone.
        xlim, ylim: (low, high), the limits of the view.
        title, xlabel, ylabel, zlabel: the texts of the figure; `zlabel` is the name of what `f` returns.
        minimum: (x, y), to be marked with a cross.
        colours: {name: colour}.
        ax: axes to draw in, instead of a new figure.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    paths = {name: _path(name, points) for name, points in paths.items()}
    ax = ax or figure(height=4.4)[1]
    for argument, (low, high) in {"xlim": xlim, "ylim": ylim}.items():
        if not low < high:
            raise ValueError(f"{argument}={(low, high)}: (low, high) with low < high is needed")
    _draw_heights(ax, f, xlim, ylim, zlabel)
    samples = _draw_paths(ax, paths, assign_colours(paths, colours))
    if minimum is not None:
        cross = {"color": INK, "marker": "x", "markersize": 9, "markeredgewidth": 2}
        ax.plot(*minimum, **cross, zorder=5)
        samples.append((Line2D([], [], linestyle="", **cross), "minimum"))
    ax.set(xlim=xlim, ylim=ylim, xlabel=xlabel, ylabel=ylabel)
    if title:
        ax.set_title(title)
    if samples:
        key(ax, samples)
    names = f" with the paths of {', '.join(map(str, paths))}" if paths else ""
    return picture(ax.figure, f"{title or 'loss landscape'}{names}")


def _draw_paths(ax, paths, colours):
    """Draw the paths and return their entries for the key."""
    samples = []
    dot = {"marker": "o", "markersize": 9, "color": "white", "markeredgecolor": INK}
    for i, (name, points) in enumerate(paths.items()):
        look = {"color": colours[name], "linestyle": LINE_STYLES[i % len(LINE_STYLES)], "linewidth": 1.8}
        mark = MARKERS[i % len(MARKERS)]
        ax.plot(*points.T, **look, marker=mark if len(points) <= 60 else None, markersize=4, zorder=3)
        ax.plot(*points[0], **dot, zorder=4)
        ax.plot(*points[-1], marker=mark, markersize=9, color=colours[name], markeredgecolor=INK, zorder=5)
        samples.append((Line2D([], [], **look, marker=mark, markersize=7), name))
    return samples + [(Line2D([], [], linestyle="", **dot), "start")] * bool(paths)


def _path(name, points):
    points = np.asarray([np.asarray(point, dtype=float) for point in points])
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"paths[{name!r}] of shape {points.shape}: (N, 2) with N ≥ 1 is needed")
    finite = np.isfinite(points).all(axis=1)
    return points if finite.all() else points[: max(1, np.argmin(finite))]


def _draw_heights(ax, f, xlim, ylim, zlabel):
    x, y = np.meshgrid(np.linspace(*xlim, 161), np.linspace(*ylim, 161))
    try:
        z = np.asarray(f(x, y), dtype=float).reshape(x.shape)
    except Exception:  # f takes numbers, not arrays; an error of its own comes again here
        x, y = x[::4, ::4], y[::4, ::4]
        z = np.vectorize(f, otypes=[float])(x, y)
    low, high = np.nanmin(z), np.max(z[np.isfinite(z)])
    if not high > low:
        raise ValueError(f"f is the same everywhere in the view ({low:g}): there are no contours to draw")
    heights = low + (high - low) * np.linspace(0.03, 1, 14) ** 2.5  # denser where the loss is low
    levels = [low - 1e-9 * (high - low), *heights]
    shades = {"cmap": _HEIGHTS, "norm": BoundaryNorm(levels, _HEIGHTS.N)}  # as different low down as high up
    filled = ax.contourf(x, y, z, levels, **shades, zorder=0.5)
    level = ax.contour(x, y, z, heights, colors="#8C939B", linewidths=0.7, linestyles="solid", zorder=0.6)
    ax.grid(False)
    bar = ax.figure.colorbar(filled, ax=ax, pad=0.02, aspect=30, ticks=heights[1::4])
    bar.add_lines(level)
    bar.minorticks_off()
    bar.ax.set_yticklabels([f"{height:.2g}" for height in heights[1::4]])
    bar.ax.tick_params(labelsize=10, length=0, labelcolor=INK)
    bar.set_label(f"{zlabel}, the same along a line", fontsize=10, color=INK)
    bar.outline.set_edgecolor(GREY)
