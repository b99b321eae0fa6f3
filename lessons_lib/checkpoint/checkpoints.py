"""Checkpoints of all ranks: saved together, the newest whole one found again (lesson 21)."""

import hashlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import torch

from ..errors import RankFailed, check_whole
from ..parallel.objects import share_objects
from ..parallel.wrapped import check_communicator
from .disk import PARTIAL, BrokenCheckpoint, finish, read, write_part
from .packing import pack, unpack
from .randomness import random_state, set_random_state
from .strategies import put, take

RANDOM, POLL_S = "random", 5e-3


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
        self._together("make the folder", lambda: self.folder.mkdir(parents=True, exist_ok=True))
        self._check_is_one_folder()

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
        kept = self._together("take the state", lambda: _entries(state))
        ours, some = self._ours(kept)
        about = {"step": step, "world_size": self.comm.world_size, "held_by_some": some}
        tensors = {name: kept[0][name].detach().cpu().clone() for name in ours if name in kept[0]}
        values = {name: kept[1][name] for name in ours if name in kept[1]}
        partial = self.folder / f"{_name(step)}{PARTIAL}"
        self._together("make the folder", lambda: self._empty(partial) if self.comm.rank == 0 else None)
        self._job = _Job(partial, self.folder / _name(step), about, self.comm.rank, tensors, values)
        self._job.start()
        if wait:
            self.wait()

    def wait(self):
        """Wait until the checkpoint under way is on disk. All ranks call it together. Raises as `save` does."""
        if self._job is None:
            return
        job, self._job = self._job, None
        job.join()
        try:
            self._together(f"save step {job.about['step']}", job.outcome)
        except (OSError, RankFailed):
            if self.comm.rank == 0:
                shutil.rmtree(job.partial, ignore_errors=True)
            raise
        if self.comm.rank == 0:
            for old in self._folders()[self.keep :]:
                shutil.rmtree(old, ignore_errors=True)
        self.comm.barrier()

    def _ours(self, kept):
        """The names of what this rank writes, and of what some ranks alone have."""
        told = share_objects(self.comm, {name: _digest(value) for part in kept for name, value in part.items()})
        names = dict.fromkeys(name for each in told for name in each)
        ours, some = [], []
        for name in names:
            holders = [rank for rank, each in enumerate(told) if name in each]
            is_common = len({told[rank][name] for rank in holders}) == 1
            if self.comm.rank == holders[0] or (self.comm.rank in holders and not is_common):
                ours.append(name)
            if len(holders) < self.comm.world_size:
                some.append(name)
        return ours, some

    def _empty(self, partial):
        shutil.rmtree(partial, ignore_errors=True)
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
                self._put_into(state, step, *parts)
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

    def _put_into(self, state, step, about, every):
        is_resized = about["world_size"] != self.comm.world_size
        entries = _merged(every, None if is_resized else self.comm.rank)
        own = {name for name in entries if sum(name in each for each in every) > 1 and name.split("/")[0] != RANDOM}
        if is_resized and own:
            raise ValueError(
                f"{min(own)} of step {step} differs between the {about['world_size']} ranks that saved it: as many are "
                f"needed, here are {self.comm.world_size}"
            )
        some = set(about["held_by_some"])
        for name in state:
            self._put(state, name, entries, some)
        if not is_resized or self.comm.rank < about["world_size"]:
            set_random_state(unpack(_merged(every, self.comm.rank), RANDOM))

    def _put(self, state, name, entries, some):
        kept = {key: value for key, value in entries.items() if key == name or key.startswith(name + "/")}
        if not kept:
            raise KeyError(
                f"{name!r} was not saved: there are {', '.join(sorted({key.split('/')[0] for key in entries}))}"
            )
        target = state[name]
        if isinstance(target, torch.nn.Module) and some & set(kept):
            wanted = set(pack(target.state_dict(), name)[0])
            kept = {key: value for key, value in kept.items() if key not in some or key in wanted}
        put(name, state, unpack(kept, name))

    # --- together ----------------------------------------------------------------------------------------------------

    def _folders(self):
        """The checkpoints that have their name, the newest first."""
        return sorted((each for each in self.folder.glob("step-*") if each.name[5:].isdigit()), key=_step, reverse=True)

    def _together(self, what, fn):
        """Do `fn()` on all ranks; raise on all of them if one fails."""
        error, result = None, None
        try:
            result = fn()
        except Exception as caught:
            error = caught
        told = share_objects(self.comm, None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, text in enumerate(told):
            if text is not None:
                number = self.comm.ranks[rank]
                raise RankFailed(number, f"rank {number} could not {what}: {text}")
        return result

    def _check_is_one_folder(self):
        mark = self.folder / f".mark-{os.getpid()}" if self.comm.rank == 0 else None
        path = share_objects(self.comm, None if mark is None else mark.name)[0]
        self._together("write to the folder", lambda: mark.touch() if mark else None)
        is_there = all(share_objects(self.comm, (self.folder / path).exists()))
        self.comm.barrier()
        if mark:
            mark.unlink()
        if not is_there:
            raise ValueError(f"folder={str(self.folder)!r}: one that all ranks see is needed, as of a shared disk")


class _Job(threading.Thread):
    """Writes the part of one rank, and on rank 0 the manifest when all parts are there; uses no communicator."""

    def __init__(self, partial, folder, about, rank, tensors, values):
        super().__init__(daemon=True)
        self.partial, self.folder, self.about = partial, folder, about
        self._rank, self._tensors, self._values, self._error = rank, tensors, values, None

    def run(self):
        try:
            write_part(self.partial, self._rank, self._tensors, self._values)
            if self._rank == 0 and self._all_have_written():
                finish(self.partial, self.folder, self.about, self.about["world_size"])
        except Exception as error:
            self._error = error
            (self.partial / f"rank-{self._rank}.failed").touch()

    def _all_have_written(self):
        waiting = set(range(self.about["world_size"]))
        while waiting:
            if any(self.partial.glob("*.failed")):
                return False
            waiting = {rank for rank in waiting if not (self.partial / f"rank-{rank}.done").exists()}
            time.sleep(POLL_S if waiting else 0)
        return True

    def outcome(self):
        if self._error is not None:
            raise self._error


def _entries(state):
    tensors, values = pack(random_state(), RANDOM)
    for name in state:
        if not isinstance(name, str) or "/" in name or name == RANDOM:
            raise ValueError(f"state has the name {name!r}: a text without a slash that is not {RANDOM!r} is needed")
        more_tensors, more_values = pack(take(name, state), name)
        tensors |= more_tensors
        values |= more_values
    return tensors, values


def _digest(value):
    """Of a tensor or a plain value: equal ones have equal digests."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        about = f"{value.dtype} {tuple(value.shape)}"
    else:
        data, about = repr(value).encode(), "value"
    return about + hashlib.blake2b(data, digest_size=16).hexdigest()


def _merged(every, rank):
    """{name: value}: this rank's own where there are several."""
    entries = {}
    for each in every:
        entries = {**each, **entries}
    return entries if rank is None else {**entries, **every[rank]}


def _name(step):
    return f"step-{step:012d}"


def _step(folder):
    return int(folder.name[5:])
