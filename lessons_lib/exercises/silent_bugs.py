"""Exercises of lesson 23: where two runs part, what it looks like, which samples were missed, and ten cabinets."""

import torch

from lessons_lib.exercises.cases import drawn
from lessons_lib.exercises.core import Exercise, edit
from lessons_lib.museum import EXHIBITS

# --- first_parting: where runs part -----------------------------------------------------------------------------------


def first_parting(expected, found, limit):
    """Return (step, name, ranks) of the first record in which a rank differs from one process, or None.

    expected: what one process has recorded: a list of (step, name, tensor), in the order in which it was computed.
    found: for each rank such a list, of the same length and with the same steps and names.
    limit: a rank differs if the largest difference of its tensor is more than `limit` times the largest number of the
        expected tensor, both as absolute values. nan in a rank's tensor differs; no expected tensor has it.
    ranks: all ranks that differ in this record, a tuple in order.
    """
    partings = []
    for number, (step, name, right) in enumerate(expected):
        allowed = limit * right.abs().max()
        ranks = []
        for rank, records in enumerate(found):
            largest = (records[number][2] - right).abs().max()
            if not largest <= allowed:  # nan is not at most anything
                ranks.append(rank)
        if ranks:
            partings.append((step, name, tuple(ranks)))
    return partings[0] if partings else None


def _first_rank_only(expected, found, limit):
    """You stop at the first rank that differs. Asked are all ranks that differ in this record: whether one or all do is
    half of the diagnosis."""
    answer = first_parting.reference(expected, found, limit)
    return answer and (*answer[:2], answer[2][:1])


def _last_parting(expected, found, limit):
    """You give the last record that differs. What comes after the first may be wrong because of it."""
    for number in reversed(range(len(expected))):
        answer = first_parting.reference(expected[number:][:1], [each[number:][:1] for each in found], limit)
        if answer:
            return answer
    return None


def _absolute(expected, found, limit):
    """You compare the difference itself with `limit`. A gradient may be as small as 1e-6: divide by the largest number
    of the expected tensor, or multiply the limit by it."""
    for number, (step, name, right) in enumerate(expected):
        off = [(each[number][2] - right).abs().max() for each in found]
        ranks = tuple(rank for rank, each in enumerate(off) if not each <= limit)
        if ranks:
            return step, name, ranks
    return None


def _records(parts=(), num_ranks=3, scale=1.0):
    """Two steps with two tensors each, and what each rank has of them. parts: (rank, number of record, change)."""
    expected = [
        (step, name, drawn(2, 3, seed=10 * step + size, dtype=torch.float64) * scale)
        for step in (0, 1)
        for size, name in enumerate(("gradient/w", "weight/w"))
    ]
    found = [[(step, name, tensor.clone()) for step, name, tensor in expected] for _ in range(num_ranks)]
    for rank, number, change in parts:
        change(found[rank][number][2])
    return expected, found, 1e-8


def _double(tensor):
    tensor *= 2


def _one(tensor):
    tensor[1, 2] += 1e-3 * tensor.abs().max()


def _rounding(tensor):
    tensor *= 1 + 1e-12


def _nan(tensor):
    tensor[0, 1] = float("nan")


def _one_record(right, values, limit):
    return [(3, "x", torch.tensor(right))], [[(3, "x", torch.tensor(value))] for value in values], limit


