"""The capstone: plans of a drawn set-up run on real ranks, come back from failures, and are scored (lesson 28)."""

import json
from dataclasses import replace
from math import inf, nan

import pytest
import torch

from lessons_lib import Links, launch
from lessons_lib.capstone import NAIVE, Estimate, Setup, can_run, draw, estimate, run, run_time_s, score, searched
from lessons_lib.capstone import __main__ as command
from lessons_lib.capstone.demand import demand
from lessons_lib.capstone.estimate import best_save_every
from lessons_lib.capstone.net import Net, batch, held_out, learned, loss_of, optimizer_of, whole
from lessons_lib.capstone.plans import runnable
from lessons_lib.cost import Cluster, Model, Plan
from lessons_lib.pager import incident_at

MODEL = Model(4, 16, 4, 96, 8, fused=True, dropout=False, itemsize=4, recipe="float32 adam")
CLUSTER = Cluster(4, 1e12, 1e9, 1e12, Links())
QUIET = Setup(3, MODEL, CLUSTER, batch=8, num_steps=5, mean_between=inf, save_s=0.0, restart_s=0.0)
PLANS = [
    Plan(8, 8),
    Plan(8, 2),
    Plan(8, 1, dp=4),
    Plan(8, 8, tp=4),
    Plan(8, 2, pp=4),
    Plan(8, 2, dp=2, tp=2),
    Plan(8, 2, dp=2, pp=2),
    Plan(8, 4, tp=2, pp=2),
]


# --- the set-up -------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_set_up_again_and_seeds_differ():
    assert draw(5) == draw(5) and len({str(draw(seed)) for seed in range(10)}) == 10


def expected_of(setup):
    """{plan: its `Estimate` with the best interval} of all plans that can be run."""
    said = {}
    for plan in runnable(setup):
        step_s = estimate(setup, plan, 0).step_s
        said[plan] = estimate(setup, plan, best_save_every(setup, step_s))
    return said


def meets(setup, said):
    return said.memory_bytes <= setup.cluster.memory_bytes and said.run_s <= setup.deadline_s


@pytest.mark.parametrize("seed", range(20))
def test_the_search_meets_a_set_up_and_nothing_cheaper_would(seed):
    setup = draw(seed)
    said = expected_of(setup)
    (plan, save_every), *_ = searched(setup)
    assert meets(setup, estimate(setup, plan, save_every))
    least = plan.num_devices * said[plan].step_s * (1 - 1e-9)
    for each in (p for p, e in said.items() if p.num_devices * e.step_s < least):
        is_late = 1.25 * run_time_s(setup, said[each].step_s) > setup.deadline_s
        assert is_late or 1.1 * said[each].memory_bytes > setup.cluster.memory_bytes, "a cheaper plan would have done"
    assert all(can_run(naive(setup)[0]) for naive in NAIVE.values())


def test_most_set_ups_leave_out_a_third_of_the_plans():
    shares = []
    for seed in range(20):
        setup = draw(seed)
        met = [meets(setup, said) for said in expected_of(setup).values()]
        shares.append(sum(met) / len(met))
    assert sorted(shares)[10] < 2 / 3 and min(shares) > 0


def test_what_is_said_of_a_set_up_names_its_numbers():
    setup = replace(draw(2), deadline_s=12.5, save_s=0.25)
    words = str(setup)
    assert "12.5 s" in words and "0.2 s per checkpoint" in words and f"width {setup.model.width}" in words


def test_without_failures_or_costs_a_run_takes_its_steps():
    assert run_time_s(QUIET, 0.5, 1) == pytest.approx(2.5) and best_save_every(QUIET, 0.5) == 0


