"""Connect to the ranks that `torchrun` started (lesson 10)."""

import os
import socket
import sys
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from ..comm.factory import of_group
from .fresh_store import fresh_store


def connect(*, algorithm="auto", links=None, timeout_s=60.0, trace=False, device=None):
    """The `Communicator` of a process that `torchrun` started, or that has joined a process group already.

    Use it as `with connect() as comm:`, or call `comm.close()` last. Where ranks run on several machines, gloo takes
    the network interface that leads to MASTER_ADDR, and one rank per machine says which that is.
    GLOO_SOCKET_IFNAME, if set, decides.

    Where torchrun starts ranks again, `restart_count` is alike on all: the largest count of any machine. It is 0 until
    a rank has failed, but two later starts may have the same, as a machine counts the failures of its own ranks alone.

    Args:
        algorithm, links, timeout_s, trace: as for `launch`.
        device: of this rank; by default the accelerator with number LOCAL_RANK if there is one, else the CPU.

    Raises:
        RuntimeError: there is neither a process group nor torchrun's environment, or no interface leads to the other
            machines.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        device = f"{accelerator.type}:{local_rank % torch.accelerator.device_count()}" if accelerator else "cpu"
    own_group, restart_count = not dist.is_initialized(), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if own_group:
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            raise RuntimeError(
                "connect() found no process group and no ranks to join. Start this file with "
                "`torchrun --nproc-per-node=4 FILE`, or call launch(fn, world_size=4) instead."
            )
        _choose_interface()
        backend = "gloo"
        if torch.device(device).type != "cpu":
            backend = f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator.type)}"
        timeout = timedelta(seconds=timeout_s)
        store, rank, world_size, restart_count = fresh_store(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    options = {"algorithm": algorithm, "device": device, "trace": trace}
    return of_group(timeout_s, links, own_group, restart_count=restart_count, **options)


def _choose_interface():
    """Set GLOO_SOCKET_IFNAME: by default gloo listens where this host's own name leads, at home often 127.0.0.1."""
    local_size = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    if "GLOO_SOCKET_IFNAME" in os.environ or local_size == os.environ["WORLD_SIZE"]:
        return
    master = os.environ["MASTER_ADDR"]
    try:
        family, kind, _, _, address = socket.getaddrinfo(master, os.environ["MASTER_PORT"], type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing: the system only chooses the way
            own = probe.getsockname()[0]
    except OSError as error:
        raise RuntimeError(
            f"MASTER_ADDR={master}: an address that this machine can reach is needed: {error}"
        ) from error
    names = [name for name, ways in psutil.net_if_addrs().items() if own in {way.address.split("%")[0] for way in ways}]
    if not names or own.startswith("127.") or own == "::1":
        raise RuntimeError(
            f"MASTER_ADDR={master}: an address of the first machine that the others can reach is needed, such as "
            f"torchrun's --master-addr=192.168.1.10. From here it leads to {own}, which is this machine alone."
        )
    os.environ["GLOO_SOCKET_IFNAME"] = names[0]
    if os.environ.get("LOCAL_RANK") == "0":
        print(f"connect(): gloo uses {names[0]} ({own}), which leads to {master}", file=sys.stderr)
