"""Other answers to the exercises of lesson 27."""

import math
from decimal import Decimal

import numpy as np


def rows_by_whole_numbers(counts, percents):
    """Both sides times 2 · whole · 10^digits: no division."""
    total = sum(counts)
    rows = []
    for row, printed in enumerate(percents):
        unit = 10 ** -Decimal(printed).as_tuple().exponent
        if abs(2 * int(Decimal(printed) * unit) * total - 200 * counts[row] * unit) > total:
            rows.append(row)
    return rows


def rows_by_the_ends(counts, percents):
    """From the smallest to the largest number that is printed so."""
    total, rows = Decimal(sum(counts)), []
    for row, printed in enumerate(percents):
        half = Decimal(5).scaleb(Decimal(printed).as_tuple().exponent - 1)
        low, high = Decimal(printed) - half, Decimal(printed) + half
        if not low * total <= 100 * counts[row] <= high * total:
            rows.append(row)
    return rows


def rows_in_floats(counts, percents):
    """A little more than half a unit is allowed, for what floats lose."""
    shares = [100 * count / sum(counts) for count in counts]
    return [
        k for k, p in enumerate(percents) if abs(float(p) - shares[k]) > 0.5 * 10 ** -len(p.partition(".")[2]) + 1e-9
    ]


def rows_by_rounding_up(counts, percents):
    """A half is always rounded up: 12.5 is never printed as 12."""
    rows = []
    for row, printed in enumerate(percents):
        half = Decimal(5).scaleb(Decimal(printed).as_tuple().exponent - 1)
        share = Decimal(100 * counts[row]) / sum(counts)
        if not -half <= share - Decimal(printed) < half:
            rows.append(row)
    return rows


def misprint_by_trying(table):
    """Each number, replaced by what its row asks for: does all add up then?"""

    def is_right(rows):
        numbers = np.array(rows)
        return (numbers[:, :-1].sum(1) == numbers[:, -1]).all() and (numbers[:-1].sum(0) == numbers[-1]).all()

    if is_right(table):
        return None
    for i, row in enumerate(table):
        for j in range(len(row)):
            others = sum(row[:-1]) if j == len(row) - 1 else row[-1] - sum(row[:-1]) + row[j]
            mended = [list(each) for each in table]
            mended[i][j] = others
            if is_right(mended):
                return i, j, others
    return None


def misprint_by_columns(table):
    """What the column has too much, taken off a sum or added to a part."""
    numbers = np.array(table)
    rows = np.flatnonzero(numbers[:, -1] - numbers[:, :-1].sum(1))
    off = numbers[-1] - numbers[:-1].sum(0)
    if not len(rows):
        return None
    i, j = int(rows[0]), int(np.flatnonzero(off)[0])
    return i, j, int(numbers[i, j] + (-off[j] if i == len(table) - 1 else off[j]))


def misprint_in_the_body_first(table):
    """A broken row alone is taken for a wrong sum of that row."""
    found = misprint_by_columns(table)
    if found is None or found[0] == len(table) - 1:
        return None
    return found


def labels_by_bits(predictions, loss, accuracy):
    n = len(predictions)
    fits = []
    for number in range(2**n):
        labels = tuple(number >> (n - 1 - k) & 1 for k in range(n))
        chance = math.prod(p if y else 1 - p for p, y in zip(predictions, labels, strict=True))
        if chance == 0:
            continue
        right = sum((p > 0.5) == (y == 1) for p, y in zip(predictions, labels, strict=True))
        values = {loss: -math.log(chance) / n, accuracy: right / n}
        digits = {text: len(text.partition(".")[2]) for text in values}
        if all(abs(value - float(text)) <= 0.5 * 0.1 ** digits[text] + 1e-12 for text, value in values.items()):
            fits.append(labels)
    return fits


def labels_one_after_the_other(predictions, loss, accuracy):
    """A list of labels so far, with their cost and the number of hits."""
    states = [((), 0.0, 0)]
    for p in predictions:
        states = [
            ((*labels, y), cost - (math.log(q) if q else -math.inf), hits + ((p > 0.5) == y))
            for labels, cost, hits in states
            for y, q in ((0, 1 - p), (1, p))
        ]
    n = len(predictions)

    def fits(value, text):
        half = 0.5 / 10 ** len(text.partition(".")[2])
        return float(text) - half <= value <= float(text) + half

    return [labels for labels, cost, hits in states if fits(cost / n, loss) and fits(hits / n, accuracy)]


def labels_in_any_order(predictions, loss, accuracy):
    return labels_by_bits(predictions, loss, accuracy)[::-1]


alternatives = {
    "impossible_rows": [rows_by_whole_numbers, rows_by_the_ends, rows_in_floats],
    "misprint": [misprint_by_trying, misprint_by_columns],
    "labels_that_fit": [labels_by_bits, labels_one_after_the_other],
}
wrong = {
    "impossible_rows": [rows_by_rounding_up],
    "misprint": [misprint_in_the_body_first],
    "labels_that_fit": [labels_in_any_order],
}
