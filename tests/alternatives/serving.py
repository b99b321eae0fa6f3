"""Other answers to the exercises of lesson 26."""

import math

import torch
from torch.nn.functional import scaled_dot_product_attention


def cache_by_torchs_attention(q, k, v, keys, values):
    keys = torch.cat([keys, k[:, None]], dim=1)
    values = torch.cat([values, v[:, None]], dim=1)
    return scaled_dot_product_attention(q[:, None], keys, values)[:, 0], keys, values


def cache_head_by_head(q, k, v, keys, values):
    grown = [torch.stack([*old, new]) for old, new in zip(keys, k, strict=True)]
    carried = [torch.stack([*old, new]) for old, new in zip(values, v, strict=True)]
    outputs = []
    for head, (key, value) in enumerate(zip(grown, carried, strict=True)):
        weights = torch.softmax(key @ q[head] / math.sqrt(len(q[head])), dim=0)
        outputs.append(weights @ value)
    return torch.stack(outputs), torch.stack(grown), torch.stack(carried)


def batch_by_prefixes(waiting, num_running, max_batch, num_free, block_size):
    """The longest beginning of the queue that fits."""
    best = []
    for count in range(min(len(waiting), max_batch - num_running) + 1):
        first = waiting[:count]
        if sum(math.ceil(tokens / block_size) for _, tokens in first) <= num_free:
            best = [name for name, _ in first]
    return best


def shortest_first(waiting, num_running, max_batch, num_free, block_size):
    return batch_by_prefixes(sorted(waiting, key=lambda each: each[1]), num_running, max_batch, num_free, block_size)


def percentile_by_waits(arrivals_s, services_s, percent):
    """Lindley's recursion of the waits, and a count of the latencies at most as long."""
    wait_s, latencies_s = 0.0, [services_s[0]]
    for i in range(1, len(arrivals_s)):
        wait_s = max(0.0, wait_s + services_s[i - 1] - (arrivals_s[i] - arrivals_s[i - 1]))
        latencies_s.append(wait_s + services_s[i])
    enough = [x for x in latencies_s if 100 * sum(y <= x for y in latencies_s) >= percent * len(latencies_s)]
    return min(enough)


def percentile_rounded(arrivals_s, services_s, percent):
    """The place is rounded to the nearest, and not up."""
    wait_s, latencies_s = 0.0, [services_s[0]]
    for i in range(1, len(arrivals_s)):
        wait_s = max(0.0, wait_s + services_s[i - 1] - (arrivals_s[i] - arrivals_s[i - 1]))
        latencies_s.append(wait_s + services_s[i])
    return sorted(latencies_s)[max(1, round(percent * len(latencies_s) / 100)) - 1]


def replicas_step_by_step(rates, per_replica, patience, least, most):
    last, replicas = [], []
    for rate in rates:
        last = [*last, min(max(math.ceil(rate / per_replica), least), most)][-patience:]
        replicas.append(max(last))
    return replicas


def replicas_one_at_a_time(rates, per_replica, patience, least, most):
    """Down by one replica at most at each decision."""
    replicas = []
    for number in replicas_step_by_step(rates, per_replica, patience, least, most):
        replicas.append(max(number, replicas[-1] - 1) if replicas else number)
    return replicas


alternatives = {
    "kv_cache": [cache_by_torchs_attention, cache_head_by_head],
    "next_batch": [batch_by_prefixes],
    "latency_percentile": [percentile_by_waits],
    "scale_rule": [replicas_step_by_step],
}
wrong = {
    "next_batch": [shortest_first],
    "latency_percentile": [percentile_rounded],
    "scale_rule": [replicas_one_at_a_time],
}
