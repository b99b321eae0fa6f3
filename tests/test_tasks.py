"""Independent tasks on many ranks: results in order, tasks that raise, workers that die (lesson 19)."""

import os
import signal
import sys
from itertools import product
from pathlib import Path

import cloudpickle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from left_behind import nothing_is_left_behind  # noqa: F401

from lessons_lib import RankFailed, RankLost, launch
from lessons_lib.parallel import run_tasks, successive_halving
from lessons_lib.parallel.tasks.hand_out import HandOut
from lessons_lib.schedules import best_schedule, graham_bound, list_schedule, longest_first, static_split

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


@posix
def test_a_rank_that_is_still_leaving_when_another_is_in_the_next_call_follows():
    def main(comm):
        barrier = comm.barrier

        def barrier_and_death():
            barrier()
            if comm.rank == 1:
                comm.recv(torch.zeros(1), 2)  # until rank 2 dies
            if comm.rank == 2:
                die()

        comm.barrier = barrier_and_death
        first = run_tasks(comm, lambda task: task, range(4), progress=False)
        second = run_tasks(first.comm, lambda task: -task, range(4), progress=False)
        return [*first, *second]

    results = launch(main, world_size=3, elastic=True, timeout_s=LONG_S)
    assert results == [[0, 1, 2, 3, 0, -1, -2, -3]] * 2 + [None]


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
        with pytest.raises(ValueError, match=r"different tasks: rank 0: \{.*'tasks': 1.*rank 1: \{.*'tasks': 2"):
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


# --- schedules as data -----------------------------------------------------------------------------------------------


def test_schedules_of_tasks_beside_the_optimum():
    durations = [3.0, 3.0, 2.0, 2.0, 2.0]
    assert best_schedule(durations, 2).total_s == 6.0
    assert longest_first(durations, 2).total_s == 7.0  # 4/3 - 1/6 times the optimum: the bound is reached
    assert list_schedule([1.0] * 6 + [3.0], 3).total_s == 5.0 and best_schedule([1.0] * 6 + [3.0], 3).total_s == 3.0
    assert graham_bound(3) == 5 / 3  # reached too
    assert static_split([1.0, 1.0, 5.0, 6.0], 2).finish_s == [2.0, 11.0]


@given(st.lists(st.integers(0, 9), max_size=7), st.integers(1, 4))
def test_list_schedules_stay_within_their_bounds(durations, num_workers):
    def end(who):
        loads = [0] * num_workers
        for worker, duration in zip(who, durations, strict=True):
            loads[worker] += duration
        return max(loads)

    best = best_schedule(durations, num_workers).total_s
    assert best == min(end(who) for who in product(range(num_workers), repeat=len(durations)))
    assert best <= list_schedule(durations, num_workers).total_s <= graham_bound(num_workers) * best + 1e-9
    assert best <= longest_first(durations, num_workers).total_s <= (4 - 1 / num_workers) / 3 * best + 1e-9
    for make in (best_schedule, list_schedule, longest_first, static_split):
        found = make(durations, num_workers)
        assert sorted(span.label for span in found.trace.spans) == sorted(f"task {k}" for k in range(len(durations)))
        assert found.total_s == max(found.finish_s) >= best and found.trace.source == "simulated"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([1.0, -1.0], 2), r"durations_s\[1\]=-1.0"),
        (([float("nan")], 2), r"durations_s\[0\]=nan"),
        (([1.0], 0), "num_workers=0"),
    ],
)
def test_durations_that_cannot_be_are_refused(arguments, said):
    for make in (best_schedule, list_schedule, longest_first, static_split):
        with pytest.raises(ValueError, match=said):
            make(*arguments)
    with pytest.raises(ValueError, match="13 tasks: at most 12"):
        best_schedule([1.0] * 13, 2)


# --- successive halving ----------------------------------------------------------------------------------------------


def count_up(config, num_steps, state):
    """The loss falls to `config`, the slower the lower: what is best changes with the budget."""
    steps = (state or 0) + num_steps
    return (float("nan") if config < 0 else config + 40 / steps), steps


def test_halving_keeps_the_best_and_trains_them_further():
    def main(comm):
        return successive_halving(comm, count_up, [3, 1, -1, 2, 0], [10, 20, 40], progress=False)

    found = launch(main, world_size=3)
    assert len({repr(each) for each in found}) == 1
    assert [each.losses for each in found[0].rounds] == [
        {0: 7.0, 1: 5.0, 2: pytest.approx(float("nan"), nan_ok=True), 3: 6.0, 4: 4.0},
        {4: 2.0, 1: 3.0, 3: 4.0},
        {4: 1.0, 1: 2.0},
    ]
    assert [each.cost for each in found[0].rounds] == [50, 30, 40] and found[0].cost == 120
    assert found[0].survivors == [4, 1] and found[0].states == {4: 40, 1: 40}


@posix
def test_halving_goes_on_when_a_worker_dies(tmp_path):
    def main(comm):
        def train(config, num_steps, state):
            if times(tmp_path, f"{config} {num_steps}") == 1 and config == 0:
                die()
            return count_up(config, num_steps, state)

        return successive_halving(comm, train, [3, 1, 2, 0], [10, 30], progress=False)

    results = launch(main, world_size=4, elastic=True, timeout_s=LONG_S)
    living = [found for found in results if found is not None]
    assert len(living) == 2 and all((each.survivors, each.cost) == ([3, 1], 80) for each in living)


@pytest.mark.parametrize(
    ("configs", "budgets", "factor", "said"),
    [
        ([], [1], 2, "configs is empty"),
        ([1], [], 2, r"budgets=\[\]"),
        ([1], [2, 2], 2, r"budgets=\[2, 2\]: numbers of steps that grow"),
        ([1], [0], 2, "a budget=0"),
        ([1], [1], 1, "factor=1"),
    ],
)
def test_a_search_that_cannot_be_is_refused(configs, budgets, factor, said):
    with pytest.raises(ValueError, match=said):
        successive_halving(None, count_up, configs, budgets, factor)
