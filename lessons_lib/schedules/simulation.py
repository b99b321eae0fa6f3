"""What a virtual clock says of a schedule or a program."""

from dataclasses import dataclass

from ..trace import Trace

MAX_DRAWN = 20_000  # messages or steps: a timeline of more spans takes longer to draw than anybody looks at it


@dataclass(frozen=True)
class Simulation:
    """What a virtual clock said.

    Attributes:
        total_s: when the last rank is done (seconds of virtual time).
        finish_s: when each rank is done.
        trace: a `Trace` of what each rank did; empty where spans were not kept.
    """

    total_s: float
    finish_s: list
    trace: Trace