def _parting_cases():
    everywhere = [(rank, number, _double) for rank in range(3) for number in (2, 3)]
    return [
        _records(everywhere),
        _records([(1, 3, _one)]),
        _records([(2, 1, _one), (0, 3, _double), (1, 3, _double)]),
        _records([(0, 2, _double), (2, 2, _one), (1, 0, _rounding)]),
        _records([(1, 1, _nan), (1, 2, _nan)]),
        _records([(0, 0, _one)], scale=1e-9),
        _records([(0, 3, _rounding), (2, 3, _rounding)], scale=1e9),
        _records([(0, 0, _rounding)]),
        _records(num_ranks=1),
        _records([(0, 0, _double)], num_ranks=1),
        (
            [(4, "loss", torch.tensor([2.0]))],
            [[(4, "loss", torch.tensor([2.5]))], [(4, "loss", torch.tensor([1.5]))]],
            0.25,
        ),
        ([(4, "loss", torch.tensor([-2.0]))], [[(4, "loss", torch.tensor([-2.5]))]], 0.2),
        (
            [(0, "zero", torch.zeros(2))],
            [[(0, "zero", torch.zeros(2))], [(0, "zero", torch.tensor([0.0, 1e-30]))]],
            1e-8,
        ),
        ([(4, "loss", torch.tensor([-2.0]))], [[(4, "loss", torch.tensor([-2.25]))]], 0.25),
        ([(4, "x", torch.tensor([0.125, 4.0]))], [[(4, "x", torch.tensor([0.125, 4.5]))]], 0.25),
        _one_record([1.0, 1000.0], [[1.5, 1000.0]], 0.01),
        _one_record([1.0, 1.0, 1.0, 1.0], [[1.0, 1.0, 1.0, 1.25]], 0.125),
        _one_record([1.0], [[2.0], [float("nan")]], 1e-8),
        _one_record([1.0], [[float("inf")], [1.0]], 1e-8),
        (
            [(0, "z", torch.ones(1)), (0, "a", torch.ones(1)), (1, "a", torch.ones(1))],
            [[(0, "z", torch.zeros(1)), (0, "a", torch.zeros(1)), (1, "a", torch.tensor([float("nan")]))]],
            1e-8,
        ),
        ([], [[], []], 1e-8),
    ]


first_parting = Exercise(
    first_parting,
    _parting_cases,
    [
        _first_rank_only,
        _last_parting,
        _absolute,
        edit(
            "not largest <= allowed",
            "largest > allowed",
            "nan is not larger than anything, so a tensor with nan passes your comparison. Ask whether it is *not* "
            "within the limit.",
        ),
        edit(
            "limit * right.abs().max()",
            "limit * right.max()",
            "The largest number as an absolute value is asked: of -2.0 that is 2.0.",
        ),
    ],
    [
        "Go through the records in order; for each, ask all ranks.",
        "A rank differs if `(its - right).abs().max()` is not at most `limit * right.abs().max()`.",
        "Return at the first record for which there is at least one such rank, with all of them.",
    ],
)


# --- kind_of: what it looks like --------------------------------------------------------------------------------------


def kind_of(values, right):
    """Return what is wrong with a tensor, as one of five values: None, "nan", "ranks differ", "a factor" or "other".

    values: the tensor of each rank, a list. right: that of one process, with at least one number that is not 0.
    None: all are equal to `right`, within 1e-6 of its largest number.
    "nan": a rank has nan. This comes before all that follows.
    "ranks differ": not all ranks have the same tensor as rank 0, within the same limit.
    "a factor": all have `right` times one number, which may be negative or 0, within 1e-6 of the largest number of
        what they have.
    "other": anything else.
    """
    limit = 1e-6 * right.abs().max()
    if any(value.isnan().any() for value in values):
        return "nan"
    if all((value - right).abs().max() <= limit for value in values):
        return None
    first = values[0]
    if any((value - first).abs().max() > limit for value in values):
        return "ranks differ"
    place = right.abs().argmax()
    factor = first.view(-1)[place] / right.view(-1)[place]
    is_factor = all((value - factor * right).abs().max() <= 1e-6 * value.abs().max() for value in values)
    return "a factor" if is_factor else "other"


def _ratio_of_sums(values, right):
    """You compare sums or means. Two tensors can have one sum and share no number: the factor has to fit every one."""
    found = kind_of.reference(values, right)
    if found == "other" and values[0].sum() / right.sum() - 3.0 == 0:
        return "a factor"
    return found


def _only_rank_0(values, right):
    """You look at rank 0 alone. It may be the only one that is right."""
    return kind_of.reference(values[:1], right)


def _divided(values, right):
    """You divide number by number. Where `right` is 0, that gives nan or inf, and a plain factor is not seen."""
    found = kind_of.reference(values, right)
    ratio = values[0] / right
    return "other" if found == "a factor" and not (ratio - ratio.view(-1)[0]).abs().max() <= 1e-6 else found


