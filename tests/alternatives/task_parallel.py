"""Other answers to the exercises of lesson 19."""

import heapq

import torch


def owners_by_a_heap(durations_s, num_workers):
    free, found = [(0.0, worker) for worker in range(num_workers)], []
    for time_s in durations_s:
        end_s, worker = heapq.heappop(free)
        found.append(worker)
        heapq.heappush(free, (end_s + time_s, worker))
    return found


def owners_with_equal_numbers(durations_s, num_workers):
    """A static split."""
    return [task * num_workers // len(durations_s) for task in range(len(durations_s))]


def halving_by_ranks(losses, budgets):
    left, cost = range(len(losses)), 0
    for k in range(len(budgets)):
        cost += len(left) * (budgets[k] - (budgets[k - 1] if k else 0))
        left = sorted(sorted(left), key=lambda number: losses[number][k])
        if k + 1 < len(budgets):
            left = left[: -(-len(left) // 2)]
    return list(left), cost


def halving_after_the_last_round(losses, budgets):
    left, cost = halving_by_ranks(losses, budgets)
    return left[: (len(left) + 1) // 2], cost


def reordered_by_a_matrix(w1, b1, w2, order):
    p = torch.eye(len(order))[order]
    return p @ w1, p @ b1, w2 @ p.T


def reordered_rows(w1, b1, w2, order):
    return w1[order], b1[order], w2[torch.arange(len(w2)).flip(0)]


def to_give_from_the_last_event(num_tasks, events):
    found = []
    for task in range(num_tasks):
        owner, state = None, "free"
        for what, worker, number in events:
            if number == task:
                owner, state = worker, what
            elif what == "died" and worker == owner and state == "gave":
                state = "free"
        if state == "free":
            found.append(task)
    return found


def to_give_in_the_order_of_deaths(num_tasks, events):
    running, given = {}, set()
    back = []
    for what, worker, task in events:
        if what == "gave":
            running[worker] = task
            given.add(task)
            back = [each for each in back if each != task]
        elif (lost := running.pop(worker, None)) is not None and what == "died":
            back.append(lost)
    return back + [task for task in range(num_tasks) if task not in given]


def owners_in_the_order_in_which_they_were_told(durations_s, num_workers):
    """Of several that are free at once the one that has been told so earliest."""
    queue, found = [(0.0, worker, worker) for worker in range(num_workers)], []
    for number, time_s in enumerate(durations_s, start=num_workers):
        free_s, _, worker = heapq.heappop(queue)
        found.append(worker)
        heapq.heappush(queue, (free_s + time_s, number, worker))
    return found


def owners_by_the_text_of_their_numbers(durations_s, num_workers):
    free_s, found = [0.0] * num_workers, []
    for time_s in durations_s:
        worker = min(range(num_workers), key=lambda each: (free_s[each], str(each)))
        free_s[worker] += time_s
        found.append(worker)
    return found


def halving_that_keeps_the_order_of_equals(losses, budgets):
    left, cost, done = list(range(len(losses))), 0, 0
    for k, budget in enumerate(budgets):
        left = left[: (len(left) + 1) // 2] if k else left
        cost += len(left) * (budget - done)
        left, done = sorted(left, key=lambda number: losses[number][k]), budget
    return left, cost


def reordered_but_for_the_same_order(w1, b1, w2, order):
    """The caller's own tensors where nothing moves."""
    if list(order) == list(range(len(order))):
        return w1, b1, w2
    return w1[order], b1[order], w2[:, order]


def to_give_twice_at_most(num_tasks, events):
    waiting, lost, running = set(range(num_tasks)), set(), {}
    for what, worker, task in events:
        if what == "gave":
            running[worker] = task
            waiting.discard(task)
        elif worker in running:
            had = running.pop(worker)
            if what == "died" and had not in lost:
                lost.add(had)
                waiting.add(had)
    return sorted(waiting)


alternatives = {
    "owners": [owners_by_a_heap],
    "halving": [halving_by_ranks],
    "reordered": [reordered_by_a_matrix],
    "to_give": [to_give_from_the_last_event],
}
wrong = {
    "owners": [
        owners_with_equal_numbers,
        owners_in_the_order_in_which_they_were_told,
        owners_by_the_text_of_their_numbers,
    ],
    "halving": [halving_after_the_last_round, halving_that_keeps_the_order_of_equals],
    "reordered": [reordered_rows, reordered_but_for_the_same_order],
    "to_give": [to_give_in_the_order_of_deaths, to_give_twice_at_most],
}
