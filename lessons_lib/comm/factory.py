"""Makes the communicator of a rank from what its launcher knows: the one place that tells the transports apart."""

from datetime import timedelta

import torch.distributed as dist

from ..errors import RankFailed
from .communicator import Communicator
from .shared_memory import SharedMemoryTransport, board_bytes
from .torch_transport import TorchTransport

TRANSPORTS = ("shared_memory", "torch")


def meeting_bytes(transport, world_size):
    """The size of the `Block` in which ranks of one machine meet: a board, or (torch) the file of a `FileStore`."""
    return board_bytes(world_size) if transport == "shared_memory" else 8


def meet(
    transport,
    rank,
    world_size,
    meeting_place,
    start_timeout_s,
    timeout_s,
    links=None,
    elastic=None,
    ranks=None,
    **options,
):
    """Join the other ranks of this machine.

    Args:
        transport: one of `TRANSPORTS`.
        rank, world_size: who this is, of how many.
        meeting_place: the name of a zeroed `Block` of `meeting_bytes`, or (torch) of a file that all ranks can open.
        start_timeout_s: how long the others may take to come here, in seconds.
        timeout_s: how long any later wait may last, in seconds.
        links: `Links` to emulate, or None.
        elastic: of an elastic launch, its `Liveness` and the number of the `Generation` that meets.
        ranks: the numbers in the launch of those that meet; None: all.
        options: `restart_count`, `algorithm`, `device` and `trace` of the `Communicator`.

    Returns:
        The `Communicator`, when all ranks have come.

    Raises:
        RankFailed: a rank does not come, or ended while this one was connecting to it.
    """
    if transport == "shared_memory":
        joined = SharedMemoryTransport(rank, world_size, meeting_place, start_timeout_s, links, elastic, ranks)
        joined.agree(f"regroup after {elastic[1]} failures" if elastic and elastic[1] else "start")
        joined.set_timeout(timeout_s)
        return Communicator(joined, ranks=ranks, **options)
    store = dist.FileStore(meeting_place, world_size)
    limit = timedelta(seconds=max(start_timeout_s, timeout_s))  # gloo's limit for connecting is that of its collectives
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=limit)
    except RuntimeError as error:
        reason = f"a rank did not come, or ended, while rank {rank} was connecting to it ({str(error).splitlines()[0]})"
        raise RankFailed(None, reason) from error
    return of_group(timeout_s, links, own_group=True, **options)


def of_group(timeout_s, links=None, own_group=False, **options):
    """The `Communicator` of torch's default process group, which it ends with itself if `own_group`."""
    return Communicator(TorchTransport(timeout_s, links, own_group=own_group), **options)
