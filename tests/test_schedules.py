"""Schedules and their readers, without a process."""

import gc
import math
import random
from itertools import pairwise

import pytest
import torch

from lessons_lib import InvalidSchedule
from lessons_lib.schedules import (
    ALGORITHMS,
    Links,
    Message,
    Schedule,
    chunk_bounds,
    count,
    direct,
    halving_doubling,
    hierarchical,
    replay,
    ring,
    ring_all_gather,
    ring_reduce_scatter,
    simulate,
    star,
    star_broadcast,
    tree,
    tree_broadcast,
    verify,
)
from lessons_lib.schedules.choose import all_reduce_schedule
from lessons_lib.schedules.plan import make_plan

SIZES = range(1, 17)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("world_size", SIZES)
def test_every_algorithm_verifies(name, world_size):
    verify(ALGORITHMS[name](world_size))


@pytest.mark.parametrize("world_size", SIZES)
def test_halves_and_broadcasts_verify_from_every_root(world_size):
    verify(ring_reduce_scatter(world_size))
    verify(ring_all_gather(world_size))
    for root in range(world_size):
        for make in (star, tree, star_broadcast, tree_broadcast):
            verify(make(world_size, root))


@pytest.mark.parametrize("world_size", range(2, 17))
@pytest.mark.parametrize("numel", [16 * 15 * 7 * 11 * 13, 1003, 17, 3, 0])
def test_ring_sends_what_the_formula_says(world_size, numel):
    counts = count(ring(world_size), numel, itemsize=8)
    exact = 2 * (world_size - 1) / world_size * numel * 8
    one_chunk_rounding = 2 * 8
    assert all(abs(sent - exact) <= one_chunk_rounding for sent in counts.bytes_sent)
    assert sum(counts.bytes_sent) == sum(counts.bytes_received) == 2 * (world_size - 1) * numel * 8
    if numel % world_size == 0:
        assert counts.bytes_sent == counts.bytes_received == [exact] * world_size
    assert counts.messages_sent == [2 * (world_size - 1)] * world_size
    assert counts.num_rounds == 2 * (world_size - 1)


@pytest.mark.parametrize("world_size", SIZES)
def test_rounds_and_bytes_of_the_others(world_size):
    n, numel = world_size, 16 * 9 * 5 * 7 * 11 * 13
    payload, deepest = numel * 4, math.ceil(math.log2(n)) if n > 1 else 0
    assert count(star(n), numel).bytes_received[0] == (n - 1) * payload
    assert count(tree(n), numel).num_rounds == 2 * deepest
    assert max(count(tree_broadcast(n), numel).bytes_sent) == deepest * payload
    assert count(direct(n), numel).bytes_sent == [2 * (n - 1) * payload // n] * n
    assert count(direct(n), numel).num_rounds == (2 if n > 1 else 0)
    if n & (n - 1) == 0:
        assert count(halving_doubling(n), numel).bytes_sent == [2 * (n - 1) * payload // n] * n
        assert count(halving_doubling(n), numel).messages_sent == [2 * deepest] * n


@pytest.mark.parametrize(("world_size", "group_size"), [(4, 2), (8, 2), (8, 4), (12, 3), (16, 4), (6, 1), (6, 6)])
def test_hierarchical_sends_little_between_groups(world_size, group_size):
    schedule, numel = hierarchical(world_size, group_size), 4 * 3 * 5 * 16
    verify(schedule)
    bounds = chunk_bounds(numel, schedule.num_chunks)
    across = [0] * world_size
    for message in (m for messages in schedule.rounds for m in messages):
        if message.src // group_size != message.dst // group_size:
            start, stop = bounds[message.chunk]
            across[message.src] += stop - start
    num_groups = world_size // group_size
    assert across == [2 * (num_groups - 1) * numel // world_size] * world_size


@pytest.mark.parametrize("numel", [0, 1, 7, 64, 1003])
@pytest.mark.parametrize("num_chunks", [1, 2, 3, 8, 64])
def test_chunks_cover_everything_and_differ_by_one(numel, num_chunks):
    bounds = chunk_bounds(numel, num_chunks)
    assert bounds[0][0] == 0 and bounds[-1][1] == numel and len(bounds) == num_chunks
    assert all(left[1] == right[0] for left, right in pairwise(bounds))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


def changed(schedule, **changes):
    fields = {name: getattr(schedule, name) for name in ("world_size", "num_chunks", "rounds", "collective", "root")}
    return Schedule(**{**fields, **changes})


def test_verify_names_a_missing_contribution():
    with pytest.raises(InvalidSchedule, match="contribution of rank 1 is missing") as caught:
        verify(changed(ring(3), rounds=ring(3).rounds[:-1]))
    assert (caught.value.round, caught.value.rank, caught.value.chunk) == (3, 0, 1)


def test_verify_names_a_contribution_counted_twice():
    twice = [[Message(1, 0, 0, "add")], [Message(1, 0, 0, "add")], [Message(0, 1, 0, "copy")]]
    with pytest.raises(InvalidSchedule, match="contribution of rank 1 is added a second time") as caught:
        verify(Schedule(2, 1, twice))
    assert (caught.value.round, caught.value.rank, caught.value.chunk) == (1, 0, 0)
    assert str(caught.value).startswith("round 1, rank 0, chunk 0: ")


def test_verify_names_an_overwritten_chunk():
    swap = [[Message(0, 1, 0, "add"), Message(1, 0, 0, "add")]]
    with pytest.raises(InvalidSchedule, match="overwrites the chunk while the rank sends it") as caught:
        verify(Schedule(2, 1, swap))
    assert (caught.value.round, caught.value.chunk) == (0, 0)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([Message(1, 0, 0, "copy"), Message(2, 0, 0, "copy")], "two messages write the chunk"),
        ([Message(1, 0, 0, "add"), Message(2, 0, 0, "copy")], "two messages write the chunk"),
        ([Message(1, 1, 0, "add")], "sends to itself"),
        ([Message(1, 3, 0, "add")], "dst 3"),
        ([Message(-1, 0, 0, "add")], "src -1"),
        ([Message(1, 0, 2, "add")], "chunk 2"),
        ([Message(1, 0, 0, "subtract")], "add or copy"),
    ],
)
def test_verify_refuses_impossible_messages(messages, says):
    with pytest.raises(InvalidSchedule, match=says) as caught:
        verify(Schedule(3, 2, [messages]))
    assert caught.value.round == 0


def test_verify_holds_a_schedule_to_its_collective():
    with pytest.raises(InvalidSchedule, match="is missing at the end"):
        verify(changed(ring_reduce_scatter(4), collective="all_reduce"))
    with pytest.raises(InvalidSchedule, match="is missing at the end"):
        verify(changed(tree_broadcast(4, 1), root=2))


def test_verify_refuses_adding_to_what_was_there_before():
    gather = ring_all_gather(3)
    adding = [[message._replace(op="add") for message in messages] for messages in gather.rounds]
    with pytest.raises(InvalidSchedule, match="what rank 0 held before is mixed in at the end") as caught:
        verify(changed(gather, rounds=adding))
    assert (caught.value.rank, caught.value.chunk) == (0, 1)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "4", None])
