"""Which task a worker gets next: from one queue, or from a share that was cut before."""

from collections import deque

from ...schedules.schedule import chunk_bounds

POLICIES = ("queue", "static")


class HandOut:
    """The tasks that are not done yet, and who gets them. It knows no process: workers are any names.

    Args:
        todo: the numbers of the tasks.
        workers: who works.
        policy: "queue": whoever is free gets the next task; "static": each worker has a share of its own, cut in the
            order of the tasks, of sizes that differ by one at most.

    Attributes:
        running: {worker: the task that it has}.
    """

    def __init__(self, todo, workers, policy="queue"):
        todo, workers, self.running = list(todo), list(workers), {}
        if policy == "queue":
            line = deque(todo)
            self._lines = dict.fromkeys(workers, line)
        else:
            shares = chunk_bounds(len(todo), len(workers))
            self._lines = {who: deque(todo[start:stop]) for who, (start, stop) in zip(workers, shares, strict=True)}

    def give(self, worker):
        """The number of the next task for `worker`, or None: there is none for it now."""
        if not self._lines[worker]:
            return None
        self.running[worker] = self._lines[worker].popleft()
        return self.running[worker]

    def take_back(self, worker, is_done):
        """The task that `worker` had is done, or waits in its line again; the number of the task."""
        task = self.running.pop(worker)
        if not is_done:
            self._lines[worker].append(task)
        return task
