"""Curves with their names at their ends, and the loss curves of training runs."""

from collections.abc import Mapping

import numpy as np

from .labels import draw_guess, edge_labels, mark
from .picture import picture
from .style import LINE_STYLES, MARKERS, assign_colours, figure, log_axis, text_colour

_MARKED_POINTS = 30  # a curve of at most so many points shows each of them


def lines(
    series,
    xlabel,
    ylabel,
    title="",
    *,
    logx=False,
    logy=False,
    guess=None,
    guess_axis="y",
    points=None,
    marks=None,
    levels=None,
    names_at=None,
    colours=None,
    ax=None,
    **limits,
):
    """Draw curves, each named at its end; a `Picture`.

    Args:
        series: {name: y} or {name: (x, y)}, where x and y are one-dimensional lists, arrays or tensors. Without x they
            stand at 0, 1, 2, … Values that are not finite are left out.
        xlabel, ylabel: what the axes show, with the unit: "step", "time (ms)".
        title: the title of the figure.
        logx, logy: whether an axis is logarithmic.
        guess: the learner's number, drawn as a dashed line; None or `...` draws none.
        guess_axis: "x" or "y", the axis on which the guess lies.
        points: {name: (x, y)}, drawn as rings in the colour of the curve with this name, such as measured values on the
            curve of a formula. That curve has no marks of its own then.
        marks: {label: x}, drawn as upright lines, such as a theory beside a measurement.
        levels: {label: y}, drawn as level lines.
        names_at: {name: (x, y)}, where the name of a curve that ends far from the right edge starts instead.
        colours: {name: a colour, or the name of a thing in `COLOURS`}.
        ax: axes to draw in, instead of a new figure.
        limits: xlim=(low, high) and ylim=(low, high), which a slider's picture needs so that its axes stay still.

    Raises:
        TypeError, ValueError: `series` is empty or holds what is no curve, or another argument does not fit.
    """
    if not isinstance(series, Mapping) or not series:
        raise TypeError(f"series={series!r}: a dict {{name: values}} that is not empty is needed")
    series = {name: _points(name, values) for name, values in series.items()}
    ax = ax or figure()[1]
    points = {name: _points(name, pair) for name, pair in (points or {}).items()}
    names_at = names_at or {}
    for argument, given in (("points", points), ("names_at", names_at)):
        if set(given) - set(series):
            raise ValueError(f"{argument} of {', '.join(set(given) - set(series))}: names of curves are needed")
    _draw_curves(ax, series, points, names_at, assign_colours(series, colours), logx, logy)
    if title:
        ax.set_title(title)
    for axis, straight in (("x", marks), ("y", levels)):
        for label, value in (straight or {}).items():
            mark(ax, float(value), label, axis, linestyle=(0, (2, 2)))
    draw_guess(ax, guess, guess_axis)
    ax.set(xlabel=xlabel, ylabel=ylabel, **limits)
    return picture(ax.figure, f"{title or ylabel + ' against ' + xlabel}: {', '.join(map(str, series))}")


def _draw_curves(ax, series, points, names_at, colours, logx, logy):
    ax.margins(x=0.02)
    for axis in [ax.xaxis] * logx + [ax.yaxis] * logy:
        log_axis(axis, np.concatenate([pair[axis is ax.yaxis] for pair in [*series.values(), *points.values()]]))
    for i, (name, (x, y)) in enumerate(series.items()):
        dots = MARKERS[i % len(MARKERS)] if len(x) <= _MARKED_POINTS and name not in points else None
        style = LINE_STYLES[i % len(LINE_STYLES)]
        ax.plot(x, y, color=colours[name], linestyle=style, marker=dots, markersize=5, linewidth=2, label=name)
        if name in points:
            look = {"linestyle": "", "marker": "o", "markersize": 7, "markeredgewidth": 2, "zorder": 3}
            ax.plot(*points[name], **look, color="white", markeredgecolor=colours[name])
        seen = np.flatnonzero(np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not logx)) & ((y > 0) | (not logy)))
        if name in names_at:
            ax.text(*names_at[name], name, color=text_colour(colours[name]), fontsize=10, va="center")
        elif len(seen):
            edge_labels(ax).add((x[seen[-1]], y[seen[-1]]), ax.transData, str(name), colours[name])


def _points(name, values):
    pair = isinstance(values, tuple) and len(values) == 2 and np.ndim(values[0]) == 1
    x, y = values if pair else (None, values)
    try:
        y = np.asarray(y, dtype=float)
        x = np.arange(len(y)) if x is None else np.asarray(x, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"series[{name!r}]: numbers y or a pair (x, y) of numbers is needed ({error})") from None
    if y.ndim != 1 or x.shape != y.shape or not len(y):
        raise ValueError(
            f"series[{name!r}] of shapes {x.shape} and {y.shape}: x and y of shape (N,), N ≥ 1, are needed"
        )
    return x, np.where(np.isfinite(y), y, np.nan)


def history(histories, title="", *, smooth=1):
    """Draw loss curves of training runs, and beside them the accuracy by epoch where a run has one; a `Picture`.

    Args:
        histories: {name: a `train.History`, or a list with one loss per step}.
        title: the title of the figure.
        smooth: over how many steps, at least 1, the mean is drawn in place of the single losses.

    Raises:
        TypeError, ValueError: a run has no losses.
    """
    losses = {name: _mean(getattr(run, "losses", run), smooth) for name, run in histories.items()}
    accuracies = {name: run.accuracies for name, run in histories.items() if getattr(run, "accuracies", None)}
    columns = 2 if accuracies else 1
    fig, axes = figure((7, 9.5)[columns - 1], columns=columns, squeeze=False)
    lines(losses, "step", "loss" if smooth == 1 else f"loss (mean of {smooth} steps)", title, ax=axes[0, 0])
    if accuracies:
        by_epoch = {name: (np.arange(len(each)) + 1, 100 * np.asarray(each)) for name, each in accuracies.items()}
        colours = assign_colours(histories)
        lines(by_epoch, "epoch", "accuracy (%)", " " if title else "", colours=colours, ax=axes[0, 1])
        axes[0, 1].xaxis.get_major_locator().set_params(integer=True)
    return picture(fig, f"{title or 'loss by step'}: {', '.join(map(str, histories))}")


def _mean(losses, smooth):
    smooth = min(smooth, len(losses))
    return np.arange(smooth - 1, len(losses)), np.convolve(losses, np.ones(smooth) / smooth, mode="valid")
