"""Exercises of lesson 19: list scheduling, early stop, order of neurons, and the tasks of workers that died."""

import torch

from lessons_lib.exercises.core import Exercise, edit

# --- owners: list scheduling -----------------------------------------------------------------------------------------


def owners(durations_s, num_workers):
    """Return a list: the number of the worker that does each task.

    durations_s: how long each task takes (s), all above 0. Tasks are given out in this order, each to the worker that
        is free first; of several, to the one with the smallest number.
    num_workers: workers are numbered from 0.
    """
    free_s, found = [0.0] * num_workers, []
    for time_s in durations_s:
        worker = free_s.index(min(free_s))
        free_s[worker] += time_s
        found.append(worker)
    return found


def _in_turn(durations_s, num_workers):
    """You give the tasks out in turn, whatever they take. A worker with a long task then gets the next one as early as
    the others: remember when each is free."""
    return [task % num_workers for task in range(len(durations_s))]


def _longest_first(durations_s, num_workers):
    """You give the longest tasks out first. That is often better, but a queue is asked for: keep the order."""
    order = sorted(range(len(durations_s)), key=lambda task: -durations_s[task])
    found = owners.reference([durations_s[task] for task in order], num_workers)
    return [found[order.index(task)] for task in range(len(durations_s))]


owners = Exercise(
    owners,
    [
        ([3.0, 1.0, 1.0, 1.0], 2),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2),
        ([1.0, 1.0, 1.0, 1.0], 3),  # all free at once
        ([5.0, 1.0, 2.0, 2.0, 1.0, 1.0], 3),
        ([2.0, 1.0], 4),  # more workers than tasks
        ([2.0, 1.0, 4.0], 1),
        ([0.5, 0.25, 0.25, 3.0, 0.5, 1.0, 0.125], 2),
        ([1.0, 2.0, 1.0, 5.0, 0.5], 2),  # both free at 2 s, worker 1 has been told so earlier
        ([1.0] * 14, 12),  # numbers of two digits
        ([], 2),
    ],
    [
        _in_turn,
        _longest_first,
        edit(
            "free_s[worker] += time_s",
            "free_s[worker] = time_s",
            "You keep only how long the last task of a worker takes. It begins when those before it have ended: add.",
        ),
        edit(
            "free_s.index(min(free_s))",
            "num_workers - 1 - free_s[::-1].index(min(free_s))",
            "Where several are free first, the one with the smallest number gets the task.",
        ),
    ],
    [
        "Keep a list with the time at which each worker is free.",
        "The next task goes to the smallest of these times, which grows by what the task takes.",
        "`free_s.index(min(free_s))` is the first worker with the smallest time.",
    ],
)


# --- halving: early stop ---------------------------------------------------------------------------------------------


def halving(losses, budgets):
    """Return (survivors, cost) of successive halving.

    losses: losses[number][k] is the loss of a configuration when it has been trained budgets[k] steps in all.
    budgets: numbers of steps that grow; there is one round for each. Only the better half goes on to the next
        round: of an odd number the larger half; of equal losses the smaller number.
    survivors: the numbers of all configurations of the last round, the best first.
    cost: all steps that were trained. Nothing is trained twice.
    """
    left, cost, done = range(len(losses)), 0, 0
    for k, budget in enumerate(budgets):
        if k > 0:
            left = left[: (len(left) + 1) // 2]
        cost += len(left) * (budget - done)
        left, done = sorted(left, key=lambda number: (losses[number][k], number)), budget
    return left, cost


halving = Exercise(
    halving,
    [
        ([[3.0, 2.0], [1.0, 0.9], [2.0, 0.5], [4.0, 0.1]], [10, 20]),  # the one that learns slowly is lost
        ([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [2.0, 0.5, 0.4], [4.0, 0.1, 0.0], [5.0, 0.1, 0.0]], [1, 3, 9]),
        ([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]], [5, 6]),  # all alike
        ([[1.0, 3.0], [0.5, 4.0], [9.0, 0.0]], [4, 10]),  # the best of the first round is not that of the last
        ([[1.0, 1.0, 1.0, 1.0]], [1, 2, 4, 8]),  # nothing to choose from
        ([[1.0], [0.5]], [7]),  # one round stops nobody
        ([[2.0, 1.0], [1.0, 1.0], [9.0, 0.0], [9.0, 0.0]], [1, 2]),  # equal now, and the other way round before
        ([], [3]),
        ([[float(7 * k % 11), float(5 * k % 11), float(3 * k % 11)] for k in range(11)], [2, 4, 8]),
    ],
    [
        edit(
            "budget - done",
            "budget",
            "You pay for the steps of the earlier rounds again. Who goes on goes on from where it was.",
        ),
        edit(
            "(len(left) + 1) // 2",
            "len(left) // 2",
            "Of an odd number of configurations the larger half goes on: of three two, and of one that one.",
        ),
        edit("if k > 0:", "if True:", "You stop half of them before the first round: nobody has been trained yet."),
        edit(
            "losses[number][k], number",
            "losses[number][-1], number",
            "You choose by the losses at the end, which nobody knows yet: after a round only its own losses are known.",
        ),
        edit(
            "cost += len(left) * (budget - done)",
            "cost += len(losses) * (budget - done)",
            "You train all configurations in every round. Who has been stopped costs nothing any more.",
        ),
    ],
    [
        "Go through the budgets with a list of the configurations that are left, and keep what the last budget was.",
        "From the second round on: first halve the list, which is sorted by the losses of the round before.",
        "A round costs len(left) times (budget - the last budget).",
    ],
)


