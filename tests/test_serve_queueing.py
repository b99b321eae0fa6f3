"""Queues: formulas beside simulations, whose errors follow from the spread of what they saw; and scaled replicas."""

import math

import pytest

from lessons_lib.serve.queueing import (
    erlang_c,
    knee,
    mean_and_error,
    mean_wait_s,
    pollaczek_khinchine_s,
    utilisation,
    waits_of,
    waits_s,
)
from lessons_lib.serve.scaling import DAY, Service, fixed, follow, simulate_day


def close(values, expected):
    mean, error = mean_and_error(values)
    assert abs(mean - expected) < 5 * error, (mean, expected, error)
    assert error < 0.1 * expected  # else the bound above would say nothing


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("servers", [1, 2, 8])
def test_the_mean_wait_of_exponential_services(rho, servers):
    rate = rho * servers / 0.2
    waits = waits_s(rate, lambda source: source.expovariate(1 / 0.2), servers, 200_000, seed=servers)
    if servers == 8 and rho == 0.3:
        assert mean_wait_s(rate, 0.2, servers) < 1e-3  # too rare to be counted
    else:
        close(waits, mean_wait_s(rate, 0.2, servers))
        close([float(wait > 0) for wait in waits], erlang_c(rate, 0.2, servers))


SERVICES = {  # mean 1: the variation C, and a draw
    "constant": (0.0, lambda source: 1.0),
    "uniform": (1 / math.sqrt(3), lambda source: 2 * source.random()),
    "two kinds": (2.0, lambda source: 5.0 if source.random() < 0.2 else 0.0),
}


@pytest.mark.parametrize("name", SERVICES)
def test_the_mean_wait_of_other_services(name):
    variation, service = SERVICES[name]
    close(waits_s(0.7, service, 1, 200_000, seed=1), pollaczek_khinchine_s(0.7, 1.0, variation))


def test_a_test_that_cannot_tell_would_accept_half_the_wait():
    waits = waits_s(0.7, lambda source: 1.0, 1, 200_000, seed=1)
    with pytest.raises(AssertionError):
        close(waits, mean_wait_s(0.7, 1.0))


def test_formulas_where_they_are_known():
    assert utilisation(3, 0.5, 2) == 0.75
    assert mean_wait_s(0.5, 1.0) == pytest.approx(1.0)  # ρ / (1 - ρ) E[S]
    assert pollaczek_khinchine_s(0.5, 1.0, 1.0) == pytest.approx(mean_wait_s(0.5, 1.0))
    assert erlang_c(0.5, 1.0, 1) == pytest.approx(0.5)
    assert erlang_c(2.0, 1.0, 3) == pytest.approx(4 / 9)  # a = 2, c = 3: (8/6 · 3) / (1 + 2 + 2 + 4)
    assert erlang_c(950.0, 1.0, 1000) == pytest.approx(0.05, abs=0.03) and erlang_c(0, 1.0) == mean_wait_s(0, 1.0) == 0
    assert mean_wait_s(1.0, 1.0) == mean_wait_s(2.0, 1.0, 2) == pollaczek_khinchine_s(3, 1, 0) == math.inf


