"""Exercises of lesson 26: one token with a cache, who joins the batch, the slowest answers, and how many replicas."""

import torch

from lessons_lib.exercises.cases import drawn
from lessons_lib.exercises.core import Exercise, edit

# --- kv_cache: attention of one new token ----------------------------------------------------------------------------


def kv_cache(q, k, v, keys, values):
    """Return (output, keys, values): the attention of one new token, and the cache with the new token at its end.

    q, k, v: of the new token, each a tensor (H, d): H heads with d numbers each.
    keys, values: of the n tokens before it, each a tensor (H, n, d); n may be 0. Do not change them.
    Each head divides its scores by the square root of d. The new token sees all before it and itself; the output is
        (H, d), and the new keys and values are (H, n + 1, d).
    """
    keys = torch.cat([keys, k.unsqueeze(1)], dim=1)
    values = torch.cat([values, v.unsqueeze(1)], dim=1)
    scores = (keys @ q.unsqueeze(2)).squeeze(2) / q.shape[1] ** 0.5
    weights = scores.softmax(dim=1)
    return (weights.unsqueeze(1) @ values).squeeze(1), keys, values


def _without_itself(q, k, v, keys, values):
    """Your token sees only those before it. It sees itself, too: put its key and value into the cache first."""
    scores = (keys @ q.unsqueeze(2)).squeeze(2) / q.shape[1] ** 0.5
    output = (scores.softmax(dim=1).unsqueeze(1) @ values).squeeze(1)
    return output, torch.cat([keys, k.unsqueeze(1)], dim=1), torch.cat([values, v.unsqueeze(1)], dim=1)


def _forgets(q, k, v, keys, values):
    """You give back the cache as it was. The next token would not see this one."""
    return kv_cache.reference(q, k, v, keys, values)[0], keys, values


def _at_the_front(q, k, v, keys, values):
    """Your new key and value come first in the cache. The output is the same, but tokens stand in their order: the new
    one is the last."""
    output, _, _ = kv_cache.reference(q, k, v, keys, values)
    return output, torch.cat([k.unsqueeze(1), keys], dim=1), torch.cat([v.unsqueeze(1), values], dim=1)


def _cached(num_heads, num_tokens, width, seed=0, dtype=torch.float32):
    new = [drawn(num_heads, width, seed=seed + i, dtype=dtype) for i in range(3)]
    old = [drawn(num_heads, num_tokens, width, seed=seed + i, dtype=dtype) for i in range(3, 5)]
    return *new, *old


kv_cache = Exercise(
    kv_cache,
    [
        _cached(2, 3, 4),
        _cached(2, 4, 4, seed=70),  # another text, as long as the first one is now
        _cached(1, 1, 2, seed=10),
        _cached(3, 0, 4, seed=20),  # the first token: it sees itself alone
        _cached(4, 7, 4, seed=30),  # as many heads as numbers
        _cached(1, 12, 1, seed=40),
        _cached(2, 5, 3, seed=50, dtype=torch.float64),
        (1e4 * drawn(1, 2), drawn(1, 2, seed=1), drawn(1, 2, seed=2), drawn(1, 3, 2, seed=3), drawn(1, 3, 2, seed=4)),
    ],
    [
        _without_itself,
        _forgets,
        _at_the_front,
        edit(" / q.shape[1] ** 0.5", "", "The scores are not divided by the square root of d."),
        edit("q.shape[1] ** 0.5", "q.numel() ** 0.5", "Divide by the square root of d, the width of one head."),
        edit("softmax(dim=1)", "softmax(dim=0)", "Your softmax goes over the heads. It goes over the tokens, in each."),
    ],
    [
        "Begin with the cache: what has to be in it before the token looks?",
        "The new key goes to the end of dimension 1, as (H, 1, d); the value, too.",
        "The scores are one product of `keys` (H, n + 1, d) and `q` (H, d, 1); their softmax goes over n + 1 tokens.",
    ],
)


# --- next_batch: who joins -------------------------------------------------------------------------------------------


