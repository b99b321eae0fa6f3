"""Count what a schedule makes every rank send and receive, before anything has run."""

from dataclasses import dataclass

from ..errors import check_whole
from .schedule import check_is_schedule, chunk_bounds, transfers


@dataclass(frozen=True)
class Counts:
    """What a schedule costs.

    Attributes:
        num_rounds: the number of rounds.
        messages_sent, messages_received: lists with one number per rank; a transfer counts as one message.
        bytes_sent, bytes_received: lists with one number per rank; bytes of the payload, without headers.
    """

    num_rounds: int
    messages_sent: list
    messages_received: list
    bytes_sent: list
    bytes_received: list


def count(schedule, numel, itemsize=4):
    """Count the messages and bytes of a schedule.

    Args:
        schedule: a `Schedule`.
        numel: how many elements the tensor has, cut evenly; or a list of how many each chunk has.
        itemsize: how many bytes an element has.

    Returns:
        `Counts`.

    Raises:
        TypeError: `schedule` is something else.
        ValueError: `numel` is no whole number of at least 0, nor a list of one for each chunk.
    """
    check_is_schedule(schedule)
    if not isinstance(numel, list):
        numel = [stop - start for start, stop in chunk_bounds(numel, schedule.num_chunks)]
    if len(numel) != schedule.num_chunks:
        raise ValueError(f"numel={numel!r}: one number for each of {schedule.num_chunks} chunks is needed")
    for size in numel:
        check_whole("numel", size, 0)
    sizes = [size * itemsize for size in numel]
    ranks = range(schedule.world_size)
    counts = Counts(len(schedule.rounds), *([0 for _ in ranks] for _ in range(4)))
    for messages in schedule.rounds:
        for src, dst, chunks, _ in transfers(messages):
            size = sum(sizes[chunk] for chunk in chunks)
            counts.messages_sent[src] += 1
            counts.messages_received[dst] += 1
            counts.bytes_sent[src] += size
            counts.bytes_received[dst] += size
    return counts
