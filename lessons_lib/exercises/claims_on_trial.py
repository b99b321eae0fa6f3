"""Exercises of lesson 27: percentages that cannot be, the one misprint of a table, and a loss that fits no labels."""

import math
from fractions import Fraction
from itertools import product

from lessons_lib.exercises.core import Exercise, edit

# --- impossible_rows: percentages within rounding --------------------------------------------------------------------


def impossible_rows(counts, percents):
    """Return a list: the numbers, from 0, of the rows of a table whose printed percentage cannot be right, in order.

    counts: a list of whole numbers from 0 up, not all of them 0. Together they are the whole, 100 %.
    percents: a list with the percentage printed beside each count, as text without a sign: "35.3", "7" or "0.50".
        It is right if the exact percentage is at most half a unit of the last printed digit away: "35.3" stands for
        35.25 to 35.35 and "7" for 6.5 to 7.5, both ends included.
    """
    total, rows = sum(counts), []
    for row, (count, printed) in enumerate(zip(counts, percents, strict=True)):
        num_digits = len(printed.partition(".")[2])
        off = abs(Fraction(printed) - Fraction(100 * count, total))
        if off > Fraction(1, 2 * 10**num_digits):
            rows.append(row)
    return rows


def _rounded_by_python(counts, percents):
    """You round the share and compare the texts. A share that lies exactly between two, such as 12.5, may be printed
    as either, and Python's rounding gives one of them: compare the distance with half a unit of the last digit."""
    total = sum(counts)
    shares = [
        f"{100 * count / total:.{len(text.partition('.')[2])}f}" for count, text in zip(counts, percents, strict=True)
    ]
    return [row for row, (share, text) in enumerate(zip(shares, percents, strict=True)) if share != text]


def _in_floats(counts, percents):
    """In floats 0.13 - 0.125 is a little more than 0.005, and you miss an end that is included. Compute with
    `Fraction`, or allow 1e-9 more."""
    pairs = zip(counts, percents, strict=True)
    offs = [(abs(float(text) - 100 * count / sum(counts)), len(text.partition(".")[2])) for count, text in pairs]
    return [row for row, (off, num_digits) in enumerate(offs) if off > 0.5 * 10**-num_digits]


def _by_their_sum(counts, percents):
    """You only add the percentages up. Rounded ones need not give 100, and wrong ones may: compare each with the share
    of its own count."""
    return list(range(len(counts))) if abs(sum(map(float, percents)) - 100) > 0.5 else []


impossible_rows = Exercise(
    impossible_rows,
    [
        ([148, 271], ["30.1", "64.7"]),
        ([148, 271], ["35.3", "64.7"]),
        ([148, 72, 54, 145], ["30.1", "17.2", "12.9", "39.9"]),  # two wrong ones that nearly make up for each other
        ([1, 7], ["12", "88"]),  # 12.5 and 87.5: either way of rounding
        ([1, 7], ["13", "87"]),
        ([1, 7], ["12.4", "87.6"]),
        ([1, 6], ["14.29", "85.71"]),
        ([1, 6], ["14.28", "85.72"]),
        ([1, 2], ["33.33", "66.66"]),
        ([1, 2], ["33", "66"]),
        ([1, 2], ["33.4", "66.7"]),  # within 0.1, but not within 0.05
        ([1, 1, 1], ["33.3", "33.3", "33.3"]),  # right, though the sum is 99.9
        ([3, 1, 0], ["75", "25", "0"]),
        ([0, 5], ["0.1", "100.0"]),
        ([7], ["100"]),
        ([7], ["99"]),
        ([10, 90], ["90", "10"]),  # exchanged: the sum is right
        ([1, 999, 9000], ["0.01", "9.99", "90"]),
        ([1, 999, 9000], ["0.0", "10.0", "90.00"]),
        ([3, 3, 2], ["37.5", "37", "25.000"]),
        ([2, 2, 2, 2], ["25.1", "25.05", "25.04", "24.951"]),
        ([1, 799], ["0.13", "99.87"]),  # both at an end, which floats miss
        ([504, 496], ["50.0", "50.0"]),  # zeros at the end count as digits
        ([504, 496], ["50", "50"]),
        ([42, 58], ["40", "60"]),
        ([1, 2], ["33.334", "66.667"]),
        ([1, 1], ["150", "50"]),
    ],
    [
        _rounded_by_python,
        _in_floats,
        _by_their_sum,
        edit(
            "Fraction(1, 2 * 10**num_digits)",
            "Fraction(1, 20)",
            "You allow 0.05 everywhere. What rounding allows depends on the digits printed: half a unit of the last.",
        ),
        edit(
            "Fraction(1, 2 * 10**num_digits)",
            "Fraction(1, 10**num_digits)",
            "You allow a whole unit of the last digit. Rounding moves a number by half a unit at most.",
        ),
        edit(
            "Fraction(100 * count, total)",
            "Fraction(count, total)",
            "A share of 1 is 100 %.",
        ),
        edit(
            "if off >",
            "if off >=",
            "A percentage exactly half a unit away may have been rounded to what is printed: both ends are included.",
        ),
    ],
    [
        "What is the whole? Which numbers would be printed as 35.3?",
        "Add the counts up; for each row compare |printed − 100 · count / whole| with half a unit of the last digit.",
        "The number of digits is that behind the point of the text, and may be 0. `fractions.Fraction` takes a text "
        "and divides without rounding.",
    ],
)


