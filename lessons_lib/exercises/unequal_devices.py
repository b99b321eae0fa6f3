"""Exercises of lesson 20: whose doing a wait is, shares by speed, and when it is worth to change them."""

from lessons_lib.exercises.compare import as_number, not_whole
from lessons_lib.exercises.core import Exercise, Outcome, edit

# --- own_doing: who held the others up -------------------------------------------------------------------------------


def own_doing(waits, num_ranks):
    """Return a list: for each rank the seconds that others waited for it while it did not itself wait for anybody.

    waits: a list of (rank, peer, start_s, end_s): `rank` waited for `peer` in that time. A rank waits for one rank at
        a time; what two ranks wait for one at once counts twice. The list has any order.
    num_ranks: ranks are numbered from 0 to num_ranks - 1.
    """
    totals_s = [0.0] * num_ranks
    for _, peer, start_s, end_s in waits:
        own_s = end_s - start_s
        for rank, _, other_start_s, other_end_s in waits:
            if rank == peer:
                own_s -= max(0.0, min(end_s, other_end_s) - max(start_s, other_start_s))
        totals_s[peer] += own_s
    return totals_s


def _all_waits(waits, num_ranks):
    """You blame a rank for all waits for it. Where it waited for somebody itself in that time, it could do nothing:
    take those times off."""
    totals_s = [0.0] * num_ranks
    for _, peer, start_s, end_s in waits:
        totals_s[peer] += end_s - start_s
    return totals_s


def _waits_of(waits, num_ranks):
    """You add up how long each rank waited. Asked is how long others waited *for* it."""
    totals_s = [0.0] * num_ranks
    for rank, _, start_s, end_s in waits:
        totals_s[rank] += end_s - start_s
    return totals_s


def _all_or_nothing(waits, num_ranks):
    """You excuse a rank for a whole wait as soon as it waits itself for a part of it. Take off only the time in which
    both waits overlap."""
    totals_s = [0.0] * num_ranks
    for _, peer, start_s, end_s in waits:
        others = [(s, e) for rank, _, s, e in waits if rank == peer]
        if not any(min(end_s, e) > max(start_s, s) for s, e in others):
            totals_s[peer] += end_s - start_s
    return totals_s


own_doing = Exercise(
    own_doing,
    [
        ([(1, 0, 0.0, 2.0)], 2),
        ([(2, 1, 0.0, 3.0), (1, 0, 0.0, 3.0)], 3),  # a chain: it is all rank 0's doing
        ([(2, 1, 0.0, 3.0), (1, 0, 1.0, 2.0)], 3),  # rank 1 is excused for a part
        ([(1, 0, 1.0, 2.0), (2, 1, 0.0, 3.0)], 3),
        ([(2, 1, 1.0, 2.0), (1, 0, 0.0, 1.5)], 3),
        ([(2, 1, 1.0, 2.0), (1, 0, 2.0, 5.0)], 3),  # one after the other: no overlap, only a common end
        ([(0, 3, 0.0, 1.0), (1, 3, 0.5, 1.0), (2, 3, 0.25, 1.0)], 4),  # three wait for one
        ([(0, 2, 0.0, 4.0), (2, 1, 0.5, 1.0), (2, 3, 2.0, 2.5), (1, 3, 0.75, 3.0)], 4),  # several excuses
        ([(0, 1, 0.0, 1.0), (0, 1, 5.0, 6.5), (1, 0, 2.0, 3.0)], 2),  # both ways, at other times
        ([], 3),
        ([], 1),
    ],
    [
        _all_waits,
        _waits_of,
        _all_or_nothing,
        edit(
            "max(0.0, min(end_s, other_end_s) - max(start_s, other_start_s))",
            "min(end_s, other_end_s) - max(start_s, other_start_s)",
            "Two times that do not overlap give a negative length: then nothing is to be taken off.",
        ),
        edit(
            "own_s -= max(0.0, min(end_s, other_end_s) - max(start_s, other_start_s))",
            "own_s -= other_end_s - other_start_s",
            "You take off all that the rank has ever waited. Only what lies within this wait is an excuse for it.",
        ),
        edit(
            "totals_s[peer] += own_s",
            "totals_s[peer] = own_s",
            "A rank may have held up several others, or one several times: add up.",
        ),
    ],
    [
        "Rank 2 waits for rank 1 from 0 to 3 s, and rank 1 waits for rank 0 from 1 to 2 s. For how long is it rank 1's "
        "own doing?",
        "For each wait: its length, less what it has in common with the waits *of* its peer.",
        "Two times overlap by `max(0.0, min(ends) - max(starts))`.",
    ],
)