def test_the_best_interval_is_that_of_young():
    setup = replace(QUIET, num_steps=1000, mean_between=50.0, save_s=0.4, restart_s=2.0)
    assert best_save_every(setup, 0.1) == round((2 * 4 * 50) ** 0.5)


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained(comm, setup, plan, num_steps):
    net = Net(comm, setup, plan)
    losses = [net.step(number) for number in range(num_steps)]
    mean = torch.tensor([losses])
    comm.all_reduce(mean, op="mean")
    return mean[0].tolist(), net.weights()


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_is_one_process_at_every_step(float64, plan):
    model, losses = whole(MODEL, QUIET.seed), []
    optimizer = optimizer_of(model.parameters())
    for number in range(4):
        x, y = batch(QUIET, number)
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    expected = torch.nn.Sequential(*model.stages()).state_dict()
    ranks = launch(trained, QUIET, plan, 4, world_size=plan.num_devices)
    found = {name: value for _, weights in ranks for name, value in weights.items()}
    assert ranks[0][0] == pytest.approx(losses, rel=1e-10)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9)


def test_batches_are_the_same_again_and_none_is_held_out():
    x, y = batch(QUIET, 7)
    again, _ = batch(QUIET, 7)
    assert torch.equal(x, again) and torch.equal(x[:, 1:], y[:, :-1]) and not torch.equal(x, batch(QUIET, 8)[0])
    assert x.shape == (8, 8) and len(learned()) > 8 * len(held_out())