# --- misprint: one wrong number in a table with sums -----------------------------------------------------------------


def misprint(table):
    """Return (row, column, right number) of the one number of a table that is misprinted; None if all is right.

    table: a list of at least two rows of whole numbers, all of one length of at least two. The last number of each row
        should be the sum of the others in it, and the last row, number by number, the sum of the rows above it.
        At most one number is misprinted, and that may be one of these sums. Rows and columns are numbered from 0.
        Do not change the table.
    """
    too_much_in_rows = [row[-1] - sum(row[:-1]) for row in table]
    too_much_in_columns = [column[-1] - sum(column[:-1]) for column in zip(*table, strict=True)]
    if not any(too_much_in_rows):
        return None
    row = next(i for i, off in enumerate(too_much_in_rows) if off)
    column = next(j for j, off in enumerate(too_much_in_columns) if off)
    is_sum = column == len(too_much_in_columns) - 1
    correction = -too_much_in_rows[row] if is_sum else too_much_in_rows[row]
    return row, column, table[row][column] + correction


def _sums_are_right(table):
    """You look for the row and the column in the body of the table alone. A sum can be misprinted too: the last row
    and the last column have to add up as well."""
    rows = [i for i, row in enumerate(table[:-1]) if row[-1] != sum(row[:-1])]
    columns = [j for j, column in enumerate(list(zip(*table, strict=True))[:-1]) if column[-1] != sum(column[:-1])]
    if not rows or not columns:
        return None
    row, column = rows[0], columns[0]
    return row, column, table[row][-1] - sum(table[row][:-1]) + table[row][column]


def _change_the_sum(table):
    """You change the sum of the row that does not add up. Then its column does not add up: the misprint stands where
    both the row and the column are broken."""
    for i, row in enumerate(table):
        if row[-1] != sum(row[:-1]):
            return i, len(row) - 1, sum(row[:-1])
    return None