# --- reordered: why an average of weights fails ----------------------------------------------------------------------


def reordered(w1, b1, w2, order):
    """Return new (w1, b1, w2) of a network that computes the same, whose hidden unit k is the old unit order[k].

    The network is w2 @ relu(w1 @ x + b1).
    w1: (hidden, inputs). b1: (hidden,). w2: (outputs, hidden). order: a list with every number below hidden once.
    """
    return w1[order], b1[order], w2[:, order]


def _inverse(w1, b1, w2, order):
    """You put the old unit k at order[k]. Asked is the other way: the new unit k is the old unit order[k]."""
    back = [order.index(k) for k in range(len(order))]
    return w1[back], b1[back], w2[:, back]


def _without_the_second(w1, b1, w2, order):
    """You move the units, but the second layer still reads them where they were: move its columns too."""
    return w1[order], b1[order], w2.clone()


def _without_the_bias(w1, b1, w2, order):
    """The bias of a unit moves with the unit."""
    return w1[order], b1.clone(), w2[:, order]


def _new_ones(fn, w1, b1, w2, order):
    """What `fn` gives, after its arguments have got other numbers: new tensors do not see that."""
    given = w1.clone(), b1.clone(), w2.clone()
    found = fn(*given, list(order))
    for tensor in given:
        tensor.fill_(-99.0)
    return found


def _layers(hidden, inputs, outputs, order):
    generator = torch.Generator().manual_seed(hidden + inputs)
    w1, b1, w2 = (torch.randn(shape, generator=generator) for shape in ((hidden, inputs), hidden, (outputs, hidden)))
    return w1, b1, w2, order


reordered = Exercise(
    reordered,
    [
        _layers(3, 2, 4, [1, 2, 0]),
        _layers(4, 5, 1, [3, 1, 0, 2]),
        _layers(3, 3, 3, [2, 0, 1]),
        _layers(5, 2, 5, [0, 1, 2, 3, 4]),
        _layers(1, 2, 2, [0]),
    ],
    [_inverse, _without_the_second, _without_the_bias],
    [
        "A hidden unit owns a row of w1, a number of b1 and a column of w2. All three move together.",
        "`w1[order]` has the rows of w1 in the order of the list; columns are the second index.",
    ],
    outcome=_new_ones,
)


# --- to_give: the tasks of workers that died -------------------------------------------------------------------------


def to_give(num_tasks, events):
    """Return the list of tasks that have to be given out, now or again, in increasing order.

    num_tasks: tasks are numbered from 0.
    events: what has happened, in order: ("gave", worker, task); ("done", worker, task); ("died", worker, None). What a
        worker had told to be done stays done when it dies. The task that it was in the middle of, if any, is lost.
        A number that has died does not come back.
    """
    done, running = set(), {}
    for what, worker, task in events:
        if what == "gave":
            running[worker] = task
            continue
        running.pop(worker, None)
        if what == "done":
            done.add(task)
    return [task for task in range(num_tasks) if task not in done and task not in running.values()]


def _lost(num_tasks, events):
    """You forget the task that a worker was in the middle of when it died: it has to be given again."""
    given = {task for what, _, task in events if what == "gave"}
    return [task for task in range(num_tasks) if task not in given]


def _all_of_the_dead(num_tasks, events):
    """You give all tasks of a dead worker again. What it had told to be done is known, and would be counted twice."""
    dead = {worker for what, worker, _ in events if what == "died"}
    given = {task for what, worker, task in events if what == "gave" and worker not in dead}
    return [task for task in range(num_tasks) if task not in given]


def _running_too(num_tasks, events):
    """You give out what somebody is still at work on: it would be done twice."""
    done = {task for what, _, task in events if what == "done"}
    return [task for task in range(num_tasks) if task not in done]


to_give = Exercise(
    to_give,
    [
        (3, [("gave", 1, 0), ("gave", 2, 1), ("died", 1, None)]),
        (4, [("gave", 1, 0), ("done", 1, 0), ("gave", 1, 1), ("died", 1, None), ("gave", 2, 2)]),
        (2, [("gave", 1, 0), ("done", 1, 0), ("died", 1, None)]),  # it dies between two tasks
        (2, [("gave", 1, 1), ("died", 1, None), ("gave", 2, 1), ("done", 2, 1)]),  # given again, and done
        (3, [("gave", 1, 0), ("died", 1, None), ("gave", 2, 0), ("died", 2, None), ("gave", 3, 0)]),
        (3, [("gave", 2, 2), ("gave", 1, 0), ("died", 2, None), ("died", 1, None)]),
        (3, [("gave", 1, 0), ("died", 1, None), ("gave", 2, 0), ("died", 2, None)]),  # lost twice
        (2, [("died", 1, None)]),  # it had nothing
        (1, []),
        (0, []),
    ],
    [_lost, _all_of_the_dead, _running_too],
    [
        "Keep two things: which tasks are done, and which task each worker has.",
        "A worker that is done or dies has no task any more; only in the first case is the task done.",
        "To be given is what is neither done nor with anybody.",
    ],
)
