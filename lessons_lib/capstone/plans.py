"""Which plans real ranks can run here, those that `cost.search` chooses, and three that people choose without it."""

from dataclasses import replace

from ..cost import Budget, Plan, search
from ..cost.search import plans
from .estimate import best_save_every, step_allowed_s

MEMORY_MARGIN, TIME_MARGIN = 1.1, 1.25  # predictions may be off by so much, and ranks may die more often than usual


def can_run(plan):
    """Whether `run` knows how: dp, tp and pp with any micro-batches, without what lessons 14 and 17 add."""
    return plan == Plan(plan.batch, plan.micro_batch, plan.dp, plan.tp, plan.pp)


def runnable(setup):
    """All plans of a set-up that `run` can run, on as many devices as there are or fewer."""
    tried = (replace(plan, overlap=False) for plan in plans(setup.model, setup.cluster, setup.batch))
    return [plan for plan in dict.fromkeys(tried) if can_run(plan)]


def searched(setup, number=1):
    """The cheapest plans by `cost.search` that meet memory and deadline with a tenth and a quarter to spare.

    Args:
        setup: a `Setup`.
        number: how many are wanted.

    Returns:
        A list of (plan, steps from one checkpoint to the next), the cheapest first.

    Raises:
        ValueError: nothing fits.
    """
    budget = Budget(setup.batch, time_s=step_allowed_s(setup, setup.deadline_s / TIME_MARGIN))
    cautious = replace(setup.cluster, memory_bytes=setup.cluster.memory_bytes / MEMORY_MARGIN)
    found = search(setup.model, cautious, budget, runnable(setup))[:number]
    return [(each.plan, best_save_every(setup, each.prediction.time_s)) for each in found]


def all_data(setup):
    """A replica on every device, and a checkpoint after every step."""
    ranks = setup.cluster.num_devices
    return Plan(setup.batch, setup.batch // ranks, dp=ranks), 1


def all_matrices(setup):
    """Every matrix cut over all devices, and no checkpoint."""
    return Plan(setup.batch, setup.batch, tp=setup.cluster.num_devices), 0


def all_stages(setup):
    """A stage on every device, the batch in two micro-batches, and a checkpoint every ten steps."""
    return Plan(setup.batch, setup.batch // 2, pp=setup.cluster.num_devices), 10


NAIVE = {"all data": all_data, "all matrices": all_matrices, "all stages": all_stages}
