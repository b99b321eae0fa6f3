"""Checkpoints of all ranks: saved together, the newest whole one found again (lesson 21)."""

import os
import secrets
import shutil
import sys
from pathlib import Path

from ..errors import RankFailed, check_whole
from ..parallel.objects import share_objects
from ..parallel.wrapped import check_communicator
from .contents import divide, entries_of, put_into
from .disk import PARTIAL, BrokenCheckpoint, put_back, read
from .job import Job
from .together import together


class Checkpoints:
    """The checkpoints of a training run in one folder that all ranks see.

    What is kept under a name is whatever has `state_dict()` and `load_state_dict()`: a module, also one that a strategy
    has wrapped, an optimiser, a scheduler; or a plain value: numbers, texts, tensors, and dicts and lists of them. The
    random generators of torch, NumPy and Python of every rank are kept too. Tensors go to safetensors files, the rest
    to JSON: nothing is unpickled, so that a file from elsewhere runs no code.

        checkpoints = Checkpoints("run", comm)
        state = {"model": net, "optimizer": optimizer, "sampler": sampler.state_dict(0)}
        step = checkpoints.load(state) or 0          # state["sampler"] is now what was saved

    What all ranks have alike is written once; what differs is kept for each rank, and comes back on the same number of
    ranks alone. A checkpoint is written beside its place, with its checksums last, and then gets its name: one of this
    name is whole, or it is refused.

    Args:
        folder: where; made if it is not there.
        comm: `Communicator`.
        keep: how many are kept, at least 1: the last ones.

    Raises:
        TypeError, ValueError: an argument is not what is said above, or the ranks do not see one folder.

    Source: lesson 21.
    """

    def __init__(self, folder, comm, keep=3):
        check_communicator(comm)
        check_whole("keep", keep, 1)
        self.folder, self.comm, self.keep, self._job = Path(folder), comm, keep, None
        together(self.comm, "make the folder", lambda: self.folder.mkdir(parents=True, exist_ok=True))
        self._check_is_one_folder()
        together(comm, "look through the folder", lambda: put_back(self.folder) if comm.rank == 0 else None)

    # --- saving ------------------------------------------------------------------------------------------------------

    def save(self, step, state, wait=True):
        """Keep `state` as the checkpoint of `step`. All ranks call it together.

        Args:
            step: a whole number of at least 0.
            state: {name: object or plain value}.
            wait: False: a copy is taken now and written while training goes on; what goes wrong with it is raised by
                the next call of `save`, `load` or `wait`.

        Raises:
            TypeError: something cannot be kept, which is named.
            OSError: this rank could not write, as when the disk is full; those before stay as they are.
            RankFailed: another rank could not.
            CollectiveMismatch: the ranks save other steps or names.
        """
        check_whole("step", step, 0)
        self.wait()
        self.comm.tell(f"save of step {step} with {', '.join(map(str, state))}", [])
        kept = together(self.comm, "take the state", lambda: entries_of(state))
        ours, some = divide(self.comm, kept)
        about = {"step": step, "world_size": self.comm.world_size, "held_by_some": some}
        tensors = {name: kept[0][name].detach().cpu().clone() for name in ours if name in kept[0]}
        values = {name: kept[1][name] for name in ours if name in kept[1]}
        # What is left of a save that was cut off, and a thread that still waits for its parts, have another name.
        token = share_objects(self.comm, secrets.token_hex(4))[0]
        partial = self.folder / f"{_name(step)}.{token}{PARTIAL}"
        together(self.comm, "make the folder", lambda: self._make(partial) if self.comm.rank == 0 else None)
        self._job = Job(partial, self.folder / _name(step), about, self.comm.rank, tensors, values)
        self._job.start()
        if wait:
            self.wait()

    def wait(self):
        """Wait until the checkpoint under way is on disk. All ranks call it together. Raises as `save` does."""
        if self._job is None:
            return
        job, self._job = self._job, None
        job.has_written.wait()
        try:
            together(self.comm, f"save step {job.about['step']}", job.outcome)  # from here on all parts are there
            job.join()
            together(self.comm, f"save step {job.about['step']}", job.outcome)
        except (OSError, RankFailed):
            if self.comm.rank == 0:
                shutil.rmtree(job.partial, ignore_errors=True)
            raise
        if self.comm.rank == 0:
            for old in self._folders()[self.keep :]:
                shutil.rmtree(old, ignore_errors=True)
        self.comm.barrier()

    def _make(self, partial):
        for old in self.folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir()

    # --- loading -----------------------------------------------------------------------------------------------------

    def load(self, state):
        """Put the newest whole checkpoint into `state`. All ranks call it together.

        Objects get it by `load_state_dict`, plain values are replaced in the dict. One that is not whole is named on
        stderr, and the one before is taken.

        Args:
            state: {name: object or plain value}, names as when it was saved.

        Returns:
            Its step, or None where there is none.

        Raises:
            BrokenCheckpoint: there are some, and none is whole.
            KeyError: a name was not saved.
            ValueError: what differs between ranks was saved by another number of them.
        """
        self.wait()
        steps = self._steps_of_all()
        for step in steps:
            parts = self._read(step)
            if parts is not None:
                put_into(state, self.comm, step, *parts)
                return step
        if steps:
            raise BrokenCheckpoint(f"none of the checkpoints in {self.folder.name} is whole: steps {steps}")
        return None

    def _steps_of_all(self):
        steps = [_step(folder) for folder in self._folders()]
        seen = share_objects(self.comm, steps)
        return [step for step in steps if all(step in each for each in seen)]

    def _read(self, step):
        """What was kept at `step`, or None if a rank finds it broken."""
        problem, found = "", None
        try:
            found = read(self.folder / _name(step))
        except BrokenCheckpoint as error:
            problem = str(error)
        problems = [each for each in share_objects(self.comm, problem) if each]
        if problems and self.comm.rank == 0:
            print(f"checkpoint refused, the one before is taken: {problems[0]}", file=sys.stderr)
        return None if problems else found

    # --- the folder --------------------------------------------------------------------------------------------------

    def _folders(self):
        """The checkpoints that have their name, the newest first."""
        return sorted((each for each in self.folder.glob("step-*") if each.name[5:].isdigit()), key=_step, reverse=True)

    def _check_is_one_folder(self):
        mark = self.folder / f".mark-{os.getpid()}" if self.comm.rank == 0 else None
        path = share_objects(self.comm, None if mark is None else mark.name)[0]
        together(self.comm, "write to the folder", lambda: mark.touch() if mark else None)
        is_there = all(share_objects(self.comm, (self.folder / path).exists()))
        self.comm.barrier()
        if mark:
            mark.unlink()
        if not is_there:
            raise ValueError(f"folder={str(self.folder)!r}: one that all ranks see is needed, as of a shared disk")


def _name(step):
    return f"step-{step:012d}"


def _step(folder):
    return int(folder.name[5:])
