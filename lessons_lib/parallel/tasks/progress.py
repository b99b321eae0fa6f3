"""What a rank knows of the tasks: results, failures, and who has which; and how the ranks tell each other."""

import cloudpickle
import torch

from ..objects import share_objects


class Progress:
    """What one rank knows.

    Attributes:
        results: {task: its result, pickled}. A task is counted once, however often it was run.
        failures: {task: what happened, one (rank in the launch, line, traceback) for each attempt that failed}.
        running: {number in the launch of a worker: the task that it has}; rank 0 alone knows.
        is_new: whether this rank has not met the others yet.
    """

    def __init__(self):
        self.results, self.failures, self.running, self.is_new = {}, {}, {}, True

    def failed(self, task, rank, line, traceback=""):
        """Note that an attempt at `task` has failed on `rank`."""
        self.failures.setdefault(task, []).append((rank, line, traceback))

    def meet(self, comm, settings):
        """Let all ranks know what any of them knows. All that live call it together.

        A task whose worker has died has failed once more. Of a rank that has died, what it had told to rank 0 remains.

        Args:
            comm: the communicator of those that live.
            settings: what must be the same on every rank; "call" is the number of this call of `run_tasks`: some
                may be in the next one already, where a rank died while the others left.

        Returns:
            The number of the call of each rank; nothing was told but that where they differ.

        Raises:
            ValueError: `settings` of one call differ, on every rank.

        Communication: an all-gather of what happened, and a broadcast from each rank that has results of its own.
        """
        sizes = {task: len(data) for task, data in self.results.items()}
        told = share_objects(comm, (settings, sizes, self.failures, self.running, self.is_new))
        calls = [theirs[0]["call"] for theirs in told]
        if len(set(calls)) > 1:
            return calls
        if any(theirs[0] != settings for theirs in told):
            said = "; ".join(f"rank {rank}: {theirs[0]}" for rank, theirs in enumerate(told))
            raise ValueError(f"the ranks were given different tasks: {said}")
        everyones = [theirs for _, _, theirs, _, _ in told]
        self.failures = {task: _merged(everyones, task) for task in sorted(set().union(*everyones))}
        self._share_results(comm, [sizes for _, sizes, _, _, _ in told])
        been = {comm.ranks[rank] for rank, theirs in enumerate(told) if not theirs[-1]}
        for _, _, _, running, _ in told:
            for worker, task in running.items():
                if worker not in been and task not in self.results:
                    self.failed(task, worker, f"rank {worker} died in it")
        self.running, self.is_new = {}, False
        return calls

    def _share_results(self, comm, sizes):
        """Give every rank all results, each from the first rank that has it. sizes: {task: bytes} of each rank."""
        known = set()
        for src, of_rank in enumerate(sizes):
            new = {task: size for task, size in of_rank.items() if task not in known}
            known |= set(new)
            if all(set(new) <= set(theirs) for theirs in sizes):
                continue
            data = b"".join(self.results[task] for task in new) if src == comm.rank else bytes(sum(new.values()))
            data = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            comm.broadcast(data, src)
            for task, piece in zip(new, data.split(list(new.values())), strict=True):
                self.results.setdefault(task, piece.numpy().tobytes())

    def values(self, num_tasks):
        """The results, in the order of the tasks."""
        return [cloudpickle.loads(self.results[task]) for task in range(num_tasks)]


def _merged(everyones, task):
    """The failed attempts at `task`; of what happened on one rank, whoever knows most is right."""
    known = [attempts.get(task, []) for attempts in everyones]
    ranks = sorted({rank for attempts in known for rank, _, _ in attempts})
    of_ranks = ([[each for each in attempts if each[0] == rank] for attempts in known] for rank in ranks)
    return [each for of_rank in of_ranks for each in max(of_rank, key=len)]
