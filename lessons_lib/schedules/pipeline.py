"""Pipelines as programs: micro-batches pass the stages of a model, forward and then backward (lesson 16)."""

from dataclasses import dataclass

from ..errors import InvalidProgram, check_whole
from .program import Program

COMPUTES = ("forward", "backward", "input", "weight")


@dataclass(frozen=True)
class Pipeline(Program):
    """A program whose model is cut into stages. Blocks of computing steps are (stage, micro_batch).

    - "forward" makes ("activation", stage, micro_batch), the output of the stage, out of the one of the stage before,
      and keeps what its backward needs: its stash.
    - "backward" makes ("gradient", stage - 1, micro_batch), the gradient of the loss by what came in, and the gradient
      of the weights; it lets the stash go.
    - "input" and "weight" are the two halves of "backward": in zero-bubble pipelines the second waits for a free slot.

    Args:
        placement: for each stage the rank that holds it.
        num_micro_batches: how many micro-batches make one step.

    Raises:
        ValueError: `placement` names a rank that has no list of steps, or a size is below one.
    """

    placement: tuple = ()
    num_micro_batches: int = 1

    def __post_init__(self):
        check_whole("num_micro_batches", self.num_micro_batches, 1)
        if not self.placement or any(rank not in range(self.world_size) for rank in self.placement):
            raise ValueError(
                f"placement={self.placement!r}: for each stage a rank from 0 to {self.world_size - 1} is needed"
            )

    @property
    def num_stages(self):
        """Into how many stages the model is cut."""
        return len(self.placement)

    def start(self):
        held = [{} for _ in range(self.world_size)]
        for micro_batch in range(self.num_micro_batches):
            held[self.placement[0]]["activation", -1, micro_batch] = "the input"
        return held

    def compute(self, rank, step, held):
        if step.op not in COMPUTES:
            raise InvalidProgram(f"{step.op!r} is unknown: send, recv, {', '.join(COMPUTES)}")
        stage, micro_batch = self._checked(rank, step.block)
        done, stash = ("done", stage, micro_batch), ("stash", stage, micro_batch)
        before, after = held.get(done, ()), {"forward": "forward", "backward": "input"}.get(step.op, step.op)
        if after in before or step.op in before:
            raise InvalidProgram(f"{step.op} is done a second time")
        if step.op == "forward":
            _take(held, ("activation", stage - 1, micro_batch))
            held["activation", stage, micro_batch] = held[stash] = step.block
        elif "forward" not in before:
            raise InvalidProgram(f"{step.op} comes before forward")
        elif step.op == "weight" and "input" not in before:
            raise InvalidProgram("weight comes before input")
        if step.op in ("backward", "input"):
            if stage < self.num_stages - 1:
                _take(held, ("gradient", stage, micro_batch))
            if stage > 0:
                held["gradient", stage - 1, micro_batch] = step.block
        if step.op in ("backward", "weight"):
            del held[stash]
        held[done] = (*before, *{"backward": ("input", "weight")}.get(step.op, (step.op,)))

    def num_kept(self, held):
        return sum(block[0] == "stash" for block in held)

    def _checked(self, rank, block):
        """The stage and the micro-batch of a block, which `rank` may work on."""
        sizes = (self.num_stages, self.num_micro_batches)
        if len(block) != 2 or any(part not in range(size) for part, size in zip(block, sizes, strict=False)):
            raise InvalidProgram(
                f"(stage, micro_batch) is needed, up to ({self.num_stages - 1}, {self.num_micro_batches - 1})"
            )
        if self.placement[block[0]] != rank:
            raise InvalidProgram(f"stage {block[0]} lies on rank {self.placement[block[0]]}")
        return block

    def check_end(self, held):
        for stage, rank in enumerate(self.placement):
            for micro_batch in range(self.num_micro_batches):
                done = held[rank].get(("done", stage, micro_batch), ())
                if missing := [each for each in ("forward", "input", "weight") if each not in done]:
                    words = {"input": "backward (or input)", "weight": "weight (or backward)"}
                    problem = f"{words.get(missing[0], missing[0])} is never done"
                    raise InvalidProgram(problem, rank, None, (stage, micro_batch))


def _take(held, block):
    """Use a block up."""
    if block not in held:
        raise InvalidProgram("is used before it is there", block=block)
    del held[block]
