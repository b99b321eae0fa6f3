"""What a run on the pager came to, from what its ranks wrote down (lesson 21)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Something that a rank did, or that struck it.

    Attributes:
        what: "step", "compare", "copy", "save", "recover", or a kind of incident.
        rank: its number in the launch.
        clock: how many steps had been begun in the run, this one too.
        step: how many were done, those that were lost again left out.
        start_s, end_s: on the clock that all processes of a machine share.
    """

    what: str
    rank: int
    clock: int
    step: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Score:
    """What was done, and whether it was right.

    Attributes:
        num_steps: how many steps had to be done.
        num_begun: how many steps were begun, those that came to nothing too.
        num_saves, num_recoveries: how many checkpoints were written on disk, and how often the run went back.
        is_right: whether the weights are, bit for bit, those of the undisturbed run.
        refused: why the run has ended without weights, or "".
        events: all `Event`s, by their start; of a rehearsal, none.
    """

    num_steps: int
    num_begun: int
    num_saves: int
    num_recoveries: int
    is_right: bool
    refused: str = ""
    events: tuple = ()

    @property
    def incidents(self):
        """The `Event`s that struck."""
        return [event for event in self.events if event.what not in ("step", "compare", "copy", "save", "recover")]

    @property
    def time_s(self):
        """From the first event to the end of the last; None for a rehearsal."""
        if not self.events:
            return None
        return max(event.end_s for event in self.events) - self.events[0].start_s

    @property
    def step_times_s(self):
        """Seconds of each step that counted, on its slowest rank: of one that was done again the last time."""
        done = {}
        for event in self.events:
            if event.what == "step":
                clock, time_s = done.get(event.step, (event.clock, 0.0))
                own_s = event.end_s - event.start_s
                done[event.step] = (event.clock, max(time_s, own_s) if clock == event.clock else own_s)
        return [time_s for _, time_s in done.values()]

    @property
    def goodput(self):
        """The time of those steps that counted, beside all time; 0 for a run that was refused, None for a rehearsal."""
        if not self.events or self.refused:
            return 0.0 if self.refused else None
        return sum(self.step_times_s) / self.time_s

    def counted_goodput(self, save_steps, restart_steps):
        """Useful steps beside all, where a checkpoint costs `save_steps` steps and going back `restart_steps`."""
        lost = save_steps * self.num_saves + restart_steps * self.num_recoveries
        return 0.0 if self.refused else self.num_steps / (self.num_begun + lost)

    def __str__(self):
        if self.refused:
            return f"refused: {self.refused}"
        verdict = "weights right" if self.is_right else "weights WRONG"
        done = f"{self.num_steps} steps done, {self.num_begun} begun, {self.num_saves} saves"
        measured = "" if self.goodput is None else f", goodput {self.goodput:.0%}"
        return f"{verdict}; {done}, {self.num_recoveries} times back{measured}"
