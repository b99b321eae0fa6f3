"""A store in which nothing lies from an earlier start of the same ranks."""

import os
import time
import uuid

import torch.distributed as dist


def fresh_store(timeout):
    """(store, rank, world size) of the ranks that torchrun has started now; all of them call it.

    torchrun keeps one store for all starts of a run, in which the addresses of ranks that are gone still stand. So
    rank 0 draws a name for this start, and the others get it as the answer to a number that they have just drawn.
    (TORCHELASTIC_RESTART_COUNT is no such name: every machine has its own.)

    Args:
        timeout: how long to wait for the others, a `timedelta`.

    Raises:
        RuntimeError: the others did not come.
    """
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store, rank, world_size
    start = _welcome_all(store, world_size, timeout) if rank == 0 else _say_hello(store, rank, timeout)
    return dist.PrefixStore(start, store), rank, world_size


def _say_hello(store, rank, timeout):
    own = uuid.uuid4().hex
    store.set(f"hello/{rank}", own)
    try:
        store.wait([f"welcome/{own}"], timeout)
    except dist.DistStoreError as error:
        raise RuntimeError(f"rank 0 did not come within {timeout.total_seconds():.0f} s") from error
    start = store.get(f"welcome/{own}").decode()
    store.add(f"joined/{start}", 1)
    return start


def _welcome_all(store, world_size, timeout):
    start, end_s = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    others = [f"hello/{rank}" for rank in range(1, world_size)]
    while (num_joined := store.add(f"joined/{start}", 0)) < world_size - 1:
        if time.monotonic() > end_s:
            raise RuntimeError(
                f"{num_joined} of the {world_size - 1} other ranks came within {timeout.total_seconds():.0f} s"
            )
        for hello in others:
            if store.check([hello]):
                store.set(f"welcome/{store.get(hello).decode()}", start)
        time.sleep(0.005)
    return start
