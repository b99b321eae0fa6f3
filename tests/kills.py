"""Kill a random rank of data-parallel training at a random moment, again and again, and count what comes of it.

    python tests/kills.py --runs 100 --kinds SIGKILL --transports shared_memory torch

A table row a kind and transport: how often `RankFailed` named the right rank, how long it took from the failure to the
exception, and what was left behind: processes, memory files, temporary files, sockets.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter

import cloudpickle
import psutil
import torch
from left_behind import left_behind, wait_until

from lessons_lib import RankFailed, launch
from lessons_lib.losses import cross_entropy
from lessons_lib.models import mlp
from lessons_lib.optim import Adam
from lessons_lib.parallel import DataParallel

cloudpickle.register_pickle_by_value(sys.modules[__name__])
KINDS = {  # what `RankFailed` says of each
    "SIGKILL": "was killed by SIGKILL",
    "raise": "raised ValueError: planned",
    "os._exit": "ended with exit code 3",
    "sys.exit": "called sys.exit('planned')",
    "SIGSTOP": "did not answer within",
}
STOP_LIMIT_S = 1.0  # the time limit of a launch where a rank is stopped: it is named when that ends
LONGEST_MOMENT_S = 0.6  # from the start of the rank's function: some are killed in the midst of making their buffers


def train(comm, kind, victim, moment_s, folder):
    """Train until the victim fails by itself `moment_s` from now, having written down when."""
    started_s = time.monotonic()
    if comm.rank == victim and kind.startswith("SIG"):
        threading.Thread(target=fail, args=(kind, started_s + moment_s, folder), daemon=True).start()
    torch.manual_seed(comm.rank)
    model = DataParallel(mlp([64, 128, 10]), comm)
    optimizer = Adam(model.parameters(), lr=1e-3)
    x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
    while True:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        if comm.rank == victim and not kind.startswith("SIG") and time.monotonic() - started_s > moment_s:
            fail(kind, 0, folder)


def fail(kind, at_s, folder):
    """A signal comes at any moment, between any two instructions of the training; the others after a step."""
    time.sleep(max(0, at_s - time.monotonic()))
    with open(os.path.join(folder, "failed"), "w") as file:
        file.write(repr(time.monotonic()))
    if kind.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, kind))
    if kind == "raise":
        raise ValueError("planned")
    if kind == "os._exit":
        os._exit(3)
    sys.exit("planned")


def one_run(kind, transport, seed):
    """(what came of it in a word, seconds from the failure to the exception)."""
    draw = random.Random(seed)
    world_size = draw.choice([3, 4])
    victim, moment_s = draw.randrange(world_size), draw.random() * LONGEST_MOMENT_S
    options = {"transport": transport, "timeout_s": STOP_LIMIT_S if kind == "SIGSTOP" else 60}
    with tempfile.TemporaryDirectory() as folder:
        try:
            launch(train, kind, victim, moment_s, folder, world_size=world_size, **options)
            return "returned", 0.0
        except Exception as error:
            ended_s, caught = time.monotonic(), error
        with open(os.path.join(folder, "failed")) as file:
            took_s = ended_s - float(file.read())
    if not isinstance(caught, RankFailed):
        return f"{type(caught).__name__}: {caught}", took_s
    is_named = caught.rank == victim and f"rank {victim} {KINDS[kind]}" in caught.reason
    return "named" if is_named else f"seed {seed}, rank {victim}: {caught.reason}", took_s


def belongings(folder):
    """What there is now of files in `folder` and in shared memory, and of memory and sockets of this process."""
    shared = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    files = os.listdir(folder) + [name for name in shared if name.startswith(("psm_", "torch_"))]
    return Counter(files + left_behind()[1] + [f"socket {c.laddr}" for c in psutil.Process().net_connections()])


def many_runs(kind, transport, runs):
    """(what came of it and how often, seconds each, what was left behind)."""
    outcomes, times, left, usual = Counter(), [], Counter(), tempfile.tempdir
    launch(lambda comm: None, world_size=2, transport=transport)  # what it starts stays: a server that ranks come from
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # where everything goes that this process puts into temporary files
        try:
            before = belongings(folder)
            for seed in range(runs):
                outcome, took_s = one_run(kind, transport, seed)
                outcomes[outcome] += 1
                times.append(took_s)
                if not wait_until(lambda: not left_behind()[0], limit_s=2):
                    left["process"] += len(left_behind()[0])
            return outcomes, times, left + (belongings(folder) - before)
        finally:
            tempfile.tempdir = usual


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--transports", nargs="+", default=["shared_memory", "torch"])
    options = parser.parse_args()
    print("| kind | transport | runs | right rank named | median s | longest s | left behind |")
    print("|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        for transport in options.transports:
            outcomes, times, left = many_runs(kind, transport, options.runs)
            waits = f" (with the limit of {STOP_LIMIT_S:g} s)" if kind == "SIGSTOP" else ""
            print(
                f"| {kind} | {transport} | {options.runs} | {outcomes.pop('named', 0)} "
                f"| {statistics.median(times):.2f} | {max(times):.2f}{waits} | {dict(left) or 'nothing'} |",
                *outcomes,
                sep="\n",
                flush=True,
            )


if __name__ == "__main__":
    main()
