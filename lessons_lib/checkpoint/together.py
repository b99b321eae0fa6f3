"""What all ranks do together: if one of them cannot, all of them hear of it (lesson 21)."""

from ..errors import RankFailed
from ..parallel.objects import share_objects


def together(comm, what, fn):
    """Do `fn()` on every rank; its result.

    Args:
        comm: `Communicator`.
        what: in words, behind "could not".
        fn: without arguments.

    Raises:
        Exception: what `fn` raised here.
        RankFailed: it raised on another rank.
    """
    error, result = None, None
    try:
        result = fn()
    except Exception as caught:
        error = caught
    told = share_objects(comm, None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, text in enumerate(told):
        if text is not None:
            number = comm.ranks[rank]
            raise RankFailed(number, f"rank {number} could not {what}: {text}")
    return result
