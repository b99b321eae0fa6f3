"""An open-loop load generator: requests come at random times that were drawn before, however slow the answers are.

A closed loop, in which each client waits for its answer before it asks again, slows down with the server, and so hides
how long people would wait. For the same reason a time is counted from when a request should have been sent.

Source: Schroeder, Wierman and Harchol-Balter, Open Versus Closed: A Cautionary Tale (2006), §2; Tene, How NOT to
    Measure Latency (2013), for the second.
"""

import http.client
import json
import math
import random
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..errors import check_whole


@dataclass
class Timing:
    """What one request met; times in seconds from the start of the run.

    Attributes:
        due_s: when it should be sent.
        status: of the answer: 200, 429, ...; 0 if none came.
        first_s, last_s: when its first and its last piece of text came; None where no text came.
        num_tokens: that it got, as the server counts them.
        finished: whether the stream ended as it should, with [DONE], and with no error in it.
    """

    due_s: float
    status: int = 0
    first_s: float | None = None
    last_s: float | None = None
    num_tokens: int = 0
    finished: bool = False

    @property
    def ttft_s(self):
        """Time to first token."""
        return self.first_s - self.due_s

    @property
    def tpot_s(self):
        """Time per output token after the first; nan where there is none."""
        return (self.last_s - self.first_s) / (self.num_tokens - 1) if self.num_tokens > 1 else math.nan

    @property
    def latency_s(self):
        """Until the last token."""
        return self.last_s - self.due_s


@dataclass
class Report:
    """What a run saw.

    Attributes:
        rate: requests per second that were offered.
        timings: a `Timing` for each, in order.
        took_s: from the start to the last answer.
    """

    rate: float
    timings: list = field(repr=False)
    took_s: float

    @property
    def answered(self):
        """The timings of those that were answered in full."""
        return [timing for timing in self.timings if timing.finished and timing.first_s is not None]

    @property
    def num_refused(self):
        """How many were told 429 or 503."""
        return sum(timing.status in (429, 503) for timing in self.timings)

    @property
    def tokens_per_s(self):
        return sum(timing.num_tokens for timing in self.timings) / self.took_s

    def percentile(self, what, percent):
        """Of "ttft_s", "tpot_s" or "latency_s" of the answered: the least value that `percent` of them do not exceed.

        Returns:
            Seconds; nan if nothing was answered.
        """
        values = sorted(value for timing in self.answered if not math.isnan(value := getattr(timing, what)))
        return values[max(0, math.ceil(percent / 100 * len(values)) - 1)] if values else math.nan

    def row(self):
        """{name: number}: the offered rate, what was answered and refused, and p50 and p99 of each time, in seconds."""
        names = ("ttft_s", "tpot_s", "latency_s")
        found = {f"{name[:-2]}_p{p}_s": self.percentile(name, p) for name in names for p in (50, 99)}
        counts = {"answered": len(self.answered), "refused": self.num_refused, "tokens_per_s": self.tokens_per_s}
        return {"rate": self.rate, **counts, **found}


def arrivals_s(rate, num_requests, seed=0):
    """When requests of a Poisson process come: a list of seconds, the same for the same seed.

    Raises:
        ValueError: `rate` is not above 0, or `num_requests` is no whole number of at least 0.
    """
    check_whole("num_requests", num_requests, 0)
    if not 0 < rate < math.inf:
        raise ValueError(f"rate={rate!r}: a finite number above 0 is needed, in requests per second")
    source, now_s, times_s = random.Random(seed), 0.0, []
    for _ in range(num_requests):
        now_s += source.expovariate(rate)
        times_s.append(now_s)
    return times_s


def offer(url, rate, num_requests, fields, seed=0, timeout_s=60.0, key=None):
    """Send requests to a server at random times, each in its own thread, and time the pieces of every answer.

    Args:
        url: of the server, such as "http://127.0.0.1:8000".
        rate: requests per second, on average.
        num_requests: how many.
        fields: of a completion: a dictionary, or a function of the number of the request that gives one.
        seed: of the times.
        timeout_s: without any byte, after which a request is given up.
        key: to send as a bearer token.

    Returns:
        `Report`.

    Raises:
        ValueError: as `arrivals_s`.
    """
    timings = [Timing(due_s) for due_s in arrivals_s(rate, num_requests, seed)]
    start_s, threads = time.perf_counter(), []
    for number, timing in enumerate(timings):
        body = fields(number) if callable(fields) else fields
        time.sleep(max(0.0, start_s + timing.due_s - time.perf_counter()))
        arguments = (urlsplit(url).netloc, {**body, "stream": True}, timing, start_s, timeout_s, key)
        threads.append(threading.Thread(target=_ask, args=arguments, daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return Report(rate, timings, time.perf_counter() - start_s)


def _ask(place, body, timing, start_s, timeout_s, key):
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    text = json.dumps({**body, "stream_options": {"include_usage": True}})
    connection = http.client.HTTPConnection(place, timeout=timeout_s)
    try:
        connection.request("POST", "/v1/completions", text, headers)
        answer = connection.getresponse()
        timing.status = answer.status
        for line in answer if answer.status == 200 else ():
            _read(line.strip(), timing, time.perf_counter() - start_s)
    except (OSError, http.client.HTTPException, ValueError):
        timing.finished = False
    finally:
        connection.close()


def _read(line, timing, now_s):
    if line == b"data: [DONE]":
        timing.finished = timing.num_tokens > 0
    elif line.startswith(b"data: "):
        event = json.loads(line[6:])
        if event.get("usage"):
            timing.num_tokens = event["usage"]["completion_tokens"]
        elif event.get("choices"):
            timing.first_s, timing.last_s = timing.first_s or now_s, now_s
