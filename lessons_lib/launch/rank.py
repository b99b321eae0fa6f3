"""What runs inside one rank's process: set up, call the function, send back what came of it."""

import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process

import psutil
import torch

from ..comm.block import Block
from ..comm.factory import meet
from ..errors import CollectiveMismatch, RankFailed
from ..schedules import Links
from .prints import Outbox, streams
from .surroundings import Surroundings
from .travel import packed, unpacked

START_TIMEOUT_S = 120.0


@dataclass
class Setup:
    """What every rank of one launch is told."""

    world_size: int
    transport: str
    algorithm: object
    links: Links | None
    timeout_s: float
    trace: bool
    num_threads: int
    surroundings: Surroundings
    meeting_place: str
    work_name: str
    work_bytes: int
    sources: dict


def main(rank, setup, pipe):
    """The target of a rank's process. Everything it has to say goes through `pipe`, last its "result" or "error"."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # a group of its own, so that what the rank starts can be ended with it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(setup.num_threads)
    outbox = Outbox(pipe)
    sys.stdout, sys.stderr = streams(outbox)
    comm = None
    try:
        setup.surroundings.enter(rank)
        comm = _make_communicator(rank, setup)
        package = Block(setup.work_bytes, setup.work_name)
        fn, args, kwargs = unpacked(package.view[: setup.work_bytes], setup.sources)
        result = fn(comm, *args, **kwargs)
        comm.close()
        outbox.send("result", _result(result, comm))
    except BaseException as error:
        outbox.send("error", _failure(error, comm and comm.trace))


def _end_with_parent():
    connection.wait([parent_process().sentinel])
    if hasattr(os, "killpg"):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _make_communicator(rank, setup):
    if setup.transport == "torch":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback_interface())
    timeouts_s = START_TIMEOUT_S, setup.timeout_s
    where = setup.transport, rank, setup.world_size, setup.meeting_place
    return meet(*where, *timeouts_s, setup.links, algorithm=setup.algorithm, trace=setup.trace)


def loopback_interface():
    """The name of the network interface that leads back to this machine, so that no socket is open to others."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            return name
    raise RuntimeError("no network interface has the address 127.0.0.1, which ranks need for transport='torch'")


def _result(result, comm):
    try:
        return packed((result, comm.ledger, comm.trace))
    except Exception as error:
        reason = f"what rank {comm.rank} returned cannot be sent back: {type(error).__name__}: {error}"
        raise RankFailed(comm.rank, reason) from error


def _failure(error, trace):
    """What the launcher is told about `error`: itself where its parts are needed, else its type and text.

    That is so for errors of this rank's own waits; those of a launch inside the rank have a trace, and other ranks.
    """
    details = _traceback(error)
    if isinstance(error, (RankFailed, CollectiveMismatch)) and error.trace is None:
        with suppress(Exception):
            return packed((error, details, trace))
    return packed((_in_words(error), details, trace))


def _in_words(error):
    name = type(error).__name__
    try:
        if isinstance(error, SystemExit):
            return f"called sys.exit({error.code!r})"
        return f"raised {name}: {error}"
    except Exception as other:
        return f"raised {name}, whose text cannot be had: {type(other).__name__}"


def _traceback(error):
    """The traceback without the frames of this module."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))
