"""How good a plan was, and how good what was said of it beforehand (lesson 28)."""

from dataclasses import dataclass

from .estimate import Estimate
from .run import Outcome


@dataclass(frozen=True)
class Score:
    """Three shares of 1, and their mean in per cent.

    Attributes:
        prediction: the mean over step, bytes and memory of smaller over larger of what was said and what was measured;
            0 for a run that was refused. How long the whole run takes depends on who dies, and is left out.
        goodput: as measured; 0 for a run that was refused.
        cost: the device-seconds of the run beside which this one is held, over its own; at most 1. 0 for a run that was
            refused, whose weights are wrong, or that missed its deadline.
        ratios: {what: what was said over what was measured}.
    """

    prediction: float
    goodput: float
    cost: float
    ratios: dict

    @property
    def points(self):
        return 100 * (self.prediction + self.goodput + self.cost) / 3

    def __str__(self):
        parts = {"prediction": self.prediction, "goodput": self.goodput, "cost": self.cost}
        return f"{self.points:.0f} points: " + ", ".join(f"{name} {part:.0%}" for name, part in parts.items())


def score(setup, estimate, outcome, beside):
    """The `Score` of an `Outcome`.

    Args:
        setup: a `Setup`.
        estimate: an `Estimate`, made before the run.
        outcome, beside: the `Outcome` of the run, and of the run of another plan, such as that of `searched`.

    Raises:
        TypeError: `estimate` or an outcome is something else.
    """
    for name, value, kind in (
        ("estimate", estimate, Estimate),
        ("outcome", outcome, Outcome),
        ("beside", beside, Outcome),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name} is a {type(value).__name__}: an {kind.__name__} is needed")
    pairs = {name: (said, getattr(outcome, name)) for name, said in estimate._asdict().items()}
    ratios = {name: said / got for name, (said, got) in pairs.items() if got}
    if outcome.refused:
        return Score(0.0, 0.0, 0.0, ratios)
    off = [_alike(*pairs[name]) for name in ("step_s", "sent_bytes", "memory_bytes")]
    is_due = outcome.night.is_right and outcome.run_s <= setup.deadline_s
    cost = min(1.0, beside.device_s / outcome.device_s) if is_due else 0.0
    return Score(sum(off) / len(off), outcome.goodput, cost, ratios)


def _alike(said, got):
    """The smaller over the larger; 1 where both are 0."""
    return 1.0 if said == got else max(0.0, min(said, got)) / max(said, got)
