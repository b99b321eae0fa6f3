"""What runs inside one rank's process: set up, call the function, send back what came of it."""

import gc
import multiprocessing
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
from ..comm.liveness import Liveness
from ..errors import CollectiveMismatch, RankFailed, RankLost
from ..schedules import Links
from .cause import Report
from .prints import NoInput, Outbox, streams
from .server import name_semaphores
from .surroundings import Surroundings
from .travel import packed, send_to_children_by_value, unpacked

START_TIMEOUT_S = 120.0


@dataclass(kw_only=True)
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
    semaphore_prefix: str
    work_name: str
    work_bytes: int
    sources: dict
    restart_count: int = 0
    ranks: list | None = None  # those that meet, by their numbers in the launch; None: all
    liveness_name: str | None = None
    generation: int = 0


def main(rank, setup, pipe):
    """The target of a rank's process. Everything it has to say goes through `pipe`, last its report."""
    gc.freeze()  # to look through all that the server has loaded would copy its pages, for every rank
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # a group of its own, so that what the rank starts can be ended with it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(setup.num_threads)
    name_semaphores(setup.semaphore_prefix)
    send_to_children_by_value()
    outbox = Outbox(pipe)
    sys.stdin = NoInput()
    sys.stdout, sys.stderr = streams(outbox)
    comm, liveness = None, None
    try:
        setup.surroundings.enter(rank)
        liveness = Liveness(setup.liveness_name) if setup.liveness_name else None
        comm = _make_communicator(rank, setup, liveness)
        package = Block(setup.work_bytes, setup.work_name)
        fn, args, kwargs = unpacked(package.view[: setup.work_bytes], setup.sources)
        result = fn(comm, *args, **kwargs)
        _close(comm, liveness)
        outbox.send("report", _result(result, comm))
    except BaseException as error:
        outbox.send("report", _failure(error, comm and comm.trace))
    for child in multiprocessing.active_children():
        child.kill()  # workers end with their rank; programs that it has started live on


def _end_with_parent():
    connection.wait([parent_process().sentinel])
    if hasattr(os, "killpg"):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _close(comm, liveness):
    """Wait for the other ranks to return too; of an elastic launch, for those that live."""
    newest = liveness.newest if liveness else None
    with suppress(RankLost):  # this rank is done, and needs nothing any more from who has died
        (newest or comm).close()


def _make_communicator(rank, setup, liveness):
    if setup.transport == "torch":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback_interface())
    timeouts_s = START_TIMEOUT_S, setup.timeout_s
    ranks = setup.ranks
    place, world_size = (ranks.index(rank), len(ranks)) if ranks else (rank, setup.world_size)
    where = setup.transport, place, world_size, setup.meeting_place
    elastic = liveness and (liveness, setup.generation)
    options = {"algorithm": setup.algorithm, "trace": setup.trace, "restart_count": setup.restart_count}
    return meet(*where, *timeouts_s, setup.links, elastic, ranks, **options)


def loopback_interface():
    """The name of the network interface that leads back to this machine, so that no socket is open to others."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            return name
    raise RuntimeError("no network interface has the address 127.0.0.1, which ranks need for transport='torch'")


def _result(result, comm):
    try:
        return packed(Report("result", result, comm.ledger, trace=comm.trace))
    except Exception as error:
        reason = f"what rank {comm.rank} returned cannot be sent back: {type(error).__name__}: {error}"
        raise RankFailed(comm.rank, reason) from error


def _failure(error, trace):
    """The report of `error`: with the error itself where its parts are needed, else with its type and text.

    Its parts are needed for errors of this rank's own waits. An error of a launch inside the rank speaks of the ranks
    of that launch, and is told by its trace.
    """
    details = _traceback(error)
    if isinstance(error, (RankFailed, CollectiveMismatch)) and error.trace is None:
        with suppress(Exception):
            return packed(Report("error", error=error, details=details, trace=trace))
    return packed(Report("error", error=_in_words(error), details=details, trace=trace))


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
