"""A store in which nothing lies from an earlier start of the same ranks, and how often there were such starts."""

import os
import time
import uuid
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

PAUSE_S = 0.02  # between two looks of rank 0 at who has come
LOOK_AGAIN = timedelta(seconds=1)  # how soon a rank notices that another rank 0 has come


def fresh_store(timeout):
    """(store, rank, world size, restart count) of the ranks that torchrun has started now; all of them call it.

    torchrun keeps one store for all starts of a run, in which the addresses of ranks that are gone still stand. So
    rank 0 draws a name for this start, the others get it as the answer to a number that they have just drawn, and it
    is agreed when the last number that each of them has drawn is answered. (TORCHELASTIC_RESTART_COUNT is no such name:
    each machine counts its own failures, and one that only follows another into a new start counts nothing.)

    Args:
        timeout: how long to wait for the others, a `timedelta`.

    Returns:
        The last is the largest TORCHELASTIC_RESTART_COUNT of all ranks: 0 until one of them has failed.

    Raises:
        RuntimeError: the others did not come.
    """
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    restart_count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store, rank, world_size, restart_count
    start, restart_count = agree_on_start(store, rank, world_size, restart_count, timeout.total_seconds())
    return dist.PrefixStore(start, store), rank, world_size, restart_count


def agree_on_start(store, rank, world_size, restart_count, timeout_s):
    """(name, restart count) of this start, alike on all ranks. Others may die meanwhile and come again, rank 0 too."""
    end_s = time.monotonic() + timeout_s
    start = _welcome(store, world_size, restart_count, end_s) if rank == 0 else _come(store, rank, restart_count, end_s)
    if start is None:
        raise RuntimeError(f"the other ranks did not come within {timeout_s:.0f} s: rank {rank} of {world_size} waited")
    return start, int(store.get(f"agreed/{start}"))


def _welcome(store, world_size, restart_count, end_s):
    """Answer whoever comes, until all that came last have heard it."""
    start = uuid.uuid4().hex
    while time.monotonic() < end_s:
        names = [f"came/{rank}" for rank in range(1, world_size)]
        came = [store.get(name).decode() for name in names if store.check([name])]
        for number in came:
            store.set(f"welcome/{number}", start)
        heard = [f"heard/{start}/{number}" for number in came]
        if len(came) == len(names) and (not heard or store.check(heard)):
            store.set(f"agreed/{start}", str(max([restart_count, *(int(store.get(name)) for name in heard)])))
            return start
        time.sleep(PAUSE_S)
    return None


def _come(store, rank, restart_count, end_s):
    number = uuid.uuid4().hex
    store.set(f"came/{rank}", number)
    heard, wait_for = None, f"welcome/{number}"
    while (left_s := end_s - time.monotonic()) > 0:
        with suppress(dist.DistStoreError):
            store.wait([wait_for], min(LOOK_AGAIN, timedelta(seconds=left_s)))
            if heard is not None:
                return heard
        if store.check([f"welcome/{number}"]):
            heard = store.get(f"welcome/{number}").decode()
            store.set(f"heard/{heard}/{number}", str(restart_count))
            wait_for = f"agreed/{heard}"
    return None
