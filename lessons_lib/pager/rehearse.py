"""A run on the pager without a rank: which steps would be done, and which again, counted (lesson 21)."""

from .incidents import incident_at
from .score import Score


def rehearse(job, world_size=4):
    """Count what `page(job, world_size)` does, without starting a process; a `Score` without events.

    It knows neither times nor which rank holds what.

    Raises:
        ValueError: the job has incidents of the kind "slow", or its policy copies to neighbours, or believes
            majorities: their counts depend on such things.
    """
    policy = job.policy
    if "slow" in job.kinds or policy.copy_every or policy.believe == "majority":
        raise ValueError("a rehearsal needs kinds without 'slow', copy_every=0 and believe='checkpoint'")
    num_ranks, spares, clock, step, num_saves, num_back = world_size, policy.spares, 0, 0, 0, 0
    is_wrong, kept = False, [(0, False)]  # kept: (step, whether a bit had flipped before)
    while num_ranks and step < job.num_steps:
        incident = incident_at(clock, job.seed, job.mean_between, job.kinds)
        kind, clock = incident.kind if incident else "", clock + 1
        if kind in ("kill", "stop"):
            num_ranks, spares = (num_ranks, spares - 1) if spares else (num_ranks - 1, 0)
        elif kind == "disk":
            kept = [(0, False)]
        is_cut_short = kind in ("kill", "stop") or (kind == "message" and num_ranks > 1)
        if not is_cut_short:
            step, is_wrong = step + 1, is_wrong or kind == "flip"
        if is_cut_short or (is_wrong and num_ranks > 1 and policy.compares(step, job.num_steps)):
            while policy.compare_every and num_ranks > 1 and kept[-1][1]:
                kept.pop()
            (step, is_wrong), num_back = kept[-1], num_back + 1
        elif policy.saves(step):
            num_saves, kept = num_saves + 1, [*kept, (step, is_wrong)]
    refused = "" if num_ranks else "all ranks are gone"
    return Score(job.num_steps, clock, num_saves, num_back, not (is_wrong or refused), refused)
