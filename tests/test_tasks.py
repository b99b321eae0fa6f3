"""Independent tasks on many ranks: results in order, tasks that raise, workers that die (lesson 19)."""

import os
import signal
import sys
from pathlib import Path

import cloudpickle
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401

from lessons_lib import RankFailed, RankLost, launch
from lessons_lib.parallel import run_tasks
from lessons_lib.parallel.tasks.hand_out import HandOut

cloudpickle.register_pickle_by_value(sys.modules[__name__])
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
POLICIES = ("queue", "static")
LONG_S = 600.0


class Square:
    """A result of a class that no other process can import."""

    def __init__(self, number):
        self.number, self.square = number, torch.tensor(float(number * number))


def squares(comm, num_tasks, policy="queue"):
    results = run_tasks(comm, Square, range(num_tasks), policy, progress=False)
    return [(each.number, each.square.item()) for each in results]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def times(folder, task):
    """How often this has been called for `task`, by any process, this time included."""
    path = Path(folder) / str(task)
    with path.open("a") as file:
        file.write("x")
    return path.stat().st_size


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
@pytest.mark.parametrize(("world_size", "num_tasks"), [(1, 3), (2, 4), (4, 2), (4, 9), (3, 0)])
def test_every_rank_gets_all_results_in_the_order_of_the_tasks(policy, transport, world_size, num_tasks):
    results = launch(squares, num_tasks, policy, world_size=world_size, transport=transport)
    assert results == [[(k, float(k * k)) for k in range(num_tasks)]] * world_size


@pytest.mark.parametrize("policy", POLICIES)
def test_every_task_is_run_once_and_rank_0_runs_none(policy, tmp_path):
    def main(comm):
        return run_tasks(comm, lambda task: (comm.rank, times(tmp_path, task)), range(12), policy, progress=False)

    results = launch(main, world_size=4)[0]
    assert all(count == 1 and rank > 0 for rank, count in results)
    if policy == "static":
        assert [rank for rank, _ in results] == [1] * 4 + [2] * 4 + [3] * 4


def test_the_progress_bar_is_of_rank_0(capfd):
    launch(lambda comm: run_tasks(comm, abs, [1, -2]), world_size=2)
    said = capfd.readouterr().err
    assert "[rank 0]" in said and "0/2" in said and "[rank 1]" not in said
    launch(lambda comm: run_tasks(comm, abs, [1, -2], progress=False), world_size=2)
    assert capfd.readouterr().err == ""


def test_the_trace_has_a_span_for_each_task():
    trace = launch(squares, 5, world_size=3, trace=True).trace
    assert sorted(span.label for span in trace.spans if span.kind == "compute") == [f"task {k}" for k in range(5)]


# --- tasks that raise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_task_that_raises_is_given_again(policy, world_size, tmp_path):
    def work(task):
        if times(tmp_path, task) < 3 and task % 4 == 1:
            raise ValueError(f"not yet {task}")
        return task

    def main(comm):
        results = run_tasks(comm, work, range(8), policy, progress=False)
        return list(results), {task: [line for _, line, _ in failed] for task, failed in results.failures.items()}

    failures = {task: [f"ValueError: not yet {task}"] * 2 for task in (1, 5)}
    assert launch(main, world_size=world_size) == [(list(range(8)), failures)] * world_size


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_task_that_fails_too_often_is_raised_on_every_rank(policy, world_size):
    def main(comm):
        with pytest.raises(RankFailed) as error:
            run_tasks(comm, lambda task: 1 / (task - 3), range(6), policy, attempts=2, progress=False)
        comm.barrier()  # the ranks can go on together
        return error.value.reason, "ZeroDivisionError" in error.value.details

    for reason, has_traceback in launch(main, world_size=world_size):
        assert reason.startswith("task 3 failed 2 times, the last time on rank ") and has_traceback
        assert reason.endswith("ZeroDivisionError: division by zero")


def test_a_result_that_cannot_be_pickled_is_a_failure():
    def main(comm):
        with pytest.raises(RankFailed, match=r"task 0 failed once.*pickle"):
            run_tasks(comm, lambda task: (each for each in [task]), [1], attempts=1, progress=False)

    launch(main, world_size=2)


# --- workers that die ------------------------------------------------------------------------------------------------


