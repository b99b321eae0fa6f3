"""The side-by-side measurements run and say what they compare. What they measure is never asserted."""

import json

import pytest

from lessons_lib import bench
from lessons_lib.bench import checkpoints, context, cost, messages, pipelines, serving, tensor, tokens, training
from lessons_lib.bench.turns import KB, MB
from lessons_lib.devices import machine_line


@pytest.mark.parametrize(
    "measure",
    [
        lambda: messages.all_reduce(2, 64 * KB, 3),
        lambda: messages.ring_over_gloo(2, MB, 3),
        lambda: context.all_to_all(2, 64 * KB, 3),
        lambda: training.shared_memory_step(training.MODELS[0], 2, 3),
        lambda: training.shared_memory_step(training.MODELS[0], 2, 3, num_busy=2),
        lambda: training.gloo_step(training.MODELS[0], 2, 3),
        lambda: training.power_sgd_step(training.MODELS[0], 2, 3),
        lambda: training.weak_scaling(training.MODELS[0], 3),
        lambda: training.adam_step(3),
        lambda: messages.simulated_ring((2, 4)),
        lambda: tensor.column_row_pair(2, 16, 4, 3),
        lambda: pipelines.one_f_one_b_step(2, 3),
        lambda: pipelines.predicted_steps(1, {"GPipe": (pipelines.gpipe, 2)}),
        lambda: checkpoints.stall(1, 3),
        lambda: cost.predicted_plans(2),
        lambda: tokens.tokens_a_second(tokens.Size(16, 8, num_layers=2, num_heads=2, context=8, batch=4), 3),
        lambda: serving.concurrent_requests(tokens.Size(16, 8, num_layers=1, num_heads=2, context=32, batch=3), 4, 2),
    ],
)
def test_rows_say_what_was_compared(measure):
    for row in measure():
        assert row.work and row.peer and row.goal
        assert row.ours_s > 0 and row.theirs_s > 0
        assert 0 < row.low <= row.ratio <= row.high


def test_ratios_are_of_neighbouring_turns_and_the_first_is_a_warm_up():
    row = bench.compared("work", "peer", [9.0, 1.0, 2.0, 4.0], [9.0, 2.0, 8.0, 12.0], ">= 1")
    assert (row.ratio, row.ours_s, row.theirs_s) == (3.0, 3.0, 8.5)
    inverse = bench.compared("work", "peer", [9.0, 1.0, 2.0, 4.0], [9.0, 2.0, 8.0, 12.0], "<= 1", inverse=True)
    assert inverse.ratio == pytest.approx(1 / 3)


def test_rows_are_saved_with_where_they_came_from(tmp_path):
    row = bench.compared("work", "peer", [1.0, 2.0], [2.0, 6.0], ">= 1")
    bench.save([row], tmp_path / "rows.json", "python -m lessons_lib bench")
    saved = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert saved["machine"] == machine_line()
    assert (saved["command"], len(saved["date"])) == ("python -m lessons_lib bench", 10)
    assert [bench.Row(**row) for row in saved["rows"]] == [row]


def test_a_line_is_fitted_through_its_points():
    sizes = [1e3, 1e4, 1e5, 1e6]
    alpha_s, beta_s = messages.fit_line(sizes, [2e-5 + 3e-9 * size for size in sizes])
    assert (alpha_s, beta_s) == pytest.approx((2e-5, 3e-9))
