"""Count what a schedule makes every rank send and receive, before anything has run."""

from dataclasses import dataclass

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
        numel: how many elements the tensor has.
        itemsize: how many bytes an element has.

    Returns:
        `Counts`.

    Raises:
        TypeError: `schedule` is something else.
        ValueError: `numel` is not a whole number of at least 0.
    """
    check_is_schedule(schedule)
    sizes = [(stop - start) * itemsize for start, stop in chunk_bounds(numel, schedule.num_chunks)]
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
