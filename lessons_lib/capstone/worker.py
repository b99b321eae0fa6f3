"""What each rank of a planned run does: train on an emulated device, keep checkpoints, die, and start again."""

import os
import signal
import time

import torch

from ..checkpoint import Checkpoints
from ..devices.emulated import EmulatedDevice
from ..monitor import Heart
from ..pager.diary import Diary, read_diaries
from ..pager.incidents import incident_at
from ..parallel.objects import share_objects
from ..trace import now_s
from .demand import demand
from .net import Net

PATIENCE = 3.0  # a run that starts again after so many times its deadline is given up


def work(comm, setup, plan, save_every, folder):
    """Train as planned: (weights of this rank's layers, why there are none or "", bytes sent in a step, of memory)."""
    worker = Worker(comm, setup, plan, save_every, folder)
    try:
        worker.run()
    except GivenUp as reason:
        return {}, str(reason), worker.sent_bytes, worker.memory_bytes
    return worker.net.weights(), "", worker.sent_bytes, worker.memory_bytes


class GivenUp(Exception):
    """A run that ends before its last step, on all ranks alike."""


class Worker:
    """One rank."""

    def __init__(self, comm, setup, plan, save_every, folder):
        self.comm, self.setup, self.save_every = comm, setup, save_every
        self.diary, self.heart = Diary(folder, comm.rank), Heart(folder / "beats", comm, every_s=0.1)
        self.net = Net(comm, setup, plan)
        self.device = EmulatedDevice(setup.cluster.flops, setup.cluster.half_flops)
        self.state = {"net": self.net.pipeline, "optimizer": self.net.optimizer}
        self.checkpoints = Checkpoints(folder / "checkpoints", comm, keep=2)
        self.folder, self.sent_bytes, self.memory_bytes = folder, 0, 0

    def run(self):
        self._check_memory()
        step = self._go_back()
        while step < self.setup.num_steps:
            self._strike(step)
            with self.diary.during("step", step), self.device:
                self.net.step(step)
            step += 1
            if self.save_every and step % self.save_every == 0 and step < self.setup.num_steps:
                self._save(step)
            self.heart.beat(step, samples=self.setup.batch // self.net.plan.dp)

    def _check_memory(self):
        """Whether every device has room for a step."""
        self.sent_bytes, self.memory_bytes = demand(self.comm, self.setup, self.net.plan)
        fullest = torch.tensor([float(self.memory_bytes)])
        self.comm.all_reduce(fullest, op="max")
        if fullest.item() > self.setup.cluster.memory_bytes:
            allowed = f"{self.setup.cluster.memory_bytes / 1e6:.2f} MB"
            raise GivenUp(f"a rank needs {fullest.item() / 1e6:.2f} MB, and a device has {allowed}")

    def _go_back(self):
        """Go on from the newest checkpoint: its step; after a failure not before `restart_s` are over."""
        self.diary.clock = max(share_objects(self.comm, self.diary.clock))
        step = self.checkpoints.load(self.state) or 0
        if self.diary.clock:
            events = read_diaries(self.folder)
            failed_s = max(event.end_s for event in events)
            if failed_s - events[0].start_s > PATIENCE * self.setup.deadline_s:
                raise GivenUp(f"{step} of {self.setup.num_steps} steps after {PATIENCE:g} times the deadline")
            time.sleep(max(0.0, failed_s + self.setup.restart_s - now_s()))
            self.diary.note("recover", step, failed_s)
        self.comm.barrier()
        return step

    def _strike(self, step):
        """The clock goes on; if this is the moment for it, one rank is killed."""
        incident = incident_at(self.diary.clock, self.setup.seed, self.setup.mean_between, ("kill",))
        self.diary.clock += 1
        if incident is not None and incident.place % self.comm.world_size == self.comm.rank:
            self.diary.note("kill", step)
            os.kill(os.getpid(), signal.SIGKILL)

    def _save(self, step):
        """Keep a checkpoint; the store of the set-up takes its time."""
        start_s = time.perf_counter()
        with self.diary.during("save", step):
            self.checkpoints.save(step, self.state)
            time.sleep(max(0.0, self.setup.save_s - (time.perf_counter() - start_s)))
