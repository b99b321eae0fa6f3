"""What a plan is expected to come to: the cost model's step, and Young's share that failures leave (lesson 28)."""

from typing import NamedTuple

from ..cost import predict
from ..errors import check_whole
from ..pager.young import goodput


class Estimate(NamedTuple):
    """What is said of a run before it.

    Attributes:
        step_s: seconds of a step.
        sent_bytes: that the rank which sends most sends in a step.
        memory_bytes: of the fullest rank.
        run_s: seconds of the whole run, with checkpoints, failures and what is done again.
    """

    step_s: float
    sent_bytes: float
    memory_bytes: float
    run_s: float


def estimate(setup, plan, save_every):
    """The `Estimate` of the cost model.

    Args:
        setup: a `Setup`.
        plan: a `cost.Plan` of its batch.
        save_every: steps from one checkpoint to the next; 0: none.

    Raises:
        ValueError: the plan does not fit the model or the devices.
    """
    ran = predict(setup.model, setup.cluster, plan)
    run_s = run_time_s(setup, ran.time_s, save_every)
    return Estimate(ran.time_s, sum(ran.sent_bytes.values()), ran.memory_bytes, run_s)


def run_time_s(setup, step_s, save_every=None):
    """The expected seconds of all steps with checkpoints and failures, to first order; None: as the best interval has.

    Without checkpoints half of the whole run is lost at a failure.
    """
    if save_every is None:
        save_every = best_save_every(setup, step_s)
    check_whole("save_every", save_every, 0)
    interval, save_s = (save_every, setup.save_s) if save_every else (setup.num_steps, 0.0)
    fails_s = setup.mean_between * step_s
    return setup.num_steps * step_s / goodput(interval * step_s, save_s, fails_s, setup.restart_s + step_s / 2)


def best_save_every(setup, step_s):
    """The whole number of steps between two checkpoints that loses least; 0 where none at all loses less."""
    return min(range(setup.num_steps), key=lambda every: run_time_s(setup, step_s, every))


def step_allowed_s(setup, run_s):
    """The longest step with which the run is expected to take `run_s`."""
    low_s, high_s = 0.0, run_s
    for _ in range(50):
        middle_s = (low_s + high_s) / 2
        low_s, high_s = (middle_s, high_s) if run_time_s(setup, middle_s) <= run_s else (low_s, middle_s)
    return low_s
