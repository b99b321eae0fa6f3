"""Where in its lane each span of a timeline lies, so that what overlaps in time does not overlap on paper."""

from collections import defaultdict

import numpy as np

_SLACK = 0.02  # of a span's length: what overlaps less is taken as one after the other


def tracks_of(spans, shown):
    """[(span, top, height), …]: the lane of the k-th rank shown is centred on k; what overlaps lies in its own track.

    Computing is above sending, sending above what comes in; where groups never overlap on any rank, they share a track.
    """
    tracks = {rank: [] for rank in shown}
    by_start = sorted(spans, key=lambda span: (span.start_s, span.end_s))
    for group_name in ("own", "out", "in"):
        groups = {rank: [s for s in by_start if s.rank == rank and _group(s) == group_name] for rank in shown}
        base = 0
        while any(any(_clashes(groups[r], [s for s, at in tracks[r] if at >= base])) for r in shown):
            base += 1
        for rank, group in groups.items():
            free_s = defaultdict(lambda: -np.inf)
            for span in group:
                track = base
                while free_s[track] > span.start_s + _SLACK * (span.end_s - span.start_s):
                    track += 1
                free_s[track] = span.end_s
                tracks[rank].append((span, track))
    high = 0.8 / (1 + max(at for placed in tracks.values() for _, at in placed))
    boxes = []
    for lane, placed in enumerate(tracks.values()):
        everything = [span for span, _ in placed]
        for (span, at), clashes in zip(placed, _clashes(everything, everything), strict=True):
            alone = span.kind == "compute" and clashes <= 1  # itself
            boxes.append((span, lane - 0.4, 0.8) if alone else (span, lane - 0.4 + at * high, high))
    return boxes


def _group(span):
    own = span.kind == "compute" or (span.kind == "wait" and span.peer is None)
    return "own" if own else "out" if span.kind == "send" else "in"


def _clashes(group, others):
    """For each span of `group`: how many of `others` it overlaps for more than `_SLACK` of its length."""
    starts, ends = (np.array([getattr(span, edge) for span in others]) for edge in ("start_s", "end_s"))
    overlaps = ((np.minimum(ends, s.end_s) - np.maximum(starts, s.start_s), s.end_s - s.start_s) for s in group)
    return [np.count_nonzero(overlap > _SLACK * length) for overlap, length in overlaps]
