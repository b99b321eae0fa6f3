"""What ranks tell each other with their gradients, so that no average is wrong in silence (lesson 12)."""

import torch

NUM_FLAGS = 4  # see `flags_of`
PRIME = 251  # of numbers below this, the squares of 256 ranks add up exactly in float32
UNCOUNTED = (
    "gradients came in a backward pass that no forward pass of the wrapped module led to, so how many samples they "
    "are the mean over is not known: compute the loss from net(...), or take DataParallel(weight_by_batch=False), "
    "which takes the plain mean over ranks"
)


def flags_of(counts, number, unit):
    """The numbers that travel behind the gradients; the ranks get their sums.

    Args:
        counts: for each forward pass since the last average, the numbers of samples that it may have had.
        number: how many averages this rank has begun.
        unit: what its weights were divided by.

    Returns:
        The samples of the first forward pass; a number that must be the same on all ranks, and its square; whether
        more has to be said before the weights are clear.
    """
    same = (number + 16 * len(counts) + int(unit)) % PRIME
    return counts[0][0] if counts else 0, same, same * same, len(set(counts)) > 1 or len((*counts, ())[0]) > 1


def check_flags(sums, counts, comm):
    """The number of samples of all ranks, given the sums of their flags. Raises where the average is wrong."""
    num_samples, same, squares, unclear = sums
    if not counts:
        raise RuntimeError(UNCOUNTED)
    if comm.world_size * squares != same * same:  # equal only if all are
        raise RuntimeError(
            f"the ranks average different backward passes: on one of them a pass has failed or was left out, or "
            f"another number of forward passes led to it (here {len(counts)}). Let every rank do the same passes, or "
            "accumulate with DataParallel(weight_by_batch=False)"
        )
    if unclear:
        agree_on_weights([size for sizes in counts for size in sizes], comm)
    return num_samples


def agree_on_weights(sizes, comm):
    """Raise on every rank, unless each of the `sizes` gives the ranks the same weights as the first one does.

    Communication: two all-reduces, of 1 and of at most N len(sizes) numbers.
    """
    longest = torch.tensor([len(sizes)], dtype=torch.float64)
    comm.all_reduce(longest, "max")
    table = torch.zeros(comm.world_size, int(longest), dtype=torch.float64)
    table[comm.rank] = -1.0
    table[comm.rank, : len(sizes)] = torch.tensor(sizes, dtype=torch.float64)
    comm.all_reduce(table)
    if (table < 0).any() or not _are_proportional(table):
        rows = [[f"{size:g}" for size in row if size >= 0] for row in table.tolist()]
        had = "; ".join(f"rank {rank}: {', '.join(row)}" for rank, row in enumerate(rows))
        raise ValueError(
            f"it is not clear how much each rank's gradients count, since these lengths of inputs and sizes of passes "
            f"have no common ratio: {had}. Give every forward pass weight=n, and each in an accumulation the same "
            "share on all ranks; or take DataParallel(weight_by_batch=False)"
        )


def total_counts(counts, comm, replicas):
    """The samples of all ranks of `comm` together, where their gradients are the mean over these already.

    Args:
        counts: this rank's.
        comm: the `Communicator` of the ranks that hold one replica.
        replicas: the `Communicator` of the ranks that hold the same of each.

    Raises:
        ValueError: a replica has no sample, or it is not clear how many.

    Communication: an all-reduce of two numbers; more of few where the lengths of several inputs differ.
    """
    total = torch.tensor([float(counts[0]), len(counts) > 1], dtype=torch.float64, device=comm.device)
    comm.all_reduce(total)
    if total[1]:
        agree_on_weights(counts, comm)
        total = torch.tensor(counts, dtype=torch.float64, device=comm.device)
        comm.all_reduce(total)
    if not all(has for (has,) in replicas.tell("samples of replicas", [int(total[0] > 0)])):
        raise ValueError("no rank of one replica of a FullySharded has a sample: at least one of them needs one")
    return tuple(total[: len(counts)].tolist())


def check_equal(count, comm):
    """Raise `ValueError` on every rank unless all count alike, so that no gradient has to be weighed.

    Communication: an all-reduce of two numbers.
    """
    bounds = torch.tensor([count, -count], dtype=torch.float64, device=comm.device)
    comm.all_reduce(bounds, "max")
    most, least = bounds[0].item(), -bounds[1].item()
    if most != least:
        raise ValueError(
            f"ranks have from {least:g} to {most:g} samples, and tokens of other ranks pass through the module, so "
            "gradients cannot be weighed afterwards: weight_by_batch=False is needed, and losses by share_of_mean"
        )


def _are_proportional(table):
    """Whether all columns of `table` (ranks, sizes) have the ratios of the first one."""
    totals = table.sum(0)
    if totals[0] == 0:
        return not totals.any()
    return torch.allclose(table * totals[0], table[:, :1] * totals, rtol=1e-9, atol=0)
