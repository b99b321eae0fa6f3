"""What each collective starts with and promises to end with, as contributions.

A contribution is what one rank brought to one chunk. Which of them a rank holds of a chunk is its share, a set of bits:
bit r is the contribution of rank r, bit N + r is what rank r held before and nobody asked for (in a broadcast, whatever
lay in the tensors of all ranks but the root).
"""


def initial_shares(schedule):
    """The shares before the first round.

    Returns:
        held[rank][chunk]: an int, the bits of the contributions that this rank holds of this chunk.
    """
    size, chunks = schedule.world_size, range(schedule.num_chunks)
    if schedule.collective in ("all_reduce", "reduce_scatter"):
        return [[1 << rank for _ in chunks] for rank in range(size)]
    roots = [schedule.root if schedule.collective == "broadcast" else owner(schedule, chunk) for chunk in chunks]
    return [[1 << (rank if rank == root else size + rank) for root in roots] for rank in range(size)]


def promised_share(schedule, rank, chunk):
    """The share of `chunk` that `rank` must end with, as bits; None where it may end with anything."""
    home = owner(schedule, chunk)
    if schedule.collective == "broadcast":
        return 1 << schedule.root
    if schedule.collective == "all_gather":
        return 1 << home
    if schedule.collective == "reduce_scatter" and rank != home:
        return None
    return (1 << schedule.world_size) - 1


def owner(schedule, chunk):
    """The rank that ends with `chunk` in a reduce-scatter, and starts with it in an all-gather."""
    return chunk * schedule.world_size // schedule.num_chunks


def ranks_in(share):
    """The ranks whose bits are set in `share`, in order."""
    return [rank for rank in range(share.bit_length()) if share >> rank & 1]