misprint = Exercise(
    misprint,
    [
        ([[1, 2, 3], [4, 5, 9], [5, 7, 12]],),  # all is right
        ([[1, 2, 3], [4, 6, 9], [5, 7, 12]],),
        ([[7, 2, 3], [4, 5, 9], [5, 7, 12]],),
        ([[1, 2, 3], [1, 5, 9], [5, 7, 12]],),
        ([[1, 2, 3], [4, 5, 8], [5, 7, 12]],),  # the sum of a row
        ([[1, 2, 8], [4, 5, 9], [5, 7, 12]],),
        ([[1, 2, 3], [4, 5, 9], [6, 7, 12]],),  # the sum of a column
        ([[1, 2, 3], [4, 5, 9], [5, 2, 12]],),
        ([[1, 2, 3], [4, 5, 9], [5, 7, 21]],),  # the sum of all
        ([[3, 5], [3, 3]],),  # the smallest tables
        ([[4, 3], [3, 3]],),
        ([[3, 3], [3, 4]],),
        ([[3, 3], [3, 3]],),
        ([[-2, 5, 0, 3], [0, 0, 0, 0], [2, -5, 1, -3], [0, 0, 0, 0]],),
        ([[-2, 5, 0, 3], [0, 0, 0, 0], [2, -5, 0, -3], [0, 0, 0, 0]],),
        ([[10, 20, 30, 40, 100], [1, 2, 3, 5, 10], [11, 22, 33, 44, 110]],),
        ([[-2, 5, 3], [1, 1, 2], [4, 6, 5]],),  # the right number is -1
        ([[1, 2, 3, 7], [4, 5, 6, 15], [5, 7, 9, 21]],),  # wider than high
        ([[1, 2, 8, 6], [4, 5, 6, 15], [5, 7, 9, 21]],),
        ([[1, 1], [2, 2], [3, 4], [6, 6]],),  # higher than wide
        ([[10**20, 1, 10**20 + 1], [2, 3, 5], [10**20 + 2, 4, 10**20 + 7]],),  # more than floats can count
    ],
    [
        _sums_are_right,
        _change_the_sum,
        edit(
            "-too_much_in_rows[row] if is_sum else too_much_in_rows[row]",
            "too_much_in_rows[row]",
            "If a sum is too large, it has to become smaller; if a part is too large, the printed sum is too small "
            "beside the parts. The sign depends on which of the two the misprint is.",
        ),
        edit(
            "return row, column, table",
            "return column, row, table",
            "The row comes first.",
        ),
        edit(
            "return row, column, table[row][column] + correction",
            "return row, column, correction",
            "Return the number as it should be, not by how much it is off.",
        ),
    ],
    [
        "A misprint breaks one row and one column. Which number stands in both?",
        "Take every line, sums included: its last number less the sum of the others. One row and one column are not 0.",
        "Where the misprint is a part, add what the row has too much; where it stands in the last column, take it off.",
    ],
)


# --- labels_that_fit: can these predictions have this loss? ----------------------------------------------------------


def labels_that_fit(predictions, loss, accuracy):
    """Return a list: all ways to label n samples with which a printed loss and a printed accuracy are both possible.

    predictions: a list of n numbers from 0 to 1, n from 1 to 10: the probability of label 1 for each sample, exactly.
    loss: the mean over the samples of −log(probability of the sample's label), natural logarithm, as text. "0.0263"
        stands for all numbers at most half a unit of the last printed digit away, 0.02625 to 0.02635.
    accuracy: the share of samples, from 0 to 1, whose label is the predicted one, as text, meant in the same way:
        "1" stands for 0.5 to 1.5 and "1.00" for 0.995 to 1.005, both ends included. A prediction above 0.5 says 1,
        every other says 0.
    Each entry of the list is a tuple of n labels, 0 or 1; the list is in ascending order. A label of probability 0
    costs infinitely much, which is no printed loss.
    """

    def is_printed_as(value, text):
        num_digits = len(text.partition(".")[2])
        return abs(Fraction(value) - Fraction(text)) <= Fraction(1, 2 * 10**num_digits)

    n, found = len(predictions), []
    for labels in product((0, 1), repeat=n):
        pairs = list(zip(predictions, labels, strict=True))
        chances = [p if label else 1 - p for p, label in pairs]
        if 0 in chances:
            continue
        costs = [-math.log(chance) for chance in chances]
        hits = [(p > 0.5) == bool(label) for p, label in pairs]
        if is_printed_as(sum(costs) / n, loss) and is_printed_as(Fraction(sum(hits), n), accuracy):
            found.append(labels)
    return found


def _labels_are_the_predicted(predictions, loss, accuracy):
    """You take the predicted labels for the true ones. With an accuracy below 1 they are not: try all labels."""
    labels = tuple(int(p > 0.5) for p in predictions)
    return [labels] if labels in labels_that_fit.reference(predictions, loss, accuracy) else []


