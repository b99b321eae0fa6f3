"""How each kind of incident strikes the rank it falls on: a real process, its weights, its files (lesson 21)."""

import os
import shutil
import signal

import torch


def kill(worker, incident):
    """The process is ended, as by a system without memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop(worker, incident):
    """The process lives, and does nothing any more."""
    os.kill(os.getpid(), signal.SIGSTOP)


def slow(worker, incident):
    """The emulated device takes longer for as many steps as the incident says."""
    worker.slow_until = worker.diary.clock + incident.number


def flip(worker, incident):
    """A bit of one weight is another one."""
    parameters = list(worker.task.net.parameters())
    bits = parameters[incident.number % len(parameters)].data.view(-1).view(torch.int64)
    bits[incident.number % len(bits)] ^= 1 << incident.number % 52


def disk(worker, incident):
    """All checkpoints are gone."""
    for folder in worker.folder.glob("checkpoints/step-*"):
        shutil.rmtree(folder)


def message(worker, incident):
    """The rank finds that it cannot deliver its part of the next call, and says so instead."""
    if worker.comm.world_size > 1:
        worker.comm.tell("a message could not be delivered", [])


STRIKES = {each.__name__: each for each in (kill, stop, slow, flip, disk, message)}
