"""How often to save, and what is left: Young's first-order formula (lesson 21)."""

import math


def best_interval(save_cost, mean_between):
    """The time between two checkpoints that loses least, √(2·C·M); all three in the same unit, seconds or steps.

    Source: Young (1974), "A first order approximation to the optimum checkpoint interval".
    """
    _check(save_cost=save_cost, mean_between=mean_between)
    return math.sqrt(2 * save_cost * mean_between)


def goodput(interval, save_cost, mean_between, restart_cost=0.0):
    """The share of the time that is left for useful steps: 1 / (1 + C/T + (T/2 + R)/M).

    Args:
        interval: T, from one checkpoint to the next.
        save_cost: C, of a checkpoint.
        mean_between: M, from one failure to the next, on average.
        restart_cost: R, until training goes on. All four are in the same unit.

    Source: Young (1974); to first order in T/M: a failure within repeated work is not counted twice.
    """
    _check(interval=interval, mean_between=mean_between)
    for name, cost in (("save_cost", save_cost), ("restart_cost", restart_cost)):
        if not cost >= 0:
            raise ValueError(f"{name}={cost!r}: a number of at least 0 is needed")
    return 1 / (1 + save_cost / interval + (interval / 2 + restart_cost) / mean_between)


def band(interval, save_cost, mean_between, restart_cost=0.0):
    """(low, high) between which the mean goodput lies if one step in `mean_between` fails, all four in steps.

    High: Young's formula, in which work is repeated once at most; half of the step that fails is lost beside half of
    the interval. Low: every attempt at an interval may fail again, M((1 − 1/M)^−T − 1) steps are begun for one.

    Source: Daly (2006), "A higher order estimate of the optimum checkpoint interval", in whole steps.
    """
    high = goodput(interval, save_cost, mean_between, restart_cost + 0.5)
    begun = mean_between * ((1 - 1 / mean_between) ** -interval - 1)
    return interval / (begun * (1 + restart_cost / mean_between) + save_cost), high


def _check(**times):
    for name, time in times.items():
        if not time > 0:
            raise ValueError(f"{name}={time!r}: a number above 0 is needed")
