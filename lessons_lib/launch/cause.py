"""What each rank reported at its end, and which of several failures is the one to raise."""

from dataclasses import dataclass

from ..errors import CollectiveMismatch, RankFailed
from ..trace import Ledger, Trace


@dataclass
class Report:
    """How one rank ended.

    Attributes:
        kind: "result": its function returned; "error": it raised; "ended": its process ended without a word.
        result: what the function returned.
        ledger: what the rank moved, where it returned.
        error: what went wrong: `RankFailed` or `CollectiveMismatch` where the rank waited for others or disagrees with
            them, otherwise words that continue "rank 1 ...".
        details: the traceback of `error`, or "".
        trace: what the rank recorded, or None.
    """

    kind: str
    result: object = None
    ledger: Ledger | None = None
    error: Exception | str | None = None
    details: str = ""
    trace: Trace | None = None


def cause(reports):
    """The error to raise for ranks of which at least one failed.

    One failure brings others with it: who waits for a dead rank fails as well. So what explains the others comes first:
    a process that ended, an error of the function, a disagreement, and last a wait in vain.

    Args:
        reports: rank -> `Report`, of the ranks that reported; a failure is among them.

    Returns:
        A `RankFailed` or `CollectiveMismatch`, which carries the trace of all ranks that reported.
    """
    trace = Trace.merged([report.trace for report in reports.values() if report.trace])
    for kind in ("ended", "error"):
        for rank, report in sorted(reports.items()):
            if report.kind == kind and isinstance(report.error, str):
                return RankFailed(rank, f"rank {rank} {report.error}", report.details, trace)
    failed = {rank: report for rank, report in sorted(reports.items()) if report.kind == "error"}
    mismatches = [report.error for report in failed.values() if isinstance(report.error, CollectiveMismatch)]
    if mismatches:
        return CollectiveMismatch({rank: call for error in mismatches for rank, call in error.calls.items()}, trace)
    first = _who_waits_for_the_cause(failed)
    others = "".join(f"; {report.error.reason}" for rank, report in failed.items() if rank != first)
    error = failed[first].error
    return RankFailed(error.rank, error.reason + others, failed[first].details, trace)


def _who_waits_for_the_cause(failed):
    """The rank whose wait explains the others': rank 0 waits for 1, and 1 for 2, which says nothing, gives 1.

    A rank that failed by itself names itself. One in a whole collective of torch cannot tell whom it waits for, and
    ranks may wait for each other in a circle.
    """
    waits_for = {rank: report.error.rank for rank, report in failed.items() if report.error.rank is not None}
    by_itself = [rank for rank, peer in waits_for.items() if peer == rank]
    for_silent = [rank for rank, peer in waits_for.items() if peer not in failed]
    return [*by_itself, *for_silent, *waits_for, *failed][0]
