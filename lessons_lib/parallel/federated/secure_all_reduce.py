"""Secure aggregation on real ranks: rank 0 is the server, the others are clients (lesson 25)."""

import numpy as np
import torch

from ...privacy.secure_aggregation import Client
from ...privacy.secure_sum import unmask
from ..objects import recv_object, send_object


@torch.no_grad()
def secure_all_reduce(comm, tensor, threshold, leaves=False, fraction_bits=16, watch=None):
    """Add the tensors of ranks 1 to N - 1 so that rank 0, who does it, sees none of them; all ranks get the sum.

    Rank 0 gives nothing of its own. It passes on keys and sealed shares, gets vectors under masks, and has those that
    are left open the masks of the sum. All ranks call it together.

    Args:
        comm: `Communicator` of at least three ranks.
        tensor: floats, of one shape on every rank, zeros on rank 0; it becomes the sum.
        threshold: how many clients must stay; see `Client`.
        leaves: whether this client goes away after it has shared its keys: its tensor is not in the sum.
        fraction_bits: see `to_fixed_point`: the sum is exact but for its rounding.
        watch: called on rank 0 with {rank: uint32 array}, all that it holds of single vectors.

    Raises:
        ValueError: too few ranks, too few that stay, or numbers on rank 0; the launch ends on every rank.
        OverflowError: the tensor is too large for so many terms and bits.

    Communication: per client its keys and one share for every other, sealed, each way; then 4 bytes per number to the
    server; and 8 bytes per number back. Objects travel pickled, as ranks of one launch trust each other's code; a
    server for strangers takes bytes that are checked.

    Source: Bonawitz et al. (2017), figure 4.
    """
    if comm.world_size < 3:
        raise ValueError(f"world_size={comm.world_size}: a server and two clients at least, three ranks, are needed")
    if comm.rank == 0 and tensor.any():
        raise ValueError("tensor: rank 0 is the server: a tensor of zeros is needed there")
    if comm.rank == 0:
        total = _serve(comm, fraction_bits, watch)
    else:
        _take_part(comm, tensor, threshold, leaves, fraction_bits)
        total = torch.empty(tensor.numel(), dtype=torch.float64)
    comm.broadcast(total)
    tensor.copy_(total.view_as(tensor))


def _serve(comm, fraction_bits, watch):
    ranks = range(1, comm.world_size)
    everyone = {rank: recv_object(comm, rank)[0] for rank in ranks}
    _tell(comm, ranks, dict.fromkeys(ranks, everyone))
    sealed = {rank: recv_object(comm, rank)[0] for rank in ranks}
    _tell(comm, ranks, {to: {rank: notes[to] for rank, notes in sealed.items() if rank != to} for to in ranks})
    vectors = {rank: recv_object(comm, rank)[0] for rank in ranks}
    vectors = {rank: vector for rank, vector in vectors.items() if vector is not None}
    survivors = sorted(vectors)
    if watch:
        watch(vectors)
    _tell(comm, survivors, dict.fromkeys(survivors, survivors))
    revealed = [recv_object(comm, rank)[0] for rank in survivors]
    if not revealed:
        raise ValueError("no client has stayed: there is no sum")
    return torch.from_numpy(np.ascontiguousarray(unmask(vectors, revealed, everyone, fraction_bits)))


def _tell(comm, ranks, notes):
    for rank in ranks:
        send_object(comm, notes[rank], rank)


def _take_part(comm, tensor, threshold, leaves, fraction_bits):
    client = Client(comm.rank, threshold, fraction_bits)
    send_object(comm, client.public_keys, 0)
    send_object(comm, client.share_keys(recv_object(comm, 0)[0]), 0)
    sealed = recv_object(comm, 0)[0]
    send_object(comm, None if leaves else client.masked(tensor.flatten().cpu().numpy(), sealed), 0)
    if not leaves:
        send_object(comm, client.reveal(recv_object(comm, 0)[0]), 0)