def test_the_knee_is_where_a_request_takes_so_many_times_its_service():
    assert knee(0.2, 1) == pytest.approx(2.5)
    assert knee(1.0, 1, slowdown=10) == pytest.approx(0.9)
    for servers in (2, 16):
        assert mean_wait_s(knee(0.3, servers), 0.3, servers) == pytest.approx(0.3)
    assert knee(1.0, 16) / 16 > knee(1.0, 2) / 2 > knee(1.0, 1)  # many servers bear more load


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: utilisation(-1, 1), "rate=-1: a finite number of at least 0"),
        (lambda: utilisation("1", 1), "rate='1'"),
        (lambda: mean_wait_s(1, 0), "service_s=0: a finite number above 0"),
        (lambda: erlang_c(1, 1, 0), "servers=0: a whole number of at least 1"),
        (lambda: pollaczek_khinchine_s(1, 1, -1), "variation=-1"),
        (lambda: knee(1, 1, 1.0), r"slowdown=1\.0: a finite number above 1"),
        (lambda: mean_and_error([1.0]), "values has 1: at least num_groups=50"),
        (lambda: Service(0, 1, 1), "service_s=0: a finite number above 0"),
        (lambda: simulate_day(Service(1, 1, 1), fixed(1), -1), "peak_rate=-1"),
        (lambda: simulate_day(Service(1, 1, 1), fixed(0), 0.1), "rule: it wants no replica"),
        (lambda: simulate_day(Service(1, 1, 1), lambda seen: 0.5, 1), "what the rule gives=0.5"),
    ],
)
def test_what_makes_no_sense_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_replicas_that_are_there_are_a_queue_of_so_many_servers():
    outcome = simulate_day(Service(service_s=2.0, start_s=0.0, within_s=4.0), fixed(3), 1.0, day=[1.0] * 24)
    close([latency - 2.0 for latency in outcome.latencies_s], mean_wait_s(1.0, 2.0, 3))
    assert outcome.replica_hours == pytest.approx(72, rel=0.01)
    assert abs(outcome.num_requests - 24 * 3600) < 5 * math.sqrt(24 * 3600)
    assert len(outcome.latencies_s) == outcome.num_requests


def test_the_rate_follows_the_hours():
    outcome = simulate_day(Service(0.1, 0.0, 1.0), fixed(1), 2.0, day=[0.0, 1.0, 0.0, 0.5])
    assert abs(outcome.num_requests - 1.5 * 7200) < 5 * math.sqrt(1.5 * 7200)
    assert (len(DAY), max(DAY), min(DAY)) == (24, 1.0, 0.02)


def test_scaling_costs_less_than_the_peak_and_zero_less_than_one_and_slower_starts_miss_more():
    service = Service(service_s=2.0, start_s=60.0, within_s=10.0)
    always, scaled, cold = (
        simulate_day(service, rule, 0.5) for rule in (fixed(3), follow(0.6, least=1), follow(0.6, least=0))
    )
    assert cold.replica_hours < scaled.replica_hours < always.replica_hours == pytest.approx(72, rel=0.01)
    assert cold.in_time < scaled.in_time < always.in_time
    slower = simulate_day(Service(service_s=2.0, start_s=600.0, within_s=10.0), follow(0.6, least=0), 0.5)
    assert slower.in_time < cold.in_time
    assert all(wanted >= 1 for _, wanted in scaled.replicas) and any(wanted == 0 for _, wanted in cold.replicas)


def test_with_no_request_nothing_runs_and_nothing_is_paid():
    outcome = simulate_day(Service(1.0, 60.0, 5.0), follow(least=0), 0.0)
    assert (outcome.num_requests, outcome.replica_hours, outcome.in_time) == (0, 0.0, 1.0)


def test_the_first_request_after_silence_waits_for_a_start():
    service = Service(service_s=1e-6, start_s=100.0, within_s=5.0, every_s=30.0)
    outcome = simulate_day(service, follow(least=0), 1 / 3600, day=[0.0, 1.0, 0.0], seed=2)
    assert outcome.num_requests >= 1
    assert 100.0 <= outcome.latencies_s[0] <= 130.1


def test_a_seed_gives_the_same_day():
    runs = [simulate_day(Service(1.0, 10.0, 5.0), follow(), 0.2, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    waits = [waits_s(1, lambda source: source.random(), num_requests=5, seed=seed) for seed in (1, 1, 2)]
    assert waits[0] == waits[1] != waits[2]


def test_given_requests_wait_for_those_before_them():
    assert waits_of([0, 1, 2, 10], [3, 3, 1, 1]) == [0, 2, 4, 0]
    assert waits_of([0, 1, 2, 2], [3, 3, 1, 1], servers=2) == [0, 0, 1, 2]
    assert waits_of([-5, -5], [1, 1]) == [0, 1] and waits_of([], []) == []
    with pytest.raises(ValueError, match="not in order"):
        waits_of([1, 0], [1, 1])
    with pytest.raises(ValueError, match="shorter"):
        waits_of([0, 1], [1])
