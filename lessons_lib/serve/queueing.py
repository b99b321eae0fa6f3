"""How long requests wait, from how many come and how long each takes: formulas, and a simulation beside them.

Requests come at random (Poisson) with rate λ per second; each keeps one of c servers busy for S seconds, on average
E[S]. The load of a server is ρ = λ E[S] / c. A batch of c sequences is c servers, as long as a step takes about as long
with one sequence as with c.

Source: Harchol-Balter, Performance Modeling and Design of Computer Systems (2013), chapters 13, 14 and 23.
"""

import heapq
import math
import random
from itertools import pairwise
from numbers import Real

from ..errors import check_whole


def utilisation(rate, service_s, servers=1):
    """ρ = λ E[S] / c, the share of the time in which a server is busy; from 1 on, the queue only grows.

    Args:
        rate: λ, requests per second, at least 0.
        service_s: E[S], seconds, above 0.
        servers: c, a whole number of at least 1.

    Raises:
        ValueError: an argument is outside what is said above.
    """
    check_whole("servers", servers, 1)
    _check("rate", rate, 0 <= rate < math.inf if isinstance(rate, Real) else False, "a finite number of at least 0")
    _check("service_s", service_s, isinstance(service_s, Real) and 0 < service_s < math.inf, "a finite number above 0")
    return rate * service_s / servers


def _check(name, value, right, needed):
    if not right:
        raise ValueError(f"{name}={value!r}: {needed} is needed")


def erlang_c(rate, service_s, servers=1):
    """The probability that a request has to wait, in M/M/c: 1 from ρ = 1 on.

    With a = λ E[S] it is  (a^c / c!) / (1 - ρ) over Σ_{k<c} a^k / k! + (a^c / c!) / (1 - ρ),  computed through the
    share B_c of requests that c servers without a queue would lose: B_k = a B_{k-1} / (k + a B_{k-1}), B_0 = 1.
    """
    rho = utilisation(rate, service_s, servers)
    if rho >= 1:
        return 1.0
    offered, lost = rho * servers, 1.0
    for k in range(1, servers + 1):
        lost = offered * lost / (k + offered * lost)
    return lost / (1 - rho * (1 - lost))


def mean_wait_s(rate, service_s, servers=1):
    """How long a request waits on average before its service, in M/M/c: erlang_c / (c / E[S] - λ); inf from ρ = 1 on.

    With one server it is ρ / (1 - ρ) · E[S].
    """
    if utilisation(rate, service_s, servers) >= 1:
        return math.inf
    return erlang_c(rate, service_s, servers) / (servers / service_s - rate)


def pollaczek_khinchine_s(rate, service_s, variation):
    """The mean wait with one server and service times of any distribution, M/G/1: inf from ρ = 1 on.

        ρ / (1 - ρ) · E[S] · (1 + C²) / 2

    Args:
        rate, service_s: as in `utilisation`.
        variation: C, the standard deviation of S over its mean; 0 where all take equally long, 1 in M/M/1.

    Raises:
        ValueError: an argument is outside what is said above.
    """
    _check("variation", variation, isinstance(variation, Real) and 0 <= variation < math.inf, "a number of at least 0")
    rho = utilisation(rate, service_s)
    return math.inf if rho >= 1 else rho / (1 - rho) * service_s * (1 + variation**2) / 2


def knee(service_s, servers=1, slowdown=2.0):
    """The rate at which a request takes `slowdown` times its service on average, waiting included; found by halving.

    In M/M/1 it is (1 - 1 / slowdown) / E[S]: half of the capacity, for twice the time.

    Args:
        service_s, servers: as in `utilisation`, of M/M/c.
        slowdown: above 1.

    Returns:
        λ, in requests per second.

    Raises:
        ValueError: an argument is outside what is said above.
    """
    _check("slowdown", slowdown, isinstance(slowdown, Real) and 1 < slowdown < math.inf, "a finite number above 1")
    utilisation(0, service_s, servers)
    low, high = 0.0, servers / service_s
    for _ in range(100):
        middle = (low + high) / 2
        if mean_wait_s(middle, service_s, servers) < (slowdown - 1) * service_s:
            low = middle
        else:
            high = middle
    return low


def waits_s(rate, service, servers=1, num_requests=100_000, seed=0):
    """Simulate a queue in which whoever came first is served first.

    Args:
        rate: λ, of Poisson arrivals.
        service: called with a `random.Random`, it gives the seconds of one service.
        servers: c.
        num_requests: how many come; the queue is empty before the first.
        seed: of arrivals and services.

    Returns:
        How long each request waited before its service: a list of seconds, in order of arrival.
    """
    check_whole("num_requests", num_requests, 0)
    utilisation(rate, 1.0, servers)
    source, now_s, arrivals, services = random.Random(seed), 0.0, [], []
    for _ in range(num_requests):
        now_s += source.expovariate(rate)
        arrivals.append(now_s)
        services.append(service(source))
    return waits_of(arrivals, services, servers)


def waits_of(arrivals_s, services_s, servers=1):
    """How long given requests wait before their service, where whoever came first is served first.

    Args:
        arrivals_s: when each comes, in order.
        services_s: how long each keeps one of `servers` busy.

    Returns:
        A list of seconds, in order of arrival.

    Raises:
        ValueError: there are not as many services as arrivals, or a later arrival comes first.
    """
    check_whole("servers", servers, 1)
    if any(later < earlier for earlier, later in pairwise(arrivals_s)):
        raise ValueError("arrivals_s are not in order: the first one first is needed")
    free_at_s, waits = [-math.inf] * servers, []
    for arrival_s, service_s in zip(arrivals_s, services_s, strict=True):
        begin_s = max(arrival_s, heapq.heappop(free_at_s))
        heapq.heappush(free_at_s, begin_s + service_s)
        waits.append(begin_s - arrival_s)
    return waits


def mean_and_error(values, num_groups=50):
    """The mean of values that depend on their neighbours, and its standard error, from the means of groups in a row.

    Raises:
        ValueError: there are fewer values than groups.
    """
    size = len(values) // num_groups
    if not size:
        raise ValueError(f"values has {len(values)}: at least num_groups={num_groups} are needed")
    means = [math.fsum(values[i * size : (i + 1) * size]) / size for i in range(num_groups)]
    mean = math.fsum(means) / num_groups
    variance = math.fsum((m - mean) ** 2 for m in means) / (num_groups - 1)
    return mean, math.sqrt(variance / num_groups)
