"""What each rank of a run on the pager does: train, be struck, go back, go on (lesson 21)."""

import shutil
import statistics
import time
from pathlib import Path

from ..checkpoint import BrokenCheckpoint, Checkpoints, PeerCopies
from ..checkpoint.packing import pack
from ..errors import CollectiveMismatch, RankLost
from ..monitor import Heart, ReplicasDiffer, compare_replicas
from ..parallel.objects import share_objects
from ..trace import now_s
from .diary import Diary
from .incidents import incident_at
from .strikes import STRIKES
from .task import NUM_PARTS, ROWS, Task

SLOW_DOWN = 4.0  # a slow rank takes so many times as long
IS_SLOW = 2.0  # times the median


class Evicted(RuntimeError):
    """A rank leaves because it was slow for too long."""


def work(comm, job, folder):
    """Train as `job` says; the weights at the end, the same on every rank. `folder`: an empty one that all see."""
    return Worker(comm, job, Path(folder)).run()


class Worker:
    """One rank. Everything that a policy decides is decided alike on all of them."""

    def __init__(self, comm, job, folder):
        self.comm, self.job, self.policy, self.folder = comm, job, job.policy, folder
        self.diary = Diary(folder, comm.ranks[comm.rank])
        self.heart = Heart(folder / "beats", comm, every_s=0.1)
        self.task, self.copies = Task(comm), PeerCopies(comm)
        self.slow_until, self.slow_for = 0, {}

    def run(self):
        while True:
            try:
                return self._train()
            except RankLost:
                self.comm = self.comm.regroup()
            except ReplicasDiffer:
                pass
            except CollectiveMismatch:
                if not self.job.is_elastic:
                    raise  # over torch.distributed nothing can follow it

    def _train(self):
        """Go on from what was kept, and train to the end."""
        step = self._go_back()
        while step < self.job.num_steps:
            flip = self._tick(step)
            with self.diary.during("step", step):
                self._step(step)
            step += 1
            if flip:
                STRIKES["flip"](self, flip)
            if self.policy.compares(step, self.job.num_steps):
                self._compare(step)
            self._keep(step)
            self.heart.beat(step, samples=NUM_PARTS * ROWS // self.comm.world_size)
        self.comm.barrier()
        return self.task.weights()

    # --- a step ------------------------------------------------------------------------------------------------------

    def _tick(self, step):
        """The clock goes on, and what is due at this moment strikes; a flip of this rank, which strikes after the step.

        Before the step it would be in everybody's gradients when it is looked for, however soon that is.
        """
        incident = incident_at(self.diary.clock, self.job.seed, self.job.mean_between, self.job.kinds)
        self.diary.clock += 1
        is_here = incident is not None and incident.place % self.comm.world_size == self.comm.rank
        if is_here:
            self.diary.note(incident.kind, step)  # before it strikes, so that the clock is not set back
            if incident.kind == "flip":
                return incident
            STRIKES[incident.kind](self, incident)
        if incident is not None and incident.kind == "disk":
            self.comm.barrier()  # nobody goes on to save while the disk is being lost
        return None

    def _step(self, step):
        start_s = time.perf_counter()
        own = self.task.gradients(step)
        is_slow = self.diary.clock <= self.slow_until
        least_s = self.job.pace_s * (SLOW_DOWN if is_slow else 1.0)
        time.sleep(max(0.0, least_s - (time.perf_counter() - start_s)))
        own_s = time.perf_counter() - start_s
        if self.policy.evict_after and self.job.pace_s:
            self._look_for_slow(own_s)
        self.task.update(own)

    def _look_for_slow(self, own_s):
        """Count for how long each rank was slow, and leave if this one has to."""
        times = [us for (us,) in self.comm.tell("how long a step took", [round(own_s * 1e6)])]
        usual = statistics.median(times)
        slow = [rank for rank, us in zip(self.comm.ranks, times, strict=True) if us > IS_SLOW * usual]
        self.slow_for = {rank: self.slow_for.get(rank, 0) + 1 for rank in slow}
        own_rank = self.comm.ranks[self.comm.rank]
        if self.policy.evicts(self.slow_for.get(own_rank, 0)):
            raise Evicted(f"{self.slow_for[own_rank]} steps in a row took more than {IS_SLOW:g} times the median")

    # --- what a policy does ------------------------------------------------------------------------------------------

    def _compare(self, step):
        with self.diary.during("compare", step):
            try:
                compare_replicas(self.comm, self.task.state)
            except ReplicasDiffer as found:
                if self.policy.believe == "checkpoint" or found.believed is None:
                    raise
                self._take_over(self.comm.ranks.index(found.believed))

    def _take_over(self, src):
        """Let every rank have what rank `src` has."""
        for name, value in self.task.state.items():
            tensors, _ = pack(value.state_dict(), name)
            for tensor in tensors.values():
                self.comm.broadcast(tensor, src)

    def _keep(self, step):
        if self.policy.copies(step):
            with self.diary.during("copy", step):
                self.copies.save(step, self.task.state)
        if self.policy.saves(step):
            with self.diary.during("save", step):
                self._checkpoints().save(step, self.task.state)

    def _checkpoints(self):
        return Checkpoints(self.folder / "checkpoints", self.comm)

    # --- going back --------------------------------------------------------------------------------------------------

    def _go_back(self):
        """Where the ranks meet: at the start of all, and when something has happened; the step to go on from."""
        start_s = now_s()
        self.task.comm = self.copies.comm = self.comm
        self.slow_for = {}
        self.diary.clock = max(share_objects(self.comm, self.diary.clock))
        step = self._loaded()
        if self.diary.clock:
            self.diary.note("recover", step, start_s)
        return step

    def _loaded(self):
        """The step of the newest state that was kept and that all ranks have alike; 0 where there is none."""
        while True:
            step, forget = self._load()
            try:
                if self.policy.compare_every:
                    compare_replicas(self.comm, self.task.state)
                return step
            except ReplicasDiffer:
                forget()

    def _load(self):
        """Go on from a copy, from the disk, or from the beginning: the step, and how to forget what was taken."""
        if self.policy.copy_every:
            try:
                step = self.copies.load(self.task.state, self.comm)
                if step is not None:
                    return step, self._forget_copies
            except RuntimeError:  # more ranks are lost than there are copies
                self._forget_copies()
        while True:
            try:
                step = self._checkpoints().load(self.task.state)
            except BrokenCheckpoint:
                step = None
            except ValueError:  # the replicas differed when it was kept, and some of these ranks are gone
                self._forget_newest()
                continue
            if step is not None:
                return step, self._forget_newest
            self.task.begin()
            return 0, None

    def _forget_copies(self):
        self.copies = PeerCopies(self.comm)

    def _forget_newest(self):
        self.comm.barrier()
        if self.comm.rank == 0:
            shutil.rmtree(max(self.folder.glob("checkpoints/step-*")))
        self.comm.barrier()