labels_that_fit = Exercise(
    labels_that_fit,
    [
        ([0.9375, 0.0625, 0.9375, 0.9375], "0.0263", "1.0000"),  # S2 §5.4: no labels
        ([0.9375, 0.0625, 0.9375, 0.9375], "0.0645", "1.0000"),
        ([0.9375, 0.0625, 0.9375, 0.9375], "2.0956", "0.25"),
        ([0.3, 0.7, 0.2, 0.8], "0.2899", "1.0"),
        ([0.3, 0.7, 0.2, 0.8], "0.2899", "0.75"),  # the loss alone would do, and other labels have this accuracy
        ([0.3, 0.7, 0.2, 0.8], "0.6", "0.75"),
        ([0.3, 0.7, 0.2, 0.8], "1", "0.5"),
        ([0.3, 0.7, 0.2, 0.8], "0.636", "0.75"),
        ([0.5], "0.693", "0"),  # exactly one half says 0
        ([0.5], "0.693", "1.0"),
        ([0.5, 0.5, 0.5], "0.69", "0.67"),
        ([0.5, 0.5], "0.69", "1"),  # an accuracy of 0.5 may be printed as 1 or as 0
        ([1.0, 0.0], "0.0", "1.0"),  # certain, and right
        ([1.0, 0.0, 0.6], "0.17", "1.0"),
        ([1.0, 0.25], "0.14", "1"),
        ([1.0, 0.25], "0.69", "0.5"),
        ([0.9, 0.9], "1.204", "0.5"),  # two ways
        ([0.2, 0.9, 0.6, 0.4, 0.7], "0.95", "0.6"),
        ([0.99], "4.6", "0.0"),
        ([0.99], "4.61", "0.0"),
        ([0.99], "4.60", "0.0"),  # 4.6052 is not printed so
        ([0.5, 0.5], "0.69", "0"),
        ([0.5, 0.5], "0.69", "1.0"),
        ([0.5] * 8, "0.69", "0.13"),  # one of eight, at an end which floats miss
        ([0.5] * 3, "0.69", "0.70"),  # two of three are no 0.70
        ([0.5] * 4, "0.69", "0"),  # (0, 1, 1, 1) comes before (1, 0, 0, 1)
        *(([0.0], clipped, "0.0") for clipped in ("16.12", "34.54", "100")),  # what libraries make of an infinite loss
        ([0.3, 0.7], "0.356674944", "1.0"),
    ],
    [
        _labels_are_the_predicted,
        edit(
            "is_printed_as(sum(costs) / n, loss) and is_printed_as(Fraction(sum(hits), n), accuracy)",
            "is_printed_as(sum(costs) / n, loss)",
            "The same labels have to give the accuracy too.",
        ),
        edit(
            "[-math.log(chance) for chance in chances]",
            "[-math.log(p) if label else 0.0 for p, label in pairs]",
            "A sample with label 0 costs something too: −log(1 − p).",
        ),
        edit(
            "is_printed_as(sum(costs) / n, loss)",
            "is_printed_as(sum(costs), loss)",
            "The loss is the mean over the samples, not their sum.",
        ),
        edit(
            "Fraction(value) - Fraction(text)) <= Fraction(1, 2 * 10**num_digits)",
            "float(value) - float(text)) <= 0.5 / 10**num_digits",
            "In floats 0.13 - 0.125 is a little more than 0.005, and you miss an end that is included. Compute with "
            "`Fraction`, or allow 1e-12 more.",
        ),
        edit(
            "(p > 0.5)",
            "(p >= 0.5)",
            "A prediction of exactly 0.5 says 0.",
        ),
        edit(
            "<= Fraction(1, 2 * 10**num_digits)",
            "<= 0",
            "What is printed is rounded: allow half a unit of its last digit.",
        ),
    ],
    [
        "Ten samples have only 1,024 labels. `itertools.product((0, 1), repeat=n)` goes through them in order.",
        "For each: the mean of −log(p or 1 − p), and the share of samples with (p > 0.5) == label. Do both fit?",
        "A value fits a text with k digits behind the point if it is at most 0.5 / 10**k away, both ends included: "
        "`Fraction` does not miss them. Ask whether a probability is 0 before you take its logarithm.",
    ],
)
