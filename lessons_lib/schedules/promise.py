"""What each collective starts with and promises to end with, as contributions.

A contribution is what one rank brought to one chunk. Which of them a rank holds of a chunk is its share, a set of bits:
bit r is the contribution of rank r, bit N + r is what rank r held before and nobody asked for (in a broadcast, whatever
lay in the tensors of all ranks but the root).
"""

REDUCTIONS = ("all_reduce", "reduce_scatter")  # every rank contributes to every chunk; else one rank starts with it


def initial_shares(schedule):
    """The shares before the first round.

    Returns:
        held[rank][chunk]: an int, the bits of the contributions that this rank holds of this chunk.
    """
    size, chunks = schedule.world_size, range(schedule.num_chunks)
    if schedule.collective in REDUCTIONS:
        return [[1 << rank for _ in chunks] for rank in range(size)]
    homes = [home(schedule, chunk) for chunk in chunks]
    return [[1 << (rank if rank == here else size + rank) for here in homes] for rank in range(size)]


def promised_share(schedule, rank, chunk):
    """The share of `chunk` that `rank` must end with, as bits; None where it may end with anything."""
    if not wants(schedule, rank, chunk):
        return None
    if schedule.collective in REDUCTIONS:
        return (1 << schedule.world_size) - 1
    return 1 << home(schedule, chunk)


def home(schedule, chunk):
    """The one rank that starts with `chunk` where nothing is reduced."""
    return schedule.root if schedule.collective in ("broadcast", "scatter") else owner(schedule, chunk)


def has(schedule, rank, chunk):
    """Whether `rank` starts with a contribution to `chunk`."""
    return schedule.collective in REDUCTIONS or home(schedule, chunk) == rank


def wants(schedule, rank, chunk):
    """Whether `rank` must end with `chunk`; else it may end with anything there."""
    if schedule.collective in ("reduce_scatter", "scatter"):
        return owner(schedule, chunk) == rank
    if schedule.collective == "gather":
        return schedule.root == rank
    if schedule.collective == "all_to_all":  # the chunks of each source are dealt to the ranks in order
        return chunk * schedule.world_size**2 // schedule.num_chunks % schedule.world_size == rank
    return True


def owner(schedule, chunk):
    """The rank whose chunk it is when a tensor is dealt to the ranks in order, as in a reduce-scatter or a gather."""
    return chunk * schedule.world_size // schedule.num_chunks


def ranks_in(share):
    """The ranks whose bits are set in `share`, in order."""
    return [rank for rank in range(share.bit_length()) if share >> rank & 1]
