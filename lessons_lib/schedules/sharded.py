"""Sharded gathers as programs: each weight there when it is used, each gradient reduced once (lesson 14)."""

from dataclasses import dataclass

from ..errors import InvalidProgram, check_whole
from .program import Program, Step

COMPUTES = ("forward", "backward", "free", "reduce")


@dataclass(frozen=True)
class ShardedStep(Program):
    """A training step whose weights lie in shares. Blocks of computing steps are (unit,).

    ("shard", unit, rank) is what `rank` keeps of a unit's weights. A unit is whole on a rank that holds all N of them.

    - "forward" makes ("activation", unit) out of the one before, with the whole unit.
    - "backward" makes ("gradient", unit - 1) and, for every rank, ("partial", unit, rank, own rank): what this rank's
      share of the batch adds to the gradient of that rank's shard.
    - "free" lets the other ranks' shards go.
    - "reduce" adds up the partials of all ranks for this rank's own shard.

    Args:
        num_units: how many units the model has.

    Raises:
        ValueError: `num_units` is below one.
    """

    num_units: int = 1

    def __post_init__(self):
        check_whole("num_units", self.num_units, 1)

    def start(self):
        held = [{("activation", -1): "the batch"} for _ in range(self.world_size)]
        for rank, own in enumerate(held):
            own.update({("shard", unit, rank): "the weights" for unit in range(self.num_units)})
        return held

    def compute(self, rank, step, held):
        if step.op not in COMPUTES:
            raise InvalidProgram(f"{step.op!r} is unknown: send, recv, {', '.join(COMPUTES)}")
        if len(step.block) != 1 or step.block[0] not in range(self.num_units):
            raise InvalidProgram(f"(unit,) is needed, up to ({self.num_units - 1},)")
        getattr(self, f"_{step.op}")(rank, step.block[0], held)

    def _forward(self, rank, unit, held):
        self._check_whole(unit, held)
        _take(held, ("activation", unit - 1))
        held["activation", unit] = held["stash", unit] = unit

    def _backward(self, rank, unit, held):
        self._check_whole(unit, held)
        _take(held, ("stash", unit))
        _take(held, ("activation", unit) if unit == self.num_units - 1 else ("gradient", unit))
        if unit > 0:
            held["gradient", unit - 1] = unit
        held.update({("partial", unit, target, rank): unit for target in range(self.world_size)})

    def _free(self, rank, unit, held):
        self._check_whole(unit, held)
        for other in range(self.world_size):
            if other != rank:
                del held["shard", unit, other]

    def _reduce(self, rank, unit, held):
        for other in range(self.world_size):
            _take(held, ("partial", unit, rank, other))
        held["reduced", unit] = unit

    def _check_whole(self, unit, held):
        for other in range(self.world_size):
            if ("shard", unit, other) not in held:
                raise InvalidProgram("is used before it is there", block=("shard", unit, other))

    def num_kept(self, held):
        """How many units are whole."""
        units = range(self.num_units)
        return sum(all(("shard", unit, rank) in held for rank in range(self.world_size)) for unit in units)

    def check_end(self, held):
        for rank, own in enumerate(held):
            for unit in range(self.num_units):
                if ("reduced", unit) not in own:
                    raise InvalidProgram("reduce is never done", rank, None, (unit,))
                for other in range(self.world_size):
                    if other != rank and ("shard", unit, other) in own:
                        raise InvalidProgram("is never let go", rank, None, ("shard", unit, other))


def sharded_step(num_ranks, num_units, reshard_after_forward=True, prefetch=False):
    """The program of `FullySharded`: gather, compute, let go; in backward gather again, compute, let go, reduce.

    Args:
        num_ranks, num_units: N and U.
        reshard_after_forward: False: units stay whole from forward to backward (stage 2).
        prefetch: send a unit's shards before the unit before it computes, and take them in before that one is let go.

    Returns:
        A `ShardedStep`.

    Communication: 2 U (N - 1) shards that a rank sends (U (N - 1) in stage 2), and U (N - 1) partials.
    """
    check_whole("num_ranks", num_ranks, 1)
    check_whole("num_units", num_units, 1)
    order = [("forward", unit) for unit in range(num_units)] + [
        ("backward", unit) for unit in reversed(range(num_units))
    ]
    steps = [_steps_of(rank, num_ranks, order, reshard_after_forward, prefetch) for rank in range(num_ranks)]
    stage = "stage 3" if reshard_after_forward else "stage 2"
    return ShardedStep(steps, f"{stage}{', prefetching' * prefetch}", num_units)


def _steps_of(rank, num_ranks, order, reshard, prefetch):
    """The steps of one rank that does what `order` says: (op, unit) after (op, unit)."""
    others = [(rank + distance) % num_ranks for distance in range(1, num_ranks)]
    steps = []

    def is_gathered(number):
        return number < len(order) and (reshard or order[number][0] == "forward")

    def send(number):
        if is_gathered(number):
            steps.extend(Step("send", ("shard", order[number][1], rank), other) for other in others)

    def receive(number):
        if is_gathered(number):
            steps.extend(Step("recv", ("shard", order[number][1], other), other) for other in others)

    for number, (op, unit) in enumerate(order):
        # The last unit is let go after its forward and needed again at once: it cannot be taken in before.
        is_ahead = prefetch and number + 1 < len(order) and order[number + 1][1] != unit
        was_ahead = prefetch and number > 0 and order[number - 1][1] != unit
        if not was_ahead:
            send(number)
            receive(number)
        if is_ahead:
            send(number + 1)
        steps.append(Step(op, (unit,)))
        if is_ahead:
            receive(number + 1)
        if reshard or op == "backward":
            steps.append(Step("free", (unit,)))
        if op == "backward":
            steps.extend(Step("send", ("partial", unit, other, rank), other) for other in others)
            steps.extend(Step("recv", ("partial", unit, rank, other), other) for other in others)
            steps.append(Step("reduce", (unit,)))
    return steps


def _take(held, block):
    """Use a block up."""
    if block not in held:
        raise InvalidProgram("is used before it is there, or a second time", block=block)
    del held[block]
