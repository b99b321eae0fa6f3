"""What is trained, what may strike it, and what is done about it (lesson 21)."""

import math
from dataclasses import dataclass, field

from ..errors import check_sizes, check_whole
from .incidents import KINDS


@dataclass(frozen=True)
class Policy:
    """How a run looks after itself.

    Attributes:
        save_every: steps from one checkpoint on disk to the next; 0: none.
        copy_every: steps from one copy in a neighbour's memory to the next; 0: none.
        compare_every: steps from one comparison of all replicas to the next, which come before a checkpoint or copy of
            the same step, and once at the end; 0: none.
        believe: what is done where they differ. "checkpoint": all go back to what was kept. "majority": who differs
            takes over what most ranks have, where most are alike.
        evict_after: a rank that was slow in so many steps in a row leaves; 0: never.
        spares: how many ranks that are gone get a new process.

    A policy of your own is a subclass: its methods `saves`, `copies`, `compares` and `evicts` decide.
    """

    save_every: int = 10
    copy_every: int = 0
    compare_every: int = 10
    believe: str = "checkpoint"
    evict_after: int = 3
    spares: int = 3

    def __post_init__(self):
        for name in ("save_every", "copy_every", "compare_every", "evict_after", "spares"):
            check_whole(name, getattr(self, name), 0)
        if self.believe not in ("checkpoint", "majority"):
            raise ValueError(f"believe={self.believe!r}: 'checkpoint' or 'majority' is accepted")

    def saves(self, step):
        """Whether there is a checkpoint when `step` steps are done."""
        return _is_due(step, self.save_every)

    def copies(self, step):
        """Whether there is a copy in memory when `step` steps are done."""
        return _is_due(step, self.copy_every)

    def compares(self, step, num_steps):
        """Whether replicas are compared when `step` of `num_steps` steps are done."""
        return _is_due(step, self.compare_every) or bool(self.compare_every and step == num_steps)

    def evicts(self, slow_for):
        """Whether a rank has to leave that was slow in the last `slow_for` steps."""
        return bool(self.evict_after and slow_for >= self.evict_after)


def _is_due(step, every):
    return bool(every and step % every == 0)


@dataclass(frozen=True)
class Job:
    """A training run and what strikes it.

    Attributes:
        policy: a `Policy`.
        seed: of the incidents.
        num_steps: how many steps have to be done.
        mean_between: one step in so many has an incident, on average; infinity: none.
        kinds: of incidents that may come.
        pace_s: an emulated device: a step takes at least so long.
        is_elastic: whether the ranks that live go on when one dies, or all have to start again, as under torchrun.
    """

    policy: Policy = field(default_factory=Policy)
    seed: int = 0
    num_steps: int = 60
    mean_between: float = 20.0
    kinds: tuple = KINDS
    pace_s: float = 0.0
    is_elastic: bool = True

    def __post_init__(self):
        if not isinstance(self.policy, Policy):
            raise TypeError(f"policy is a {type(self.policy).__name__}: a Policy is needed")
        check_sizes(num_steps=self.num_steps)
        if not isinstance(self.mean_between, int | float) or not self.mean_between >= 1:
            raise ValueError(f"mean_between={self.mean_between!r}: a number of steps of at least 1 is needed")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds={self.kinds!r}: some of {', '.join(KINDS)} are needed")
        if not isinstance(self.pace_s, int | float) or not 0 <= self.pace_s < math.inf:
            raise ValueError(f"pace_s={self.pace_s!r}: a number of seconds of at least 0 is needed")
