"""Run an answer on ranks: what each returns, and what the ledgers of all say that it cost."""

from lessons_lib.exercises.running import Outcome
from lessons_lib.exercises.watching import Watched
from lessons_lib.launch import launch

COSTS = ("messages sent by a rank", "messages received by a rank", "bytes sent by a rank", "bytes received by a rank")


def by_rank(results):
    """Put the results of all ranks under the keys "rank 0", "rank 1", …, so that a difference names the rank."""
    return {f"rank {rank}": result for rank, result in enumerate(results)}


def on_ranks(fn, *args, world_size, costs=COSTS, num_calls=None, timeout_s=10, **options):
    """Run `fn(comm, *args)` on every rank, as the outcome of an exercise.

    Args:
        fn: a function of the exercise's module, which calls the answer; the answer is one of `args`.
        world_size: how many ranks.
        costs: names of what is counted: "messages" or "bytes", "sent" or "received", "by a rank" (the most that any
            rank has) or "by all ranks" (their sum).
        num_calls: where it is given, each rank calls `fn(comm, *args, turn)` for turn 0, 1, … in turn, and keeps all
            results: what an answer remembers in its process shows.
        timeout_s, options: as in `launch`.

    Returns:
        An `Outcome`: what the ranks return, by rank (a list where `num_calls` is given), and the named costs.
    """
    ranks = launch(_watched, fn, args, num_calls, world_size=world_size, timeout_s=timeout_s, **options)
    for _, changes in ranks:
        for answer, changed in zip(_answers(args), changes, strict=True):
            answer.changed.update(changed)
    calls = f" in {num_calls} calls" if num_calls else ""
    costs = {name + calls: ledger_cost(name, ranks.ledgers) for name in costs}
    return Outcome(by_rank([result for result, _ in ranks]), costs)


def _watched(comm, fn, args, num_calls):
    """On a rank: what `fn` returns, and which arguments the answers have changed there."""
    result = fn(comm, *args) if num_calls is None else [fn(comm, *args, turn) for turn in range(num_calls)]
    return result, [answer.changed for answer in _answers(args)]


def _answers(args):
    return [each for each in args if isinstance(each, Watched)]


def ledger_cost(name, ledgers):
    """What the ledgers of all ranks say to one of the names of `on_ranks`."""
    unit, way, who = name.split(" ", 2)
    amounts = [getattr(ledger, f"{unit}_{way}") for ledger in ledgers]
    return {"by a rank": max, "by all ranks": sum}[who](amounts)