@pytest.mark.parametrize("make", [*ALGORITHMS.values(), tree_broadcast, star_broadcast])
def test_bad_world_sizes_are_named(make, bad):
    with pytest.raises(ValueError, match="world_size="):
        make(bad)


def test_other_bad_arguments_are_named():
    with pytest.raises(ValueError, match="group_size=3"):
        hierarchical(4, 3)
    with pytest.raises(ValueError, match="collective='sort'"):
        Schedule(2, 1, [], collective="sort")
    with pytest.raises(ValueError, match="num_chunks=0"):
        Schedule(2, 0, [])
    with pytest.raises(ValueError, match="root=2"):
        star(2, root=2)
    with pytest.raises(ValueError, match="numel=-1"):
        count(ring(2), -1)
    for bad in (
        {"latency_s": -1},
        {"bandwidth_Bps": 0},
        {"reduce_Bps": -1},
        {"latency_s": math.nan},
        {"group_size": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Links(**bad)


@pytest.mark.parametrize("world_size", [2, 3, 4, 7, 16, 64, 1024])
def test_simulated_ring_is_the_formula(world_size):
    alpha, beta, size_bytes = 1e-4, 1e-8, 1e6
    took = simulate(ring(world_size), size_bytes, Links(alpha, 1 / beta)).total_s
    assert took == pytest.approx(2 * (world_size - 1) * (alpha + beta * size_bytes / world_size), rel=1e-12)


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(is_enabled):
    was_enabled = gc.isenabled()
    try:
        (gc.enable if is_enabled else gc.disable)()
        simulate(hierarchical(4), 1e6, Links())
        with pytest.raises(ValueError):
            simulate(ring(2), -5, Links())
        assert gc.isenabled() == is_enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


@pytest.mark.parametrize("world_size", [2, 3, 4, 7, 16])
def test_simulated_star_waits_for_its_centre(world_size):
    alpha, beta, size_bytes = 1e-4, 1e-8, 1e6
    took = simulate(star(world_size), size_bytes, Links(alpha, 1 / beta)).total_s
    assert took == pytest.approx(2 * (alpha + (world_size - 1) * beta * size_bytes), rel=1e-12)


def test_simulation_adds_the_cost_of_adding_and_keeps_spans():
    links = Links(1e-3, 1e6, reduce_Bps=2e6)
    result = simulate(ring(2), 2e3, links)
    assert result.total_s == pytest.approx(2 * (1e-3 + 1e-3) + 0.5e-3)
    assert result.trace.source == "simulated"
    assert {span.kind for span in result.trace.spans} == {"send", "recv", "add"}
    assert max(span.end_s for span in result.trace.spans) == pytest.approx(result.total_s)


def test_two_level_links_make_the_hierarchy_win():
    links = Links.two_level(4, fast=Links(1e-6, 1e11), slow=Links(1e-4, 1e9))
    assert links.between(0, 3) == (1e-6, 1e11) and links.between(3, 4) == (1e-4, 1e9)
    flat, levels = (simulate(make, 64e6, links).total_s for make in (ring(16), hierarchical(16, 4)))
    assert levels < flat / 2


def test_auto_takes_few_messages_for_small_tensors_and_few_bytes_for_large():
    small, large = (all_reduce_schedule("auto", 16, size_bytes) for size_bytes in (4, 10**9))
    assert max(count(small, 1).messages_received) < max(count(ring(16), 1).messages_received)
    assert max(count(large, 1600).bytes_sent) == max(count(ring(16), 1600).bytes_sent)
    assert all_reduce_schedule("auto", 2, 10**9).name != "tree"


def run_in_any_order(plans, tensors, rng):
    """Do the plans of all ranks in one process: at each turn a random rank of those whose waits are over."""
    ended, parts = [0] * len(plans), [0] * len(plans)

    def may_go_on(rank):
        if ended[rank] == len(plans[rank].steps):
            return False
        step = plans[rank].steps[ended[rank]]
        if (
            parts[rank] < len(step.incoming)
            and ended[step.incoming[parts[rank]].peer] < step.incoming[parts[rank]].ready
        ):
            return False
        return all(ended[reader] >= num_steps for reader, num_steps in step.readers.items())

    while ranks := [rank for rank in range(len(plans)) if may_go_on(rank)]:
        rank = rng.choice(ranks)
        step = plans[rank].steps[ended[rank]]
        if parts[rank] == len(step.incoming):
            ended[rank], parts[rank] = ended[rank] + 1, 0
            continue
        part = step.incoming[parts[rank]]
        parts[rank] += 1
        for start, stop in part.slices:
            mine, theirs = tensors[rank][start:stop], tensors[part.peer][start:stop]
            mine.add_(theirs) if part.op == "add" else mine.copy_(theirs)
    assert ended == [len(plan.steps) for plan in plans]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("world_size", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("num_segments", [1, 2, 5])
def test_any_order_that_the_waits_allow_gives_the_sum(name, world_size, num_segments):
    rng = random.Random(world_size)
    schedule = ALGORITHMS[name](world_size)
    for numel in (41, 3):
        plans = [make_plan(schedule, rank, numel, num_segments) for rank in range(world_size)]
        for _ in range(10):
            tensors = [torch.arange(numel) * (rank + 1) for rank in range(world_size)]
            run_in_any_order(plans, tensors, rng)
            expected = torch.arange(numel) * (world_size * (world_size + 1) // 2)
            assert all(torch.equal(tensor, expected) for tensor in tensors)


def test_a_step_waits_for_the_last_read_of_all_that_it_overwrites():
    # In the last round rank 1 overwrites two chunks, of which rank 0 reads chunk 1 in round 2 and chunk 0 in round 3.
    rounds = [
        [Message(2, 0, 0, "add"), Message(2, 0, 1, "add")],
        [Message(0, 2, 0, "copy"), Message(0, 2, 1, "copy")],
        [Message(1, 2, 0, "add"), Message(1, 2, 1, "add"), Message(1, 0, 1, "add")],
        [Message(1, 0, 0, "add")],
        [Message(2, 1, 0, "copy"), Message(2, 1, 1, "copy")],
    ]
    schedule = Schedule(3, 2, rounds)
    verify(schedule)
    plans = [make_plan(schedule, rank, 2) for rank in range(3)]
    assert plans[1].steps[4].readers == {0: 4, 2: 3}
    for seed in range(20):
        tensors = [torch.tensor([1, 1]) * 10**rank for rank in range(3)]
        run_in_any_order(plans, tensors, random.Random(seed))
        assert all(tensor.tolist() == [111, 111] for tensor in tensors)


def test_replay_plays_one_round_at_a_time_and_reads_what_stood_at_its_start():
    held = [["a"], ["b"], ["c"]]
    rounds = replay([[Message(0, 1, 0, "add"), Message(1, 2, 0, "add")], [Message(2, 0, 0, "copy")]], held, str.__add__)
    assert next(rounds) == 0 and held == [["a"], ["ba"], ["cb"]]
    assert next(rounds) == 1 and held == [["cb"], ["ba"], ["cb"]]
    assert list(rounds) == []
