"""The load generator beside a server that lives: each request is sent when it is due, and its pieces are counted."""

import math
import threading

import pytest
import torch
from one_thread import one_thread  # noqa: F401 - it acts by being here

from lessons_lib.models import GPT
from lessons_lib.serve import Characters, Limits, Report, Timing, arrivals_s, offer, serve

TEXT = Characters("abcdefgh \n")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(TEXT.vocabulary, 16, num_layers=1, num_heads=2, context=64).eval()


def test_all_that_is_offered_is_answered_with_its_tokens(model):
    with serve(model, TEXT, keys=["k"]) as server:
        report = offer(
            server.url, 200, 30, lambda number: {"prompt": "abc", "max_tokens": 1 + number % 3}, seed=4, key="k"
        )
        assert [timing.num_tokens for timing in report.timings] == [1 + number % 3 for number in range(30)]
        assert [timing.due_s for timing in report.timings] == arrivals_s(200, 30, seed=4)
        for timing in report.answered:
            assert timing.due_s <= timing.first_s <= timing.last_s <= report.took_s
            assert (timing.first_s == timing.last_s) == (timing.num_tokens == 1)
        assert (len(report.answered), report.num_refused) == (30, 0)
        assert report.row()["tokens_per_s"] * report.took_s == pytest.approx(60)
        refused = offer(server.url, 200, 3, {"prompt": "abc"})
        assert [timing.status for timing in refused.timings] == [401] * 3
        assert math.isnan(refused.percentile("ttft_s", 50)) and not refused.answered


def test_what_is_refused_is_counted_and_nothing_hangs(model):
    with serve(model, TEXT, max_batch=1, limits=Limits(max_queue=1)) as server:
        engine, opened = server.worker.engine, threading.Event()
        step = engine.step

        def held():
            assert opened.wait(60)
            step()

        engine.step = held
        count = server.app.metrics.answered

        def counted(status):
            count(status)
            refused.append(status)
            if refused.count(429) == 6:
                opened.set()

        refused, server.app.metrics.answered = [], counted
        report = offer(server.url, 1_000, 8, {"prompt": "abc", "max_tokens": 4})
    assert (len(report.answered), report.num_refused) == (2, 6)
    nobody = offer(server.url, 1_000, 2, {"prompt": "abc"})  # it has ended
    assert [timing.status for timing in nobody.timings] == [0, 0]


def test_times_and_percentiles():
    timings = [Timing(1.0, 200, 1.0 + k / 100, 2.0 + k / 100, 11, True) for k in range(1, 101)]
    timings.append(Timing(1.0, 429))
    report = Report(50.0, timings, took_s=10.0)
    assert report.percentile("ttft_s", 50) == pytest.approx(0.50)
    assert report.percentile("ttft_s", 99) == pytest.approx(0.99)
    assert report.percentile("ttft_s", 100) == pytest.approx(1.0)
    assert report.percentile("tpot_s", 50) == pytest.approx(0.1)
    row = report.row()
    assert (row["rate"], row["answered"], row["refused"], row["tokens_per_s"]) == (50.0, 100, 1, 110.0)
    assert row["latency_p99_s"] == pytest.approx(1.99)
    assert math.isnan(Timing(0.0, 200, 1.0, 1.0, 1, True).tpot_s)


def test_arrivals_are_poisson():
    times = arrivals_s(50.0, 20_000, seed=0)
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert abs(mean - 0.02) < 5 * 0.02 / math.sqrt(20_000)
    assert spread == pytest.approx(mean, rel=0.05)  # as exponential gaps have it
    assert arrivals_s(50.0, 20_000, seed=1) != times and arrivals_s(1.0, 0) == []
    with pytest.raises(ValueError, match="rate=0: a finite number above 0"):
        arrivals_s(0, 1)
