"""Connect to the ranks that `torchrun` started (lesson 10)."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from ..comm.factory import of_group


def connect(*, algorithm="auto", links=None, timeout_s=60.0, trace=False, device=None):
    """The `Communicator` of a process that `torchrun` started, or that has joined a process group already.

    Use it as `with connect() as comm:`, or call `comm.close()` last.

    Args:
        algorithm, links, timeout_s, trace: as for `launch`.
        device: of this rank; by default the accelerator with number LOCAL_RANK if there is one, else the CPU.

    Raises:
        RuntimeError: there is neither a process group nor torchrun's environment.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        device = f"{accelerator.type}:{local_rank % torch.accelerator.device_count()}" if accelerator else "cpu"
    own_group = not dist.is_initialized()
    if own_group:
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            raise RuntimeError(
                "connect() found no process group and no ranks to join. Start this file with "
                "`torchrun --nproc-per-node=4 FILE`, or call launch(fn, world_size=4) instead."
            )
        backend = "gloo"
        if torch.device(device).type != "cpu":
            backend = f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator.type)}"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    return of_group(timeout_s, links, own_group, algorithm=algorithm, device=device, trace=trace)
