"""Work through tasks that are independent of each other, on many ranks."""

import sys
import traceback
from collections.abc import Iterable

import cloudpickle
from tqdm import tqdm

from ...errors import RankFailed, RankLost, check_whole
from ..objects import recv_object, send_object
from .hand_out import POLICIES, HandOut
from .progress import Progress


class TaskResults(list):
    """The results, in the order of the tasks. What a rank returns of it to its launch has no `comm`.

    Attributes:
        comm: the communicator with which to go on: another one than before where a rank has died meanwhile.
        failures: {task: one (rank in the launch, line, traceback) for each attempt that failed}.
    """

    comm = failures = None

    def __getstate__(self):
        return {"failures": self.failures}


def run_tasks(comm, fn, tasks, policy="queue", attempts=3, progress=True):
    """Call `fn(task)` once for each of `tasks`, on whichever rank is free. All ranks call it together.

    Rank 0 hands the tasks out and does none itself, unless it is alone; so N ranks are N - 1 workers. A task that
    raises is given again, to any worker ("queue") or to the same one ("static"). In an elastic launch a rank that dies
    gives its task back, and the others go on, with its replacement if one comes; they notice when they have ended the
    tasks that they have. A task may then run more than once, but it has one result. Where rank 0 dies, what it alone
    knew, how often tasks had failed on ranks that are dead, is forgotten.

    Args:
        comm: a `Communicator`.
        fn: a function of one task; it must not communicate with `comm`. What it returns is pickled.
        tasks: the tasks, the same on every rank. One may last as long as timeout_s of the launch.
        policy: "queue": whoever is free gets the next task; "static": each worker gets an equal share beforehand.
        attempts: how often a task may be tried before all is given up; also a death in it is an attempt.
        progress: whether rank 0 shows a progress bar.

    Returns:
        `TaskResults` on every rank: a list.

    Raises:
        RankFailed: a task has failed `attempts` times, on every rank; `details` has the last traceback.
        TypeError, ValueError: an argument is not what is said above, or ranks were given different ones.

    Communication: per task a message of 8 bytes each way and one of the pickled result; at the end a broadcast of all.
    """
    tasks = _checked(fn, tasks, policy, attempts)
    comm.ledger.call("run_tasks")
    call = comm.ledger.calls["run_tasks"]
    known, settings = Progress(), {"call": call, "tasks": len(tasks), "policy": policy, "attempts": attempts}
    hidden = not progress or comm.rank > 0
    with tqdm(total=len(tasks), disable=hidden, leave=False, file=sys.stderr, unit="task") as bar:
        while True:
            try:
                calls = known.meet(comm, settings)
                _check_failures(known, attempts)
                if max(calls) > call:
                    _check_left(known, len(tasks), call, max(calls))
                    break
                if min(calls) < call:
                    continue
                if len(known.results) == len(tasks):
                    comm.barrier()  # whoever has left knows that all others have all results
                    break
                bar.update(len(known.results) - bar.n)
                if comm.rank > 0:
                    _work(comm, fn, tasks, known)
                elif comm.world_size > 1:
                    _hand_out(comm, known, len(tasks), policy, attempts, bar)
                else:
                    _work_alone(comm, fn, tasks, known, attempts, bar)
            except RankLost:
                comm = comm.regroup()
    results = TaskResults(known.values(len(tasks)))
    results.comm, results.failures = comm, known.failures
    return results


def _checked(fn, tasks, policy, attempts):
    if not callable(fn):
        raise TypeError(f"fn is a {type(fn).__name__}: a function of one task is needed")
    if not isinstance(tasks, Iterable):
        raise TypeError(f"tasks is a {type(tasks).__name__}: a list of tasks is needed")
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r}: one of {', '.join(map(repr, POLICIES))} is needed")
    check_whole("attempts", attempts, 1)
    return list(tasks)


def _check_failures(known, attempts):
    """Raise the failure of the first task that has failed too often; every rank knows the same ones."""
    for task, failed in sorted(known.failures.items()):
        if len(failed) >= attempts and task not in known.results:
            rank, line, details = failed[-1]
            times = "once" if len(failed) == 1 else f"{len(failed)} times"
            raise RankFailed(rank, f"task {task} failed {times}, the last time on rank {rank}: {line}", details)


def _check_left(known, num_tasks, call, latest):
    """The others have left this call: this rank can do so too, as it has all results, unless it is a replacement."""
    if len(known.results) < num_tasks:
        raise RuntimeError(
            f"this rank is in call {call} of run_tasks and the others are in call {latest}, with other tasks: what "
            "replaces a rank that has died must begin where the others are"
        )


def _attempt(comm, fn, tasks, task, known):
    """Run one task and note what came of it: whether it has a result."""
    me = comm.ranks[comm.rank]
    try:
        with comm.compute(f"task {task}"):
            known.results[task] = cloudpickle.dumps(fn(tasks[task]))
    except RankLost:
        raise
    except Exception as error:
        known.failed(task, me, f"{type(error).__name__}: {error}", traceback.format_exc())
    return task in known.results


def _work(comm, fn, tasks, known):
    """Do the tasks that rank 0 gives, until it gives none."""
    while (task := recv_object(comm, 0)[0]) is not None:
        is_done = _attempt(comm, fn, tasks, task, known)
        send_object(comm, known.results[task] if is_done else known.failures[task][-1], 0)


def _work_alone(comm, fn, tasks, known, attempts, bar):
    for task in range(len(tasks)):
        while task not in known.results and len(known.failures.get(task, [])) < attempts:
            bar.update(_attempt(comm, fn, tasks, task, known))


def _hand_out(comm, known, num_tasks, policy, attempts, bar):
    """Give tasks to whoever is free, until all are done or one has failed too often; then tell all to stop."""
    todo = [task for task in range(num_tasks) if task not in known.results]
    line = HandOut(todo, range(1, comm.world_size), policy)
    free, given_up = list(range(1, comm.world_size)), False
    while True:
        for worker in [] if given_up else list(free):
            if (task := line.give(worker)) is not None:
                free.remove(worker)
                known.running[comm.ranks[worker]] = task
                send_object(comm, task, worker)
        if not line.running:
            break
        said, worker = recv_object(comm)
        free.append(worker)
        is_done = isinstance(said, bytes)
        task = line.take_back(worker, is_done)
        del known.running[comm.ranks[worker]]
        if is_done:
            known.results[task] = said
            bar.update()
        else:
            known.failed(task, *said)
            given_up = given_up or len(known.failures[task]) >= attempts
    for worker in range(1, comm.world_size):
        send_object(comm, None, worker)
