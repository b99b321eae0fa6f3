"""Start ranks from a cell or a script (lesson 00)."""

import inspect
import os
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from functools import partial
from numbers import Integral

from ..comm.block import Block
from ..comm.check import check_memory
from ..comm.factory import TRANSPORTS, meeting_bytes
from ..devices import usable_cores
from ..errors import InvalidSchedule, RankFailed, check_whole
from ..schedules import Links, Schedule
from ..schedules.choose import check_algorithm
from ..schedules.verify import check_schedule
from .elastic import ElasticRanks
from .interrupts import interrupts_put_off
from .processes import Ranks
from .rank import Setup
from .server import context, semaphore_prefix
from .surroundings import Surroundings
from .travel import packed

LONGEST_S = 1e6  # eleven days; clocks that count nanoseconds run over far beyond that


class Results(list):
    """What the ranks returned, in rank order.

    Attributes:
        ledgers: a `Ledger` for each rank: what it moved.
        trace: the `Trace` of all ranks, if `trace=True` was asked for, else None.
        failures: a `RankFailed` for each failure that was survived, in order.
    """

    def __init__(self, results, ledgers, trace, failures=()):
        super().__init__(results)
        self.ledgers, self.trace, self.failures = ledgers, trace, list(failures)


def launch(
    fn,
    *args,
    world_size,
    transport="shared_memory",
    algorithm="auto",
    links=None,
    timeout_s=60.0,
    trace=False,
    restarts=0,
    elastic=False,
    spares=0,
    **kwargs,
):
    """Run `fn(comm, *args, **kwargs)` in `world_size` fresh processes of this machine; a list of what they return.

    Args:
        fn: any function whose first argument is a `Communicator`, also one typed into a notebook cell.
        world_size: how many ranks.
        transport: "shared_memory", or "torch" for `torch.distributed` with gloo over the loopback interface.
        algorithm: of collectives: "auto", "star", "tree", "ring", "direct", "halving_doubling", "hierarchical", a
            `Schedule`, or with transport="torch" also "torch".
        links: `Links` to emulate, by delaying every message.
        timeout_s: how long a rank waits for another one before it gives up, in seconds.
        trace: record what every rank did and when. Large tensors then travel whole, not in segments, so that every
            message of the schedule is one bar of the timeline; a traced collective is slower for it.
        restarts: how often all ranks may start again after one has failed, as `torchrun --max-restarts` does;
            `comm.restart_count` says which time it is. What `fn` has kept on disk is there for the next time.
        elastic: a rank that fails does not end the others (shared memory only): what they do with a communicator
            raises `RankLost`, and `comm.regroup()` goes on with those that live.
        spares: of an elastic launch, how many ranks that fail are replaced by a new process.

    Returns:
        `Results`: a list, one result a rank, with `.ledgers`, `.trace` and `.failures`. Of an elastic launch, None for
        a rank that has failed and was not replaced.

    Raises:
        RankFailed: a rank raised, exited, was killed, or was waited for longer than timeout_s, once more than
            `restarts` allows; of an elastic launch, all have failed.
        CollectiveMismatch: the ranks disagree on what they do together.
        TypeError, ValueError: bad arguments.
        MemoryError: a copy of the arguments for every rank does not fit into memory.

    Ranks see this process's environment variables, working directory, import path and default dtype as they are now.
    Each draws random numbers of its own, from seeds that come from the generators of this process: torch's from
    `torch.manual_seed`, NumPy's from `np.random.seed`, Python's from `random.seed`. So the same seed gives the same
    results again, and two launches after one seed differ, as two draws do.

    No process, shared memory or file is left behind, however it ends.
    Programs that ranks have started live on where all ranks return, and end with them where one fails.
    """
    _check(fn, world_size, transport, algorithm, links, timeout_s)
    _check_failures(restarts, elastic, spares, transport)
    given = {"transport": transport, "algorithm": algorithm, "links": links, "timeout_s": timeout_s, "trace": trace}
    given |= {"restarts": restarts, "elastic": elastic, "spares": spares}
    _check_names(fn, args, {"world_size": world_size, **given})
    world_size = int(world_size)
    work, sources = _packed(fn, args, kwargs)
    check_memory("fn with its arguments", world_size, len(work))
    setup = partial(
        Setup,
        world_size=world_size,
        transport=transport,
        algorithm=algorithm,
        links=links,
        timeout_s=timeout_s,
        trace=trace,
        num_threads=max(1, usable_cores() // world_size),
        surroundings=Surroundings.here(),
        sources=sources,
    )
    failures, restart_count = [], 0
    while True:
        ranks = ElasticRanks(world_size, timeout_s, spares) if elastic else Ranks(world_size, timeout_s)
        try:
            return Results(*_run(ranks, setup, work, restart_count), [*failures, *ranks.failures])
        except RankFailed as error:
            if restart_count == restarts:
                raise
            failures += [*ranks.failures, error]
            restart_count += 1
            again = f"all ranks start again, time {restart_count} of {restarts}"
            print(f"launch: {error.reason}; {again}", file=sys.stderr)


def _run(ranks, setup, work, restart_count):
    """Start `ranks` and wait for them: (results, ledgers, trace)."""
    with interrupts_put_off() as let_interrupts_through, ExitStack() as stack:
        stack.callback(ranks.kill)
        asked = setup.keywords
        board = Block(meeting_bytes(asked["transport"], asked["world_size"]))
        stack.callback(board.end)
        package = Block(len(work))
        stack.callback(package.end)
        package.view[: len(work)] = work
        ranks.start(
            setup(
                meeting_place=stack.enter_context(_meeting_place(board, asked["transport"])),
                semaphore_prefix=semaphore_prefix(),
                work_name=package.name,
                work_bytes=len(work),
                restart_count=restart_count,
            )
        )
        return ranks.results(let_interrupts_through)


def warm_up():
    """Start, in the background, the server that ranks are forked from, so that the first `launch` is fast as well."""
    context()


def _check(fn, world_size, transport, algorithm, links, timeout_s):
    if not callable(fn):
        raise TypeError(
            f"fn is a {type(fn).__name__}: a function of a communicator is needed, launch(fn, world_size=4)"
        )
    if not isinstance(world_size, Integral) or isinstance(world_size, bool) or not 1 <= world_size <= 128:
        raise ValueError(f"world_size={world_size!r}: a whole number from 1 to 128 is accepted")
    if transport not in TRANSPORTS:
        raise ValueError(f"transport={transport!r}: one of {', '.join(TRANSPORTS)} is accepted")
    if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= LONGEST_S:
        raise ValueError(f"timeout_s={timeout_s!r}: a number of seconds above 0 is needed, {LONGEST_S:g} at most")
    if links is not None and not isinstance(links, Links):
        raise TypeError(f"links is a {type(links).__name__}: a Links is needed, such as Links(latency_s=1e-3)")
    check_algorithm(algorithm)
    if algorithm == "torch" and transport != "torch":
        raise ValueError('algorithm="torch" needs transport="torch": torch.distributed is not started otherwise')
    if isinstance(algorithm, Schedule):
        if algorithm.collective != "all_reduce":
            raise InvalidSchedule(f"algorithm={algorithm.name} is a {algorithm.collective}: an all_reduce is needed")
        check_schedule(algorithm, world_size)


def _check_failures(restarts, elastic, spares, transport):
    check_whole("restarts", restarts, 0)
    check_whole("spares", spares, 0)
    if not isinstance(elastic, bool):
        raise TypeError(f"elastic={elastic!r}: True or False is needed")
    if elastic and transport != "shared_memory":
        raise ValueError(f"elastic=True with transport={transport!r}: only ranks in shared memory can outlive others")
    if spares and not elastic:
        raise ValueError(f"spares={spares} without elastic=True: otherwise all ranks end with one that fails")


def _check_names(fn, args, given):
    """Refuse options of `launch` that a parameter of `fn` has the name of: it would not get them."""
    try:
        own = inspect.signature(fn)
        unfilled = own.parameters.keys() - own.bind_partial(None, *args).arguments.keys()
    except (TypeError, ValueError):  # a builtin, or arguments that do not fit, about which Python's own error says more
        return
    defaults = inspect.signature(launch).parameters
    for name, value in given.items():
        is_filled = name not in unfilled or name in getattr(fn, "keywords", ())
        if not is_filled and value is not defaults[name].default:
            raise TypeError(
                f"{name}={value!r} is an option of launch, and the function's own parameter {name} would not get it: "
                f"use launch(functools.partial(fn, {name}=...), ...)"
            )


def _packed(fn, args, kwargs):
    try:
        return packed((fn, args, kwargs))
    except Exception as error:
        name = getattr(fn, "__name__", type(fn).__name__)
        raise TypeError(f"{name} and its arguments cannot be sent to other processes: {error}") from error


@contextmanager
def _meeting_place(board, transport):
    """Where ranks find each other: memory, or a file that `FileStore` writes to (in memory, where the system can)."""
    if transport == "shared_memory" or board.is_file:
        yield board.name
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            yield os.path.join(folder, "store")