# --- best_shares: whole samples by speed -----------------------------------------------------------------------------


def best_shares(num_samples, speeds):
    """Return a list: how many samples each rank gets, so that the slowest is done as early as can be.

    num_samples: all of them are dealt out, whole; a rank may get none.
    speeds: samples per second of each rank, all above 0.
    Of several such lists any will do.
    """
    shares = [0] * len(speeds)
    for _ in range(num_samples):
        done_s = [(share + 1) / speed for share, speed in zip(shares, speeds, strict=True)]
        shares[done_s.index(min(done_s))] += 1
    return shares


def _even(num_samples, speeds):
    """You give everybody the same. The slowest rank then decides when the step ends."""
    return [num_samples // len(speeds) + (rank < num_samples % len(speeds)) for rank in range(len(speeds))]


def _rest_to_the_first(num_samples, speeds):
    """You cut off the fractions and give all that is left to the first rank. Give each of the samples that are left to
    the rank that is done with it first."""
    shares = [int(num_samples * speed / sum(speeds)) for speed in speeds]
    shares[0] += num_samples - sum(shares)
    return shares


def _largest_fractions(num_samples, speeds):
    """You round by the largest fraction. A sample more costs a slow rank far more time than a fast one: compare when
    each would be done with it."""
    exact = [num_samples * speed / sum(speeds) for speed in speeds]
    shares = [int(share) for share in exact]
    order = sorted(range(len(speeds)), key=lambda rank: int(exact[rank]) - exact[rank])
    for rank in order[: num_samples - sum(shares)]:
        shares[rank] += 1
    return shares


def _rounded(num_samples, speeds):
    """You round each share by itself: together they are not all samples, or too many."""
    return [round(num_samples * speed / sum(speeds)) for speed in speeds]


def _by_time(num_samples, speeds):
    """You give a rank more the slower it is: `speeds` are samples per second, not seconds per sample."""
    return best_shares.reference(num_samples, [1 / speed for speed in speeds])


def _time_of_the_slowest(fn, num_samples, speeds):
    shares = fn(num_samples, speeds)
    if not isinstance(shares, list | tuple) or len(shares) != len(speeds):
        return Outcome(shares, faults=[f"gives {shares!r}: a list of {len(speeds)} whole numbers is needed"])
    for share in shares:
        if not_whole(share) or as_number(share) < 0:
            return Outcome(shares, faults=[f"gives {shares!r}: whole numbers of at least 0 are needed"])
    shares = [int(as_number(share)) for share in shares]
    slowest_s = max(share / speed for share, speed in zip(shares, speeds, strict=True))
    return Outcome({"samples dealt out": sum(shares), "seconds until the slowest is done": slowest_s})


best_shares = Exercise(
    best_shares,
    [
        (64, [1.0, 1.0, 1.0, 0.25]),
        (12, [3.0, 2.0, 1.0]),
        (10, [3.0, 2.0, 1.0]),
        (7, [1.0, 1.0]),
        (5, [10.0, 0.1]),  # the slow rank gets none
        (1, [1.0, 2.0, 3.0]),
        (2, [9.0, 1.0, 1.0, 1.0]),
        (11, [5.0, 1.9]),
        (13, [0.7, 1.3, 2.9, 0.2, 3.1]),
        (100, [17.0, 4.0, 9.5]),
        (9, [4.0, 3.5, 0.9]),
        (0, [1.0, 2.0]),
        (6, [2.0]),
        (3, [1e6, 1.0]),
        (17, [1.0, 1.0, 3.0]),
        (19, [1.0, 3.0, 7.0]),
    ],
    [_even, _rest_to_the_first, _largest_fractions, _rounded, _by_time],
    [
        "If samples could be cut, each rank would get a share in proportion to its speed, and all would be done at the "
        "same time.",
        "Deal the samples one by one: who would be done first with one more?",
        "A rank with n samples and speed v is done with one more at (n + 1) / v. The smallest of these gets it.",
    ],
    outcome=_time_of_the_slowest,
)


# --- when_to_change: hysteresis --------------------------------------------------------------------------------------


def when_to_change(now_s, best_s, gain, patience):
    """Return the list of steps, numbered from 0, after which the shares are changed.

    now_s: for each step the predicted time with the shares that the run began with.
    best_s: for each step the predicted time with the best shares for the speeds of that step, at most now_s.
    gain, patience: the shares are changed after a step if they have been worth changing in it and in the
        `patience` - 1 steps before: a step takes more than (1 + gain) times the best. After a change at step s the
        time of a later step t is max(best_s[s], best_s[t]), until the next change, and the count of steps begins
        anew.
    """
    changes, count, promised_s = [], 0, None
    for step, best in enumerate(best_s):
        present_s = now_s[step] if promised_s is None else max(promised_s, best)
        count = count + 1 if present_s > (1 + gain) * best else 0
        if count == patience:
            changes.append(step)
            promised_s, count = best, 0
    return changes


def _at_once(now_s, best_s, gain, patience):
    """You change the shares in the first step that is worth it. One slow step may be an accident: wait until it has
    been worth it `patience` steps in a row."""
    return when_to_change.reference(now_s, best_s, gain, 1)


def _any_gain(now_s, best_s, gain, patience):
    """You change whenever other shares would be better at all. Measured speeds are never twice the same, so you would
    change for ever: only more than `gain` counts."""
    return when_to_change.reference(now_s, best_s, 0.0, patience)


when_to_change = Exercise(
    when_to_change,
    [
        ([4.0] * 6, [4.0, 4.0, 2.0, 2.0, 2.0, 2.0], 0.1, 2),
        ([4.0] * 6, [4.0, 2.0, 4.0, 2.0, 2.0, 4.0], 0.1, 2),  # not in a row
        ([4.0] * 5, [4.0, 2.0, 2.0, 2.0, 2.0], 0.1, 1),
        ([2.2] * 4, [2.0] * 4, 0.1, 1),  # exactly the gain is not more than it
        ([2.25] * 4, [2.0] * 4, 0.1, 3),
        ([1.05] * 8, [1.0] * 8, 0.0, 3),
        ([4.0] * 9, [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 3.0, 3.0, 1.0], 0.25, 2),  # changed, and changed again
        ([8.0] * 10, [4.0, 4.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0], 0.5, 3),
        ([8.0] * 6, [4.0, 4.0, 1.0, 1.0, 1.0, 1.0], 0.1, 2),  # slower again right after a change
        ([8.0] * 8, [4.0] * 8, 0.5, 3),  # the count begins anew, and nothing is left to gain
        ([3.0, 3.0], [1.0, 1.0], 0.1, 3),  # the run ends before
        ([3.0] * 3, [1.0] * 3, 0.1, 3),
        ([4.0] * 7, [1.0, 3.9, 1.0, 1.0, 3.9, 2.0, 2.0], 0.1, 2),
        ([], [], 0.1, 2),
    ],
    [
        _at_once,
        _any_gain,
        edit(
            "count = count + 1 if present_s > (1 + gain) * best else 0",
            "count = count + 1 if present_s > (1 + gain) * best else count",
            "You count the steps that are worth a change, wherever they are. They have to follow one another: a step "
            "that is not worth it sets the count back.",
        ),
        edit(
            "present_s > (1 + gain) * best",
            "present_s >= (1 + gain) * best",
            "A step that takes exactly (1 + gain) times the best is not more than that.",
        ),
        edit(
            "present_s = now_s[step] if promised_s is None else max(promised_s, best)",
            "present_s = now_s[step]",
            "After a change the shares are no longer those of the beginning: a step takes what the best ones of that "
            "moment promised, if that is more than its own best.",
        ),
        edit(
            "promised_s, count = best, 0",
            "promised_s = best",
            "After a change the count of steps begins anew.",
        ),
        edit(
            "(1 + gain) * best",
            "best + gain",
            "`gain` is a part of the best time, 0.1 for 10 %, and not seconds.",
        ),
    ],
    [
        "Go through the steps with a count of how many in a row have been worth a change.",
        "A step is worth it where its present time is more than (1 + gain) times its best. Else the count is 0 again.",
        "When the count has come to `patience`: note the step, keep its best time as the present one, count from 0.",
    ],
)
