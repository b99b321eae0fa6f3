"""Replicas that start and stop with the load: what they cost, and which share of requests is answered in time.

A simulation in events: requests come at random with a rate that follows the hour; each replica serves one request at a
time; now and then a rule says how many replicas there should be. One that starts costs from then on, and serves later.
One that is too many ends when it has nothing to do.
"""

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field

from ..errors import check_whole

HOUR_S = 3600.0
# Requests per second relative to the busiest hour, hour by hour: few at night, most in the afternoon.
DAY = (
    *(0.15, 0.10, 0.05, 0.02, 0.02, 0.05, 0.15, 0.30, 0.55, 0.75, 0.85, 0.90),
    *(0.85, 0.90, 1.00, 1.00, 0.95, 0.85, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25),
)


@dataclass(frozen=True)
class Service:
    """What is served.

    Attributes:
        service_s: seconds of one request on one replica, on average; exponentially distributed.
        start_s: from the decision to start a replica until it serves.
        within_s: the service level: an answer is in time if it is done so many seconds after its request.
        every_s: how far apart two decisions are.
    """

    service_s: float
    start_s: float
    within_s: float
    every_s: float = 30.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not 0 <= value < math.inf or (value == 0 and name != "start_s"):
                raise ValueError(f"{name}={value!r}: a finite number above 0 is needed (start_s may be 0)")


@dataclass
class Outcome:
    """What came of a day.

    Attributes:
        in_time: the share of all requests that were answered in time; 1 if none came.
        replica_hours: what was paid for, starting included.
        num_requests: how many came; all were answered.
        latencies_s: of each, from arrival to answer, in order of arrival.
        replicas: (time_s, how many were wanted) at each decision.
    """

    in_time: float
    replica_hours: float
    num_requests: int
    latencies_s: list = field(repr=False)
    replicas: list = field(repr=False)


def fixed(count):
    """The rule that never changes: `count` replicas."""
    return lambda seen: count


def follow(target=0.7, least=0, most=100):
    """The rule that keeps each replica busy for the share `target` of the time, and works off what is waiting.

    Args:
        target: above 0 and at most 1.
        least: 0 scales to zero: with no request in sight, nothing runs, and the next one waits for a start.
        most: replicas.
    """

    def rule(seen):
        busy = seen["rate"] * seen["service_s"] / target + seen["waiting"] * seen["service_s"] / seen["within_s"]
        return min(most, max(least, math.ceil(busy), 1 if seen["waiting"] or seen["serving"] else 0))

    return rule


class _Day:
    """One simulation under way."""

    def __init__(self, service, rule, seed):
        self.service, self.rule, self.source = service, rule, random.Random(seed)
        self.events, self.order = [], 0
        self.waiting, self.recent = deque(), deque()
        self.idle, self.busy, self.starting, self.wanted = 0, 0, 0, 0
        self.paid_s, self.last_s, self.latencies, self.replicas = 0.0, 0.0, [], []

    def at(self, time_s, what, *about):
        self.order += 1
        heapq.heappush(self.events, (time_s, self.order, what, about))

    def run(self):
        while self.events:
            now_s, _, what, about = heapq.heappop(self.events)
            self.paid_s += (now_s - self.last_s) * (self.idle + self.busy + self.starting)
            self.last_s = now_s
            what(now_s, *about)
            while self.waiting and self.idle:
                arrived_s = self.waiting.popleft()
                self.idle, self.busy = self.idle - 1, self.busy + 1
                self.at(now_s + self.source.expovariate(1 / self.service.service_s), self.done, arrived_s)
            self.idle -= min(self.idle, max(0, self.idle + self.busy + self.starting - self.wanted))

    def arrive(self, now_s):
        self.waiting.append(now_s)
        self.recent.append(now_s)

    def done(self, now_s, arrived_s):
        self.latencies.append((arrived_s, now_s - arrived_s))
        self.idle, self.busy = self.idle + 1, self.busy - 1

    def started(self, now_s):
        self.idle, self.starting = self.idle + 1, self.starting - 1

    def decide(self, now_s, end_s):
        window_s = min(max(now_s, self.service.every_s), 4 * self.service.every_s)
        while self.recent and self.recent[0] < now_s - window_s:
            self.recent.popleft()
        seen = {"rate": len(self.recent) / window_s, "waiting": len(self.waiting), "serving": self.busy}
        seen |= {"replicas": self.idle + self.busy + self.starting, "time_s": now_s}
        self.wanted = self.rule(seen | vars(self.service))
        check_whole("what the rule gives", self.wanted, 0)
        self.replicas.append((now_s, self.wanted))
        if now_s >= end_s and self.waiting and not max(self.wanted, seen["replicas"]):
            raise ValueError(f"rule: it wants no replica, and {len(self.waiting)} requests wait for ever")
        for _ in range(self.wanted - seen["replicas"]):
            self.starting += 1
            self.at(now_s + self.service.start_s, self.started)
        if now_s < end_s or self.waiting:
            self.at(now_s + self.service.every_s, self.decide, end_s)


def simulate_day(service, rule, peak_rate, day=DAY, seed=0):
    """Let the requests of a day come, and count what they cost and how many were answered in time.

    Args:
        service: `Service`.
        rule: called with {"rate", "waiting", "serving", "replicas", "time_s"} and the attributes of `service`, it says
            how many replicas there should be: `fixed`, `follow`, or another.
        peak_rate: requests per second where `day` is 1.
        day: the rate of each hour, relative to `peak_rate`.
        seed: of arrivals and services.

    Returns:
        `Outcome`. The replicas of the rule at time 0 are paid for from then on, and start up like all others.

    Raises:
        ValueError: an argument is no such number, or requests wait at the end and the rule wants no replica.
    """
    if not 0 <= peak_rate < math.inf or min(day, default=0) < 0:
        raise ValueError(f"peak_rate={peak_rate!r}, day={day!r}: finite numbers of at least 0 are needed")
    run, source = _Day(service, rule, seed), random.Random(f"{seed}/arrivals")
    for hour, share in enumerate(day):
        time_s = hour * HOUR_S
        while share * peak_rate and (time_s := time_s + source.expovariate(share * peak_rate)) < (hour + 1) * HOUR_S:
            run.at(time_s, run.arrive)
    num_requests = len(run.events)
    run.at(0.0, run.decide, len(day) * HOUR_S)
    run.run()
    latencies = [latency_s for _, latency_s in sorted(run.latencies)]
    in_time = sum(latency_s <= service.within_s for latency_s in latencies) / max(1, num_requests)
    return Outcome(in_time if num_requests else 1.0, run.paid_s / HOUR_S, num_requests, latencies, run.replicas)