def _kind_cases():
    right = drawn(3, 4, seed=1, dtype=torch.float64)
    sparse = torch.tensor([[0.0, 2.0, -4.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    other = torch.tensor([6.0, 3.0, 0.0], dtype=torch.float64)
    odd = right.clone()
    odd[1, 1] += 1
    hole = right.clone()
    hole[0, 0] = float("nan")
    three = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    return [
        ([right.clone() for _ in range(4)], right),
        ([4 * right for _ in range(4)], right),
        ([right / 4, right / 4], right),
        ([right, right, odd], right),
        ([odd, right, right], right),
        ([odd, odd], right),
        ([2 * right, 2 * right, 3 * right], right),
        ([right, hole], right),
        ([hole, odd], right),
        ([3 * sparse, 3 * sparse], sparse),
        ([other, other], three),  # the same sum as 3 times the right one
        ([-right, -right], right),
        ([torch.zeros_like(right)] * 2, right),  # the factor is 0
        ([1e-5 * right] * 2, right),
        ([right * (1 + 1e-9), right], right),
        ([right + 1e-3], right),
        ([right], right),
        ([2 * sparse + 1e-9, 2 * sparse], sparse),
        ([1e-5 * odd] * 2, right),
        ([1e6 * right + 0.5] * 2, right),
        ([1e6 * right + 1e3] * 2, right),
        ([1e3 * right + 1e-4] * 2, 1e3 * right),
        ([torch.tensor([-1.0, -2.0])] * 2, torch.tensor([-1.0, -2.0])),
        ([torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])], torch.tensor([1.0, 2.0])),
        ([1e-5 * right, 1e-5 * right + 5e-7], right),  # alike beside `right`, and the second is no factor
        ([1e-5 * right + 5e-7, 1e-5 * right], right),
        ([torch.tensor([1e6, 1.0])] * 2, torch.tensor([1e6, 0.0])),  # just within the limit
        ([torch.tensor([1e6, 3.0]), torch.tensor([1e6, 4.0])], torch.tensor([1e6, 0.0])),
    ]


kind_of = Exercise(
    kind_of,
    _kind_cases,
    [
        _ratio_of_sums,
        _only_rank_0,
        _divided,
        edit(
            "1e-6 * value.abs().max()",
            "1e-9 * value.abs().max()",
            "Rounding is no other number: within 1e-6 of the largest number it is still a factor.",
        ),
        edit(
            "(value - first).abs().max() > limit",
            "not torch.equal(value, first)",
            "Ranks that differ by rounding alone are alike: within the same limit.",
        ),
    ],
    [
        "Ask in this order: nan, all right, all alike, one factor.",
        "Where `right` has its largest number, dividing is safe: the factor, if there is one, stands there.",
        "A factor it is if `(first - factor * right).abs().max()` is at most 1e-6 of `first.abs().max()`.",
    ],
)


# --- doubled_and_lost: which samples ----------------------------------------------------------------------------------


def doubled_and_lost(rows, num_samples):
    """Return (doubled, lost): the samples that an epoch has used more than once, and those that it has not used.

    rows: for each rank a list of steps, each a list of samples, which are numbers from 0 to num_samples - 1. Ranks may
        have different numbers of steps, and steps may be empty.
    Both are lists, in rising order, with each number once.
    """
    counts = [0] * num_samples
    for of_rank in rows:
        for step in of_rank:
            for sample in step:
                counts[sample] += 1
    doubled = [sample for sample, count in enumerate(counts) if count > 1]
    return doubled, [sample for sample, count in enumerate(counts) if count == 0]


def _by_length(rows, num_samples):
    """You count how many samples were used. A sample that is lost and another that is doubled leave that number as it
    is."""
    used = [sample for of_rank in rows for step in of_rank for sample in step]
    return doubled_and_lost.reference(rows, num_samples) if len(used) != num_samples else ([], [])


def _within_a_rank(rows, num_samples):
    """You look for doubles within each rank. Two ranks that read one shard use a sample once each."""
    found = {sample for of_rank in rows for sample in doubled_and_lost.reference([of_rank], num_samples)[0]}
    return sorted(found), doubled_and_lost.reference(rows, num_samples)[1]


def _within_a_step(rows, num_samples):
    """You compare the ranks step by step. A resume repeats in a later step what an earlier one has used."""
    doubled = set()
    for number in range(max(map(len, rows), default=0)):
        now = [[of_rank[number : number + 1]] for of_rank in rows]
        doubled |= set(doubled_and_lost.reference([each[0] for each in now], num_samples)[0])
    return sorted(doubled), doubled_and_lost.reference(rows, num_samples)[1]


doubled_and_lost = Exercise(
    doubled_and_lost,
    [
        ([[[0, 1], [4, 5]], [[2, 3], [6, 7]]], 8),
        ([[[0, 1], [4, 5]], [[0, 1], [4, 5]]], 8),  # two ranks read one shard
        ([[[3, 1], [3, 1]], [[0, 2], [0, 2]]], 6),  # a resume repeats
        ([[[0], [1], [2]], [[5], [5], [5]]], 6),
        ([[[2, 2, 2]]], 3),
        ([[[1, 0]], [[2], [3, 1]]], 5),  # as many as there are, and yet
        ([[[], [4]], [[]]], 5),
        ([[], []], 2),
        ([], 0),
        ([[[0]]], 1),
        ([[[0, 1]]], 12),
    ],
    [_by_length, _within_a_rank, _within_a_step],
    [
        "Count for each sample how often it was used, over all ranks and steps.",
        "`counts = [0] * num_samples`, and three loops.",
        "Doubled are those with a count above 1, lost those with 0.",
    ],
)


# --- diagnose: ten cabinets ------------------------------------------------------------------------------------------

CABINETS = (
    "divided_twice",
    "accumulated_undivided",
    "averaged_weights_of_adam",
    "every_rank_draws_the_same_dropout",
    "statistics_of_each_rank_alone",
    "tied_table_learns_at_one_end",
    "no_new_order",
    "batch_grows_with_the_ranks",
    "moving_average_on_rank_0",
    "optimizer_of_the_weights_before",
)


def diagnose(name):
    """Return (step, tensor, ranks, kind): where the exhibit `name`, on four ranks, first parts from its mended version
    on one.

    name: of one of the ten exhibits that are listed above.
    tensor: the name under which it was recorded, such as "gradient/0.weight". ranks: a tuple of those that differ.
    kind: "a factor" if all ranks have the right tensor, or the right change of it in this step, times one number;
        "ranks differ" if not all ranks have the same; "other numbers" for anything else.
    Find out as you like: with a function of your own, or by looking, and then by a dictionary of ten lines.
    """
    first = EXHIBITS[name].compare().first
    is_factor = first.kind.endswith(("times", "of it"))
    return first.step, first.tensor, first.ranks, "a factor" if is_factor else first.kind


def _blames_rank_0(name):
    """You name rank 0 alone. Compare what *each* rank has with the one process: mostly all are wrong alike."""
    step, tensor, _, kind = diagnose.reference(name)
    return step, tensor, (0,), kind


def _at_the_start(name):
    """You say that all are wrong from step 0 on. Some part later: their first steps are right, to the last digit."""
    return 0, *diagnose.reference(name)[1:]


def _always_other(name):
    """You call everything other numbers. Divide by what is right: if all quotients are alike, it is a factor; and
    compare the ranks with one another."""
    return *diagnose.reference(name)[:3], "other numbers"


def _always_the_gradient(name):
    """You name the gradient of the first layer everywhere. In some runs the gradients are right, and something else
    parts first."""
    step, _, ranks, kind = diagnose.reference(name)
    return step, "gradient/0.weight", ranks, kind


diagnose = Exercise(
    diagnose,
    [(name,) for name in CABINETS],
    [_blames_rank_0, _at_the_start, _always_other, _always_the_gradient],
    [
        "Record both runs, and compare record by record: Exercise 1 does it.",
        "`launch(recorded, EXHIBITS[name].run, world_size=4)` has what each of the four ranks recorded.",
        "For the kind: Exercise 2. Of weights, take off what they were in the step before.",
    ],
    time_limit_s=60.0,
)
