"""Other answers to the exercises of lesson 20."""

import heapq
from itertools import pairwise


def by_points_of_time(waits, num_ranks):
    """Between two neighbouring points of time nobody begins or ends to wait."""
    points = sorted({point for *_, start, end in waits for point in (start, end)})
    totals = dict.fromkeys(range(num_ranks), 0.0)
    for start, end in pairwise(points):
        waiting = [(rank, peer) for rank, peer, s, e in waits if s <= start and end <= e]
        for _, peer in waiting:
            if peer not in {rank for rank, _ in waiting}:
                totals[peer] += end - start
    return list(totals.values())


def by_direct_blame(waits, num_ranks):
    """The last of a chain of waits gets the time of everybody in it."""
    points = sorted({point for *_, start, end in waits for point in (start, end)})
    totals = [0.0] * num_ranks
    for start, end in pairwise(points):
        waits_for = {rank: peer for rank, peer, s, e in waits if s <= start and end <= e}
        for rank in waits_for:
            last, seen = rank, set()
            while last in waits_for and last not in seen:
                seen.add(last)
                last = waits_for[last]
            totals[last] += end - start
    return totals


def shares_by_a_heap(num_samples, speeds):
    ready = [(1 / speed, rank) for rank, speed in enumerate(speeds)]
    heapq.heapify(ready)
    shares = [0] * len(speeds)
    for _ in range(num_samples):
        _, rank = heapq.heappop(ready)
        shares[rank] += 1
        heapq.heappush(ready, ((shares[rank] + 1) / speeds[rank], rank))
    return shares


def shares_from_floors(num_samples, speeds):
    shares = [int(num_samples * speed / sum(speeds)) for speed in speeds]
    while sum(shares) < num_samples:
        shares[min(range(len(speeds)), key=lambda rank: (shares[rank] + 1) / speeds[rank])] += 1
    return shares


def shares_from_the_last(num_samples, speeds):
    return shares_by_a_heap(num_samples, speeds[::-1])[::-1]


def shares_of_at_least_one(num_samples, speeds):
    """Everybody gets one first."""
    shares = [1] * len(speeds)
    for _ in range(num_samples - len(speeds)):
        shares[min(range(len(speeds)), key=lambda rank: (shares[rank] + 1) / speeds[rank])] += 1
    return shares


def changes_by_looking_back(now_s, best_s, gain, patience, begins_anew=True):
    worth, changes, promised = [], [], None
    for step in range(len(best_s)):
        present = now_s[step] if promised is None else max(promised, best_s[step])
        worth.append(present > best_s[step] * (1 + gain))
        if len(worth) >= patience and all(worth[-patience:]):
            changes.append(step)
            promised, worth = best_s[step], [] if begins_anew else worth
    return changes


def changes_that_keep_their_count(now_s, best_s, gain, patience):
    """After a change each further step that is worth it counts at once."""
    return changes_by_looking_back(now_s, best_s, gain, patience, begins_anew=False)


alternatives = {
    "own_doing": [by_points_of_time],
    "best_shares": [shares_by_a_heap, shares_from_floors, shares_from_the_last],
    "when_to_change": [changes_by_looking_back],
}
wrong = {
    "own_doing": [by_direct_blame],
    "best_shares": [shares_of_at_least_one],
    "when_to_change": [changes_that_keep_their_count],
}