def with_deaths(comm, folder, deadly, policy="queue", attempts=3):
    """Results of tasks of which `deadly` kill their worker the first time; who is left."""

    def work(task):
        if times(folder, task) == 1 and task in deadly:
            die()
        return task * 10

    results = run_tasks(comm, work, range(9), policy, attempts, progress=False)
    total = torch.ones(1)
    results.comm.all_reduce(total)
    return list(results), results.comm.ranks, int(total), sorted(results.failures)


@posix
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("deadly", [{0}, {8}, {1, 7}, {0, 4, 8}])
def test_a_worker_that_dies_gives_its_task_back(policy, deadly, tmp_path):
    options = {"world_size": 4, "elastic": True, "timeout_s": LONG_S}
    results = launch(with_deaths, tmp_path, deadly, policy, **options)
    living = [result for result in results if result is not None]
    assert len(living) == 4 - len(deadly) and results[0] is not None
    for values, ranks, total, failed in living:
        assert values == [10 * task for task in range(9)]
        assert len(ranks) == total == len(living) and failed == sorted(deadly)


@posix
def test_a_replacement_works_on():
    def main(comm):
        def work(task):
            if comm.restart_count == 0 and comm.rank == 1:
                die()
            return task

        results = run_tasks(comm, work, range(6), progress=False)
        return list(results), results.comm.ranks

    results = launch(main, world_size=3, elastic=True, spares=1, timeout_s=LONG_S)
    assert results == [(list(range(6)), [0, 1, 2])] * 3


@posix
def test_a_task_that_kills_every_worker_is_given_up():
    def main(comm):
        try:
            return list(
                run_tasks(comm, lambda task: die() if task == 2 else task, range(5), attempts=2, progress=False)
            )
        except RankLost:
            raise
        except RankFailed as error:
            return error.reason

    results = launch(main, world_size=5, elastic=True, timeout_s=LONG_S)
    assert results.count(None) == 2
    said = {result for result in results if result is not None}
    assert len(said) == 1 and said.pop().startswith("task 2 failed 2 times") and "died in it" in results[0]


@posix
@pytest.mark.parametrize("num_given", [0, 3, 6])
def test_rank_0_dies_and_another_hands_out(num_given):
    def main(comm):
        if comm.rank == 0:
            give = HandOut.give

            def give_so_many(line, worker, left=[num_given]):  # noqa: B006
                left[0] -= 1
                return die() if left[0] < 0 else give(line, worker)

            HandOut.give = give_so_many
        return list(run_tasks(comm, lambda task: -task, range(8), progress=False))

    results = launch(main, world_size=4, elastic=True, timeout_s=LONG_S)
    assert results == [None, *[[-task for task in range(8)]] * 3]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((3, [1]), "fn is a int"),
        ((abs, 3), "tasks is a int"),
        ((abs, [1], "fastest"), "policy='fastest': one of 'queue', 'static'"),
        ((abs, [1], "queue", 0), "attempts=0: a whole number of at least 1"),
        ((abs, [1], "queue", True), "attempts=True: a whole number"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, said):
    def main(comm):
        with pytest.raises((TypeError, ValueError), match=said):
            run_tasks(comm, *arguments)

    launch(main, world_size=2)


def test_ranks_with_different_tasks_are_refused_on_every_rank():
    def main(comm):
        with pytest.raises(ValueError, match=r"different tasks: rank 0: \{'tasks': 1.*rank 1: \{'tasks': 2"):
            run_tasks(comm, abs, range(comm.rank + 1), progress=False)

    launch(main, world_size=2)


# --- who gets what ---------------------------------------------------------------------------------------------------


def test_the_queue_gives_in_order_and_again_at_the_end():
    line = HandOut([4, 5, 6], "ab")
    assert [line.give("a"), line.give("b")] == [4, 5]
    assert line.take_back("a", is_done=False) == 4 and line.take_back("b", is_done=True) == 5
    assert [line.give("b"), line.give("a"), line.running] == [6, 4, {"b": 6, "a": 4}]


def test_a_static_share_stays_with_its_worker():
    line = HandOut(range(5), "ab", "static")
    assert [line.give("a"), line.take_back("a", False), line.give("a"), line.take_back("a", True)] == [0, 0, 1, 1]
    assert [line.give("a"), line.take_back("a", True), line.give("a")] == [0, 0, None]
    assert line.give("b") == 2
