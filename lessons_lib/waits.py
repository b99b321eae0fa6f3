"""Who waited for whom: the straggler report of a trace (lesson 20)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wait:
    """A time in which one rank could not go on because of another, in seconds on the clock of the trace.

    `rank` and `peer` are numbers in the launch; `call` is what `rank` was in, in words; `group` is its group, or "".
    """

    rank: int
    peer: int
    start_s: float
    end_s: float
    call: str = ""
    group: str = ""

    @property
    def time_s(self):
        return self.end_s - self.start_s


class Waits(list):
    """All `Wait`s of a trace, the longest first."""

    def __init__(self, waits):
        super().__init__(sorted(waits, key=lambda wait: -wait.time_s))

    def by_peer(self):
        """{rank: seconds that all others together have waited for it}, the most first."""
        total_s = {}
        for wait in self:
            total_s[wait.peer] = total_s.get(wait.peer, 0.0) + wait.time_s
        return dict(sorted(total_s.items(), key=lambda item: -item[1]))

    def by_cause(self):
        """{rank: seconds that others have waited for it while it did not wait itself}, the most first.

        Where rank 2 waits for rank 1, and rank 1 for rank 0, that time is rank 0's doing alone.
        """
        total_s = {}
        for wait in self:
            excused = _union((other.start_s, other.end_s) for other in self if other.rank == wait.peer)
            own_s = wait.time_s - sum(_overlap(wait.start_s, wait.end_s, *each) for each in excused)
            total_s[wait.peer] = total_s.get(wait.peer, 0.0) + own_s
        return dict(sorted(total_s.items(), key=lambda item: -item[1]))

    def __str__(self):
        if not self:
            return "nobody waited"
        own_s = self.by_cause()
        lines = ["rank  others waited for it  of that by its own doing  longest: who, in what"]
        for peer, total_s in self.by_peer().items():
            longest = next(wait for wait in self if wait.peer == peer)
            who = f"rank {longest.rank}, {longest.time_s * 1e3:.1f} ms, {longest.call or 'a message'}"
            lines.append(f"{peer:4}  {total_s * 1e3:19.1f} ms  {own_s[peer] * 1e3:21.1f} ms  {who}")
        return "\n".join(lines)


def _union(intervals):
    """The same times as intervals that do not overlap."""
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([start, end])
    return merged


def _overlap(start, end, other_start, other_end):
    return max(0.0, min(end, other_end) - max(start, other_start))
