"""How many bytes each rank moves: algorithms side by side, beside the formula."""

from collections.abc import Mapping

from .labels import draw_guess, mark
from .style import BYTE_UNITS, HALO, INK, assign_colours, figure, headline, picture, rank_colour, si

_COLUMNS = 3
_NUMBERED_BARS = 8  # up to so many bars in a panel carry their number


def ledger(counts, title="", *, direction="sent", formula=None, guess=None, colours=None):
    """Bars of the bytes that each rank sends or receives, one panel for each algorithm, all on one scale; a `Picture`.

    counts: a `Counts` (from `count`), a list of `Ledger`s, one a rank (`launch(...).ledgers`), or {name: one of them}.
    direction: "sent" or "received". guess: the learner's number of bytes, a dashed line.
    formula: (text, bytes), a level line, such as ("2(N−1)/N · M", 24e6); or {name: (text, bytes)}.
    Raises TypeError or ValueError for what is no ledger, and for a direction or formula that doesn't fit.
    """
    if direction not in ("sent", "received"):
        raise ValueError(f'direction must be "sent" or "received", got {direction!r}')
    bars = {name: _bytes(name, each, direction) for name, each in _named(counts).items()}
    formulas = formula if isinstance(formula, Mapping) else dict.fromkeys(bars, formula)
    guessed = [] if guess is None or guess is ... else [guess]
    highest = max([1, *guessed, *(f[1] for f in formulas.values() if f), *(max(each) for each in bars.values())])
    unit_bytes, unit = si(highest, BYTE_UNITS)
    columns = min(_COLUMNS, len(bars))
    rows = -(-len(bars) // columns)
    fig, axes = figure((7, 8, 9.5)[columns - 1], 0.7 + 2.3 * rows, columns, rows, sharey=True, squeeze=False)
    chosen = assign_colours(bars, colours)
    for i, (ax, (name, values)) in enumerate(zip(axes.flat, bars.items(), strict=False)):
        _panel(ax, name, [value / unit_bytes for value in values], chosen[name] if name else None)
        named = (i + 1) % columns == 0 or i + 1 == len(bars)
        if formulas.get(name):
            text, size = formulas[name]
            mark(ax, size / unit_bytes, text * (named or isinstance(formula, Mapping)), linestyle=(0, (2, 2)))
        if guessed:
            draw_guess(ax, guess / unit_bytes, "y", unit, named=named)
    for ax in axes.flat[len(bars) :]:
        ax.set_visible(False)
    for row in axes:
        row[0].set_ylabel(f"{direction} ({unit})")
    axes[0, 0].set_ylim(0, 1.13 * highest / unit_bytes)
    title = title or f"Bytes {direction} by each rank"
    headline(fig, title)
    return picture(fig, f"{title}: {', '.join(map(str, bars))}" if "" not in bars else title)


def _named(counts):
    if isinstance(counts, Mapping) and not counts:
        raise ValueError("counts is empty: give a Counts, a list of Ledgers, or {name: one of them}")
    return counts if isinstance(counts, Mapping) else {"": counts}


def _bytes(name, each, direction):
    """Bytes by rank of a `Counts` or of a list of `Ledger`s."""
    values = getattr(each, f"bytes_{direction}", None)
    if values is None and isinstance(each, (list, tuple)) and each:
        values = [getattr(one, f"bytes_{direction}", None) for one in each]
    if not isinstance(values, (list, tuple)) or None in values:
        where = f" of {name!r}" if name else ""
        raise TypeError(f"counts{where} must be a Counts or a list of Ledgers, one a rank, got {type(each).__name__}")
    return list(values)


def _panel(ax, name, values, one_colour):
    shades = one_colour or [rank_colour(rank) for rank in range(len(values))]
    bars = ax.bar(range(len(values)), values, width=0.8, color=shades)
    if len(values) <= _NUMBERED_BARS:
        numbers = [f"{value:.3g}" for value in values]
        ax.bar_label(bars, numbers, padding=2, fontsize=10, color=INK, path_effects=[HALO], zorder=4)
    every = 1 if len(values) <= 8 else 2 if len(values) <= 16 else 8 if len(values) <= 64 else len(values) // 8
    ax.set_xticks(range(0, len(values), every))
    ax.set_xlabel("rank")
    ax.grid(False, axis="x")
    if name:
        ax.set_title(name)
