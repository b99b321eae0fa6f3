"""How many bytes each rank moves: algorithms side by side, beside the formula."""

from collections.abc import Mapping

from .labels import draw_guess, mark
from .picture import picture
from .style import BYTE_UNITS, HALO, INK, assign_colours, figure, headline, rank_colour, si

_COLUMNS = 3
_NUMBERED_BARS = 8  # up to so many bars in a panel carry their number


def ledger(counts, title="", *, direction="sent", formula=None, guess=None):
    """Draw the bytes that each rank sends or receives, one panel per algorithm, all on one scale; a `Picture`.

    Args:
        counts: a `Counts` (from `count`), a list of `Ledger`s, one per rank (`launch(...).ledgers`), or
            {name: one of them}.
        title: the title of the figure.
        direction: "sent" or "received".
        formula: (text, bytes), drawn as a level line, such as ("2(N−1)/N · M", 24e6); or {name: (text, bytes)}.
        guess: the number of bytes that the learner guessed, drawn as a dashed line.

    Raises:
        TypeError, ValueError: `counts` is no ledger, or the direction or the formula does not fit.
    """
    if direction not in ("sent", "received"):
        raise ValueError(f'direction={direction!r}: "sent" or "received" is needed')
    counts = counts if isinstance(counts, Mapping) else {"": counts}
    bars = {name: _bytes(name, each, f"bytes_{direction}") for name, each in counts.items()}
    formulas = formula if isinstance(formula, Mapping) else dict.fromkeys(bars, formula) if formula else {}
    guess = None if guess is ... else guess
    highest = max([1, guess or 0, *(size for _, size in formulas.values()), *(max(each) for each in bars.values())])
    unit_bytes, unit = si(highest, BYTE_UNITS)
    columns, rows = min(_COLUMNS, len(bars)), -(-len(bars) // _COLUMNS)
    fig, axes = figure((7, 8, 9.5)[columns - 1], 0.7 + 2.3 * rows, columns, rows, sharey=True, squeeze=False)
    axes[0, 0].set_ylim(0, 1.13 * highest / unit_bytes)
    colours = assign_colours(bars)
    for i, (ax, (name, values)) in enumerate(zip(axes.flat, bars.items(), strict=False), 1):
        _draw_bars(ax, name, [value / unit_bytes for value in values], colours[name])
        last = i % columns == 0 or i == len(bars)  # in its row: a line across all panels is named there
        if name in formulas:
            text, size = formulas[name]
            mark(ax, size / unit_bytes, text * (last or formulas is formula), linestyle=(0, (2, 2)))
        draw_guess(ax, guess and guess / unit_bytes, "y", unit, named=last)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{direction} ({unit})")
    for ax in axes.flat[len(bars) :]:
        ax.set_visible(False)
    title = title or f"Bytes {direction} by each rank"
    headline(fig, title)
    return picture(fig, f"{title}: {', '.join(map(str, bars))}" if "" not in bars else title)


def _bytes(name, each, wanted):
    """Bytes by rank of a `Counts` or of a list of `Ledger`s."""
    ledgers = each if isinstance(each, (list, tuple)) else ()
    values = getattr(each, wanted, None) or [getattr(one, wanted, None) for one in ledgers]
    if not isinstance(values, (list, tuple)) or not values or None in values:
        where = f" of {name!r}" if name else ""
        raise TypeError(
            f"counts{where} is a {type(each).__name__}: a Counts or a list of Ledgers, one per rank, is needed"
        )
    return list(values)


def _draw_bars(ax, name, values, colour):
    ranks = range(len(values))
    bars = ax.bar(ranks, values, width=0.8, color=colour if name else [rank_colour(rank) for rank in ranks])
    if len(values) <= _NUMBERED_BARS:
        numbers = [f"{value:.3g}" for value in values]
        ax.bar_label(bars, numbers, padding=2, fontsize=10, color=INK, path_effects=[HALO], zorder=4)
    every = 1 if len(values) <= 8 else 2 if len(values) <= 16 else 8 if len(values) <= 64 else len(values) // 8
    ax.set_xticks(ranks[::every])
    ax.set_xlabel("rank")
    ax.grid(False, axis="x")
    if name:
        ax.set_title(name)
