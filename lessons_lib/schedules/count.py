"""Count what a schedule or a program makes every rank send and receive, before anything has run."""

from dataclasses import dataclass

from ..errors import check_whole
from .program import Program
from .program_readers import count_steps
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


def count(schedule, numel=None, itemsize=4, block_bytes=0):
    """Count the messages and bytes of a schedule, or the steps, messages and bytes of a `Program`.

    Args:
        schedule: a `Schedule`, or a `Program` that `verify` accepts.
        numel: of a schedule, how many elements the tensor has, cut evenly; or a list of how many each chunk has.
        itemsize: of a schedule, how many bytes an element has.
        block_bytes: of a program, how many bytes a message has: a number, or a function of the block.

    Returns:
        `Counts`, or of a program `ProgramCounts`.

    Raises:
        TypeError: `schedule` is something else, or what is given does not belong to its kind.
        ValueError: `numel` is no whole number of at least 0, nor a list of one for each chunk; or a size is negative.
        InvalidProgram: a program is wrong.
    """
    if isinstance(schedule, Program):
        if numel is not None:
            raise TypeError(f"numel={numel!r}: a program has block_bytes instead")
        return count_steps(schedule, block_bytes)
    check_is_schedule(schedule, "a Schedule or a Program")
    if block_bytes != 0:
        raise TypeError(f"block_bytes={block_bytes!r}: a schedule has numel and itemsize instead")
    return _count_messages(schedule, [size * itemsize for size in _chunk_sizes(schedule, numel)])


def _chunk_sizes(schedule, numel):
    """How many elements each chunk has."""
    if not isinstance(numel, list):
        return [stop - start for start, stop in chunk_bounds(numel, schedule.num_chunks)]
    if len(numel) != schedule.num_chunks:
        raise ValueError(f"numel={numel!r}: one number for each of {schedule.num_chunks} chunks is needed")
    for size in numel:
        check_whole("numel", size, 0)
    return numel


def _count_messages(schedule, sizes):
    """`sizes`: bytes of each chunk."""
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
