"""The byte ledger of a schedule: what every rank sends and receives, before anything has run."""

from dataclasses import dataclass

from .schedule import check_is_schedule, chunk_bounds, transfers


@dataclass(frozen=True)
class Counts:
    """What a schedule costs. Lists have one number a rank; bytes are of the payload, without headers."""

    num_rounds: int
    messages_sent: list
    messages_received: list
    bytes_sent: list
    bytes_received: list


def count(schedule, numel, itemsize=4):
    """Count messages and bytes of a schedule on a tensor of `numel` elements of `itemsize` bytes.

    Chunks that go from one rank to another in the same round count as one message.

    Raises:
        TypeError, ValueError: `schedule` is none, `numel` no whole number or negative.
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
