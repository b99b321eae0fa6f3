"""Are the replicas still alike, bit for bit? Where not: which tensor, on which rank (lesson 21)."""

from collections import Counter

from ..checkpoint.contents import digest
from ..checkpoint.packing import pack
from ..parallel.objects import share_objects


class ReplicasDiffer(RuntimeError):
    """Replicas that were to be alike are not.

    Attributes:
        tensor: the name of the first one that differs.
        ranks: those that differ from the majority, by their numbers in the launch; all, where there is no majority.
        believed: the number of a rank that has what the majority has, or None.
    """

    def __init__(self, tensor, ranks, believed):
        super().__init__(tensor, ranks, believed)
        self.tensor, self.ranks, self.believed = tensor, ranks, believed

    def __str__(self):
        who = ", ".join(map(str, self.ranks))
        if self.believed is None:
            return f"{self.tensor} differs between ranks {who}, and no majority of them is alike"
        return f"{self.tensor} of rank {who} differs from that of the other ranks"


def compare_replicas(comm, state):
    """Raise if something in `state` is not the same on all ranks, bit for bit. All ranks call it together.

    Args:
        comm: `Communicator` of the replicas, such as the "dp" axis of a mesh.
        state: {name: module, optimiser or tensor}, or anything that has a `state_dict()`.

    Raises:
        ReplicasDiffer: on every rank.
        TypeError: something in `state` has no digest, which is named.

    Communication: 70 bytes per tensor from each rank, which are no payload of a step.

    Source: lesson 21.
    """
    own = {}
    for name, value in state.items():
        tensors, values = pack(value.state_dict() if hasattr(value, "state_dict") else value, name)
        own |= {key: digest(each) for key, each in {**tensors, **values}.items()}
    told = share_objects(comm, own)
    for name in dict.fromkeys(name for each in told for name in each):
        theirs = {rank: each.get(name, "none") for rank, each in zip(comm.ranks, told, strict=True)}
        odd = odd_ones(theirs)
        if odd:
            believed = next((rank for rank in comm.ranks if rank not in odd), None)
            raise ReplicasDiffer(name, odd, believed)


def odd_ones(digests):
    """Who has something else than the majority.

    Args:
        digests: {rank: digest}.

    Returns:
        The ranks that differ from more than half of all ranks, in order; all ranks, where no more than half are alike;
        none, where all are.
    """
    (common, count), *others = Counter(digests.values()).most_common()
    if not others:
        return ()
    if 2 * count <= len(digests):
        return tuple(sorted(digests))
    return tuple(sorted(rank for rank, value in digests.items() if value != common))
