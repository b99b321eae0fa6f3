"""What goes wrong, and when: the same for the same seed, whatever a policy does (lesson 21)."""

import random
from dataclasses import dataclass

KINDS = ("kill", "stop", "slow", "flip", "disk", "message")
BRIEF, CHRONIC = 2, 30  # steps for which a rank is slow


@dataclass(frozen=True)
class Incident:
    """Something that goes wrong.

    Attributes:
        kind: "kill": a process is killed. "stop": it is stopped, and says nothing any more. "slow": a rank takes
            several times as long. "flip": a bit of its weights flips. "disk": all checkpoints are gone. "message": a
            rank cannot deliver a message.
        place: which of the ranks that live then: their number modulo how many there are.
        number: which weight and bit; how long it is slow.
    """

    kind: str
    place: int
    number: int


def incident_at(clock, seed, mean_between, kinds=KINDS):
    """The `Incident` of one moment, or None.

    Args:
        clock: how many steps have been begun before in this run, repeated ones too, so that a step that is done again
            meets another fate.
        seed: any whole number.
        mean_between: one step in so many has an incident, on average; infinity: none has.
        kinds: those that may come, all equally often.
    """
    drawn = random.Random(f"{seed} {clock}")
    if drawn.random() * mean_between >= 1:
        return None
    kind, place = drawn.choice(kinds), drawn.randrange(1 << 20)
    return Incident(kind, place, drawn.choice((BRIEF, CHRONIC)) if kind == "slow" else drawn.randrange(1 << 30))