def test_demand_counts_the_bytes_of_a_step():
    plan = Plan(8, 2, dp=4)
    ranks = launch(demand, QUIET, plan, world_size=4)
    parameters = list(whole(MODEL, 3).parameters())
    numbers = sum(p.numel() for p in parameters)
    sent = 2 * 3 * (-(-numbers // 4) + -(-len(parameters) // 4)) * 4  # gradients, and who has one; chunks are padded
    assert all(abs(sent_bytes - sent) <= 64 for sent_bytes, _ in ranks)
    assert all(memory_bytes > 4 * 4 * numbers for _, memory_bytes in ranks)
    (alone,) = launch(demand, QUIET, Plan(8, 8), world_size=1)
    assert alone[0] == 0


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_quiet_run_is_measured():
    outcome = run(QUIET, Plan(8, 2, dp=2, pp=2), 2)
    assert not outcome.refused and outcome.night.is_right and outcome.night.num_saves == 2
    assert outcome.night.num_begun == 5 and outcome.night.incidents == []
    assert 0 < outcome.goodput <= 1 and outcome.device_s == 4 * outcome.run_s and outcome.step_s > 0
    assert outcome.sent_bytes > 0 and outcome.memory_bytes > 0 and 2 < outcome.loss < 6


def failing(seed_from, kills):
    """A seed after which just the steps begun as number `kills` die, within the first ten."""
    for seed in range(seed_from, 100_000):
        if [clock for clock in range(10) if incident_at(clock, seed, 5.0, ("kill",))] == kills:
            return seed
    raise AssertionError


@pytest.mark.parametrize("plan", [Plan(8, 8), Plan(8, 2, dp=2, pp=2), Plan(8, 4, tp=2)], ids=str)
@pytest.mark.parametrize(("save_every", "begun"), [(2, 5 + 1 + 1), (0, 3 + 1 + 5)])
def test_a_rank_that_dies_costs_what_was_not_kept(plan, save_every, begun):
    setup = replace(QUIET, seed=failing(0, [3]), mean_between=5.0, deadline_s=60.0)
    outcome = run(setup, plan, save_every)
    assert [event.what for event in outcome.night.incidents] == ["kill"]
    assert outcome.night.num_begun == begun and outcome.night.num_recoveries == 1
    assert not outcome.refused and outcome.night.is_right


def test_a_device_without_room_is_refused_before_the_first_step(tmp_path):
    setup = replace(QUIET, cluster=replace(CLUSTER, memory_bytes=1e4))
    outcome = run(setup, Plan(8, 8, tp=2), 1, folder=tmp_path)
    assert "a device has 0.01 MB" in outcome.refused and outcome.model is None and outcome.night.num_begun == 0
    assert outcome.loss == inf and outcome.goodput == 0 and outcome.memory_bytes > 1e4
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_a_run_that_never_ends_is_given_up():
    setup = replace(QUIET, mean_between=1.0, deadline_s=0.01)
    outcome = run(setup, Plan(8, 8), 1)
    assert "0 of 5 steps after 3 times the deadline" in outcome.refused and outcome.goodput == 0


@pytest.mark.parametrize(
    ("setup", "plan", "save_every", "words"),
    [
        (QUIET, Plan(16, 8), 1, "batch=8 is needed"),
        (QUIET, Plan(8, 8, dp=1, recompute="full"), 1, "only batch, micro_batch, dp, tp and pp"),
        (QUIET, Plan(8, 1, pp=2, v=2), 1, "only batch, micro_batch, dp, tp and pp"),
        (QUIET, Plan(8, 1, dp=8), 1, "at most num_devices=4"),
        (QUIET, Plan(8, 8, tp=3), 1, "a divisor of heads=4"),
        (QUIET, Plan(8, 8), -1, "save_every=-1"),
        ("a setup", Plan(8, 8), 1, "setup is a str"),
        (QUIET, "dp", 1, "plan is a str"),
    ],
)
def test_what_cannot_be_run_is_refused(setup, plan, save_every, words):
    with pytest.raises((TypeError, ValueError), match=words):
        run(setup, plan, save_every)


# --- the score --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome():
    return run(QUIET, Plan(8, 2, dp=2), 0)


def test_a_true_prediction_of_the_run_beside_itself(outcome):
    said = Estimate(outcome.step_s, outcome.sent_bytes, outcome.memory_bytes, outcome.run_s)
    result = score(QUIET, said, outcome, outcome)
    assert (result.prediction, result.goodput, result.cost) == (1.0, outcome.goodput, 1.0)
    assert result.points == pytest.approx(100 * (2 + outcome.goodput) / 3)
    assert set(result.ratios.values()) == {1.0}


def test_what_is_off_by_two_is_half_right_either_way(outcome):
    said = Estimate(2 * outcome.step_s, outcome.sent_bytes / 2, outcome.memory_bytes, nan)
    assert score(QUIET, said, outcome, outcome).prediction == pytest.approx(2 / 3)
    assert score(QUIET, Estimate(0.0, -1.0, outcome.memory_bytes, 1.0), outcome, outcome).prediction == pytest.approx(
        1 / 3
    )


def test_cost_is_beside_another_run_and_nothing_for_what_is_late_or_wrong_or_refused(outcome):
    said = Estimate(1.0, 1.0, 1.0, 1.0)
    assert score(QUIET, said, replace(outcome, device_s=2 * outcome.device_s), outcome).cost == 0.5
    assert score(QUIET, said, replace(outcome, device_s=outcome.device_s / 2), outcome).cost == 1.0
    assert score(replace(QUIET, deadline_s=outcome.run_s / 2), said, outcome, outcome).cost == 0.0
    wrong = replace(outcome, night=replace(outcome.night, is_right=False))
    assert score(QUIET, said, wrong, outcome).cost == 0.0
    assert score(QUIET, said, replace(outcome, refused="no room"), outcome).points == 0.0
    with pytest.raises(TypeError, match="estimate is a float"):
        score(QUIET, 1.0, outcome, outcome)


def test_the_command_prints_and_keeps_a_row_for_each_plan(monkeypatch, capsys, tmp_path):
    quick = replace(draw(1), num_steps=3, mean_between=inf, save_s=0.0, restart_s=0.0)
    quick = replace(quick, cluster=replace(quick.cluster, flops=1e12, links=Links(), memory_bytes=1e9))
    monkeypatch.setattr(command, "draw", lambda seed: quick)
    command.main(["--seeds", "1", "--save", str(tmp_path / "rows.json")])
    rows, told = json.loads((tmp_path / "rows.json").read_text()), capsys.readouterr().out
    assert [row["way"] for row in rows] == [
        "search 1",
        "search 2",
        "search 3",
        "all data",
        "all matrices",
        "all stages",
    ]
    assert all(0 < row["points"] <= 100 for row in rows) and "search 1: " in told