def next_batch(waiting, num_running, max_batch, num_free, block_size):
    """Return the list of names of the sequences that join the batch now.

    waiting: a list of (name, num_tokens), from the one that has waited longest; num_tokens is at least 1, and no two
        names are alike. Do not change it.
    num_running: how many sequences run already; at most `max_batch` may run at once.
    num_free: how many blocks are free. A sequence that joins takes whole blocks, enough for its num_tokens.
    block_size: tokens per block.
    Nobody overtakes: where one cannot join, those behind it wait, too.
    """
    names = []
    for name, num_tokens in waiting:
        needed = -(-num_tokens // block_size)
        if num_running + len(names) >= max_batch or needed > num_free:
            break
        num_free -= needed
        names.append(name)
    return names


def _overtaken(waiting, num_running, max_batch, num_free, block_size):
    """You let short sequences overtake one that does not fit. While short ones keep coming, it would wait for ever:
    stop at the first that cannot join."""
    names = []
    for name, num_tokens in waiting:
        needed = -(-num_tokens // block_size)
        if num_running + len(names) < max_batch and needed <= num_free:
            num_free -= needed
            names.append(name)
    return names


def _tokens_only(waiting, num_running, max_batch, num_free, block_size):
    """You count tokens as if all free places were one piece. A block belongs to one sequence: each takes whole
    blocks."""
    names, places = [], num_free * block_size
    for name, num_tokens in waiting:
        if num_running + len(names) >= max_batch or num_tokens > places:
            break
        places -= num_tokens
        names.append(name)
    return names


def _alone(waiting, num_running, max_batch, num_free, block_size):
    """You take the batch as if it were empty: those that run already count towards `max_batch`."""
    return next_batch.reference(waiting, 0, max_batch, num_free, block_size)


next_batch = Exercise(
    next_batch,
    [
        ([("a", 20), ("b", 5), ("c", 40)], 1, 8, 10, 16),
        ([("a", 16), ("b", 17), ("c", 1)], 0, 8, 3, 16),  # exactly one block, and one more token
        ([("a", 16), ("b", 17), ("c", 1)], 0, 8, 4, 16),  # the last block goes, too
        ([("a", 100), ("b", 1), ("c", 1)], 0, 8, 3, 16),  # the first does not fit: nobody overtakes
        ([("a", 1), ("b", 100), ("c", 1)], 0, 8, 3, 16),
        ([("a", 1), ("b", 1), ("c", 1), ("d", 1)], 2, 4, 100, 16),  # only two places in the batch
        ([("a", 1), ("b", 1), ("c", 1)], 0, 3, 100, 16),
        ([("a", 1), ("b", 1)], 4, 4, 100, 16),  # the batch is full
        ([("a", 1), ("b", 1)], 1, 4, 0, 16),  # no block is free
        ([("a", 3), ("b", 2), ("c", 4)], 0, 8, 8, 1),  # one token per block
        ([("a", 9), ("b", 9), ("c", 9)], 0, 8, 4, 8),  # 27 tokens and 32 places, but 6 blocks and 4
        ([("b", 8), ("a", 8)], 0, 1, 9, 4),  # order is that of waiting, not of names
        ([("c", 8), ("a", 8), ("b", 30)], 0, 4, 9, 4),
        ([("a", 16), ("b", 16)], 2, 8, 2, 16),  # those that run have their blocks already
        ([], 0, 4, 8, 16),
    ],
    [
        _overtaken,
        _tokens_only,
        _alone,
        edit("-(-num_tokens // block_size)", "num_tokens // block_size", "17 tokens need two blocks of 16: round up."),
        edit(
            "-(-num_tokens // block_size)",
            "num_tokens // block_size + 1",
            "16 tokens fill one block of 16: there is no second.",
        ),
        edit("num_free -= needed", "pass", "The blocks of those that join are no longer free for the next."),
        edit("needed > num_free", "needed >= num_free", "A sequence may take the last free blocks, too."),
    ],
    [
        "Go through those who wait, in order, and stop at the first who cannot join. What are the two reasons?",
        "It needs its tokens divided by `block_size`, rounded up: `-(-num_tokens // block_size)` blocks.",
        "Whoever joins makes the batch longer by one and the free blocks fewer.",
    ],
)


# --- latency_percentile: the slowest answers of a queue --------------------------------------------------------------


def latency_percentile(arrivals_s, services_s, percent):
    """Return a percentile of the latencies of a queue, in seconds.

    arrivals_s: when each request comes, in order, from 0 on; at least one.
    services_s: how long each keeps the one server busy, which serves whoever came first. Before the first it is free.
    percent: a whole number p from 1 to 100.
    A latency is the time from arrival until the request is done, waiting included. The p-th percentile is the least
        latency that at least p % of all latencies do not exceed: one of the latencies, nothing between two.
    """
    done_s, latencies_s = arrivals_s[0], []
    for arrival_s, service_s in zip(arrivals_s, services_s, strict=True):
        done_s = max(done_s, arrival_s) + service_s
        latencies_s.append(done_s - arrival_s)
    return sorted(latencies_s)[-(-percent * len(latencies_s) // 100) - 1]


def _no_queue(arrivals_s, services_s, percent):
    """Your requests do not wait for one another: a service begins when the one before is done."""
    return sorted(services_s)[-(-percent * len(services_s) // 100) - 1]


def _waits_only(arrivals_s, services_s, percent):
    """You give a percentile of the waits. A latency has the request's own service in it."""
    done_s, waits_s = 0.0, []
    for arrival_s, service_s in zip(arrivals_s, services_s, strict=True):
        waits_s.append(max(done_s, arrival_s) - arrival_s)
        done_s = max(done_s, arrival_s) + service_s
    return sorted(waits_s)[-(-percent * len(waits_s) // 100) - 1]


def _between_two(arrivals_s, services_s, percent):
    """Your percentile lies between two latencies, and nobody met it. Take the least latency that at least p % do not
    exceed."""
    done_s, latencies_s = 0.0, []
    for arrival_s, service_s in zip(arrivals_s, services_s, strict=True):
        done_s = max(done_s, arrival_s) + service_s
        latencies_s.append(done_s - arrival_s)
    return torch.tensor(latencies_s, dtype=torch.float64).quantile(percent / 100).item()


def _busy_without_pause(arrivals_s, services_s, percent):
    """Your server begins the next service at once, also where the next request is not there yet: it waits for it."""
    done_s, latencies_s = arrivals_s[0], []
    for arrival_s, service_s in zip(arrivals_s, services_s, strict=True):
        done_s += service_s
        latencies_s.append(done_s - arrival_s)
    return sorted(latencies_s)[-(-percent * len(latencies_s) // 100) - 1]


_HUNDRED = [float(i) for i in range(100)], [i / 128 for i in range(100)]
_MANY = [0.25 * i for i in range(200)], [(37 * i % 11) / 32 for i in range(200)]

latency_percentile = Exercise(
    latency_percentile,
    [
        ([0.0, 1.0, 2.0, 3.0], [2.0, 0.5, 0.5, 2.0], 50),
        ([0.0, 1.0, 2.0, 3.0], [2.0, 0.5, 0.5, 2.0], 75),
        ([0.0, 1.0, 2.0, 3.0], [2.0, 0.5, 0.5, 2.0], 76),  # more than three of four
        ([0.0, 1.0, 2.0, 3.0], [2.0, 0.5, 0.5, 2.0], 99),
        ([0.0, 1.0, 2.0, 3.0], [2.0, 0.5, 0.5, 2.0], 100),
        ([0.0, 1.0, 2.0, 3.0], [2.0, 0.5, 0.5, 2.0], 1),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 4.0], 99),  # all at once
        ([0.0, 1.0, 2.0], [4.0, 3.0, 1.0], 50),  # the short one does not overtake
        ([0.0, 10.0, 20.0, 30.0], [1.0, 1.0, 1.0, 2.0], 75),  # three alike
        ([0.0, 10.0, 20.0], [1.0, 2.0, 3.0], 50),  # nobody waits
        ([5.0, 5.5, 30.0], [1.0, 1.0, 0.25], 99),  # the server waits before the first, and before the last
        ([5.0, 5.5, 30.0], [1.0, 1.0, 0.25], 34),
        ([3.0], [0.5], 1),
        ([3.0], [0.5], 99),
        (*_MANY, 99),  # 198 of 200
        (*_MANY, 7),
        *((*_HUNDRED, percent) for percent in (7, 14, 29, 55, 57, 83, 99)),  # 0.29 · 100 is not 29 in floats
        ([float(i) for i in range(101)], [i / 128 for i in range(101)], 100),  # 101 of 101
    ],
    [
        _no_queue,
        _waits_only,
        _between_two,
        _busy_without_pause,
        edit(
            "-(-percent * len(latencies_s) // 100) - 1",
            "min(len(latencies_s) - 1, percent * len(latencies_s) // 100)",
            "Your latency is one too far: of 100 sorted latencies the 99th has the place 98, counted from 0.",
        ),
        edit("sorted(latencies_s)", "latencies_s", "Sort the latencies before you count to the p-th percentile."),
    ],
    [
        "When does the service of a request begin? It needs two things: the request, and a free server.",
        "Its service begins at the later of its arrival and the end of the one before.",
        "Of n sorted latencies it is number p · n / 100, rounded up, counted from 1; with whole numbers alone: "
        "`-(-percent * n // 100)`.",
    ],
)


# --- scale_rule: replicas with hysteresis ----------------------------------------------------------------------------


def scale_rule(rates, per_replica, patience, least, most):
    """Return a list: how many replicas run after each decision.

    rates: requests per second as seen at each decision, whole numbers. Do not change it.
    per_replica: requests per second that one replica may get, a whole number of at least 1.
    A decision wants as few replicas as its rate allows, but at least `least` and at most `most`, which is no less.
        There run as many as the largest number that was wanted at this decision and the `patience` - 1 decisions
        before it, as far as there are so many; patience is at least 1. So more are started at once, and fewer run late.
    Example: rates [1, 5, 1, 1] with per_replica 2, patience 2, least 1 and most 9 give [1, 3, 3, 1].
    """
    wanted = [min(most, max(least, -(-rate // per_replica))) for rate in rates]
    return [max(wanted[max(0, i - patience + 1) : i + 1]) for i in range(len(wanted))]


def _at_once(rates, per_replica, patience, least, most):
    """You stop replicas as soon as the rate falls. It may rise again in a moment, and a start takes long: wait until
    `patience` decisions in a row wanted fewer."""
    return scale_rule.reference(rates, per_replica, 1, least, most)


def _slow_both_ways(rates, per_replica, patience, least, most):
    """You wait before you start replicas, too. People wait meanwhile: start at once, and be patient with stopping."""
    wanted = scale_rule.reference(rates, per_replica, 1, least, most)
    replicas = []
    for i in range(len(wanted)):
        last = wanted[max(0, i - patience + 1) : i + 1]
        now = replicas[-1] if replicas else 0
        replicas.append(min(last) if min(last) > now else max(last) if max(last) < now else now)
    return replicas


def _at_the_mean(rates, per_replica, patience, least, most):
    """You take the mean of the last decisions. It starts too few when the rate rises: take the largest."""
    wanted = scale_rule.reference(rates, per_replica, 1, least, most)
    windows = [wanted[max(0, i - patience + 1) : i + 1] for i in range(len(wanted))]
    return [-(-sum(window) // len(window)) for window in windows]


def _down_to_the_last(rates, per_replica, patience, least, most):
    """After `patience` decisions that wanted fewer you go down to what the last one wants. Another of them may have
    wanted more: keep the largest number that was wanted at any of them."""
    now, count, replicas = 0, 0, []
    for number in scale_rule.reference(rates, per_replica, 1, least, most):
        count = count + 1 if number < now else 0
        if number > now or count == patience:
            now, count = number, 0
        replicas.append(now)
    return replicas


scale_rule = Exercise(
    scale_rule,
    [
        ([5, 25, 25, 5, 5, 5, 5], 10, 3, 0, 9),
        ([5, 25, 5, 25, 5, 25, 5, 5], 10, 3, 0, 9),  # it rises again each time
        ([95, 35, 25, 5, 5, 5, 5, 5], 10, 3, 0, 9),  # down in steps
        ([30, 30, 20, 31, 10, 10], 10, 2, 0, 9),  # exactly full, and one more
        ([0, 0, 7, 0, 0, 0, 0], 10, 3, 0, 9),  # to zero and back
        ([0, 0, 7, 25, 0, 0, 0, 0], 10, 3, 2, 9),  # two stay
        ([5, 500, 5, 5, 5], 10, 2, 1, 4),  # four are all there are
        ([40, 10, 20, 10], 10, 1, 0, 9),  # no patience
        ([40, 10, 10], 10, 10, 0, 9),  # patience beyond the end
        ([3, 2, 1], 1, 2, 0, 9),
        ([10, 50, 20, 40, 10, 10, 10, 10], 10, 3, 0, 9),
        ([7], 10, 3, 0, 9),
        ([525], 75, 1, 0, 20),  # 525 times a rounded 1 / 75 is more than 7
        ([], 10, 3, 1, 9),
    ],
    [
        _at_once,
        _slow_both_ways,
        _at_the_mean,
        _down_to_the_last,
        edit("-(-rate // per_replica)", "rate // per_replica", "25 requests at 10 each need three replicas: round up."),
        edit(
            "-(-rate // per_replica)",
            "rate // per_replica + 1",
            "30 requests need exactly three replicas for 10 each, and none need none.",
        ),
        edit("i - patience + 1", "i - patience", "Your window has one decision too many: this one counts, too."),
    ],
    [
        "First how many each decision wants, by itself: its rate over `per_replica`, rounded up, between the limits.",
        "Then look back from each decision over `patience` of them, itself included.",
        "The largest number in that window runs. A slice from `max(0, i - patience + 1)` to `i + 1` is the window.",
    ],
)
