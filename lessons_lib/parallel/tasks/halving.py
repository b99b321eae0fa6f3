"""A search that stops the worse half early, again and again."""

from dataclasses import dataclass
from math import ceil, isnan

from ...errors import check_whole
from .run_tasks import run_tasks


@dataclass(frozen=True)
class Round:
    """One round of a search.

    Attributes:
        budget: how far each configuration had been trained at its end, in steps.
        losses: {number of a configuration: its loss at the end of the round}.
        cost: the steps of all configurations in this round, without those of the rounds before.
    """

    budget: int
    losses: dict
    cost: int


@dataclass(frozen=True)
class Halving:
    """What a search found.

    Attributes:
        survivors: the numbers of the configurations that are left, the best first.
        states: {number of a survivor: what `train` gave for it last}.
        rounds: a `Round` for each budget.
        cost: the steps of all rounds.
    """

    survivors: list
    states: dict
    rounds: list

    @property
    def cost(self):
        return sum(each.cost for each in self.rounds)


def successive_halving(comm, train, configs, budgets, factor=2, **options):
    """Train all configurations a little, keep the best half, train these further, and so on. All ranks call it.

    Args:
        comm: a `Communicator`, as for `run_tasks`.
        train: (config, num_steps, state) -> (loss, state): trains `num_steps` further from `state`, on whichever rank
            is free; `state` is None at first, then what it gave before, which is pickled. A loss of nan is the worst.
        configs: the configurations.
        budgets: how far each round trains, in steps from the start, such as [10, 20, 40]; one round each.
        factor: one of so many is kept between two rounds, at least one, rounded up.
        options: of `run_tasks`.

    Returns:
        A `Halving`, on every rank.

    Raises:
        ValueError: no configuration, or budgets that do not grow. As `run_tasks` otherwise.

    Communication: that of `run_tasks` for each round, of states too.

    Source: Jamieson and Talwalkar (2016), algorithm 1.
    """
    configs, budgets = list(configs), list(budgets)
    _check(configs, budgets, factor)
    left, states, rounds, done = list(range(len(configs))), dict.fromkeys(range(len(configs))), [], 0
    for budget in budgets:
        if rounds:
            left = left[: ceil(len(left) / factor)]
        tasks = [(configs[number], budget - done, states[number]) for number in left]
        results = run_tasks(comm, lambda task: train(*task), tasks, **options)
        comm = results.comm
        losses = {number: float(loss) for number, (loss, _) in zip(left, results, strict=True)}
        states = {number: state for number, (_, state) in zip(left, results, strict=True)}
        rounds.append(Round(budget, losses, len(left) * (budget - done)))
        left, done = _from_the_best(losses), budget
    return Halving(left, states, rounds)


def _from_the_best(losses):
    return sorted(losses, key=lambda number: (isnan(losses[number]), losses[number]))


def _check(configs, budgets, factor):
    check_whole("factor", factor, 2)
    if not configs:
        raise ValueError("configs is empty: at least one configuration is needed")
    for before, budget in zip([0, *budgets], budgets, strict=False):
        check_whole("budgets: a budget", budget, 1)
        if budget <= before:
            raise ValueError(f"budgets={budgets!r}: numbers of steps that grow are needed")
    if not budgets:
        raise ValueError("budgets=[]: at least one is needed")
