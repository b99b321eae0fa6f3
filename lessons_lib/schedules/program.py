"""A parallel training step as data: for each rank a list of steps, and the proof that it computes what it promises."""

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import InvalidProgram


class Step(NamedTuple):
    """One thing that one rank does.

    Attributes:
        op: "send", "recv", or what is computed: a name of the program's kind, such as "forward".
        block: what it is done to: a tuple whose meaning the program's kind gives, such as (stage, micro_batch).
        peer: of a "send" the rank that it goes to, of a "recv" the rank that it comes from; else None.
    """

    op: str
    block: tuple
    peer: int | None = None

    @property
    def label(self):
        """How a timeline calls it: "forward 0.3"."""
        return f"{self.op} {'.'.join(map(str, self.block))}"

    def __str__(self):
        way = {"send": " to rank", "recv": " from rank"}.get(self.op)
        return f"{self.op} {' '.join(map(str, self.block))}" + (f"{way} {self.peer}" if way else "")


@dataclass(frozen=True)
class Program:
    """For each rank the steps that it takes, in order. Each kind of parallelism is a subclass.

    A send does not wait: the block is on its way, and blocks of one pair of ranks arrive in the order in which they
    were sent. A receive waits for the next block of its peer.

    What a block holds is followed by a kind in `start`, `compute` and `check_end`.

    Args:
        steps: a list with a list of `Step`s for each rank.
        name: how figures and errors call it.
    """

    steps: list
    name: str = "own program"

    @property
    def world_size(self):
        """The number of ranks."""
        return len(self.steps)

    def start(self):
        """What each rank holds at the start: a list of one dictionary per rank, {block: what went into it}."""
        raise NotImplementedError

    def compute(self, rank, step, held):
        """Do the computing `step` of `rank`, which changes what it holds.

        Raises:
            InvalidProgram: what it needs is not there, or was computed before.
        """
        raise NotImplementedError

    def num_kept(self, held):
        """How many of the blocks that a rank holds are kept for a later pass."""
        return 0

    def check_end(self, held):
        """Raise `InvalidProgram` unless all that was promised has been computed."""
        raise NotImplementedError


def replay(program):
    """Play the steps of all ranks, each as soon as it can be, and yield every one of them.

    Yields:
        (rank, number of the step, `Step`, what the rank holds after it), in an order in which the ranks could run.

    Raises:
        InvalidProgram: a block is used before it is there, is sent to nobody, or is another than the one expected; the
            ranks wait for each other; or the end is not what was promised. The error names rank, step and block.
    """
    held, at = program.start(), [0] * program.world_size
    wires = defaultdict(deque)  # (src, dst): the blocks on their way, with what they hold
    while (moved := sum(at)) < sum(map(len, program.steps)):
        for rank, steps in enumerate(program.steps):
            while at[rank] < len(steps):
                step = _checked(program, rank, at[rank])
                if step.op == "recv" and not wires[step.peer, rank]:
                    break
                _play(program, rank, at[rank], step, held[rank], wires)
                yield rank, at[rank], step, held[rank]
                at[rank] += 1
        if sum(at) == moved:
            raise _stuck(program, at)
    for (src, dst), blocks in wires.items():
        if blocks:
            raise InvalidProgram(f"rank {src} sends it to rank {dst}, which never receives it", src, None, blocks[0][0])
    program.check_end(held)


def verify_program(program):
    """Prove a program without a process: raise `InvalidProgram` unless it computes what it promises (see `replay`)."""
    for _ in replay(program):
        pass


def _play(program, rank, number, step, held, wires):
    """Do one step that can be done."""
    try:
        if step.op == "send":
            if step.block not in held:
                raise InvalidProgram(f"is sent to rank {step.peer} before it is there")
            wires[rank, step.peer].append((step.block, held[step.block]))
        elif step.op == "recv":
            block, holds = wires[step.peer, rank].popleft()
            if block != step.block:
                raise InvalidProgram(f"rank {step.peer} sends {_named(block)} instead")
            if block in held:
                raise InvalidProgram("is received, but is there already")
            held[block] = holds
        else:
            program.compute(rank, step, held)
    except InvalidProgram as error:
        raise InvalidProgram(error.problem, rank, number, error.block or step.block) from None


def _checked(program, rank, number):
    """Step `number` of `rank`, whose form is right."""
    step = program.steps[rank][number]
    if not isinstance(step, Step) or not isinstance(step.block, tuple):
        raise InvalidProgram(f"a step is Step(op, block) with a tuple as block, not {step!r:.200}", rank, number)
    if step.op in ("send", "recv"):
        if step.peer not in range(program.world_size) or step.peer == rank:
            problem = f"peer {step.peer!r} is not another rank of 0..{program.world_size - 1}"
            raise InvalidProgram(problem, rank, number, step.block)
    elif step.peer is not None:
        raise InvalidProgram(f"{step.op} has no peer, here {step.peer!r}", rank, number, step.block)
    return step


def _stuck(program, at):
    """The error of ranks that wait for each other: it names all of them, and stands at the first."""
    waiting = [(rank, number) for rank, number in enumerate(at) if number < len(program.steps[rank])]
    said = "; ".join(f"rank {rank} waits at step {number}: {program.steps[rank][number]}" for rank, number in waiting)
    rank, number = waiting[0]
    return InvalidProgram(f"nothing can go on: {said}", rank, number, program.steps[rank][number].block)


def _named(block):
    return " ".join(map(str, block))
