"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "plan_run": {
        "for plan in {runnable(setup) → list(runnable(setup))[:-1]}:": (
            "the last plan, tp and pp with the largest micro-batches, is the cheapest in no set-up of 400 seeds"
        ),
        "for save_every in range(setup.num_steps{ →  + 1}):": (
            "a checkpoint after the last step would cost its time and save nothing"
        ),
        "for save_every in range(setup.num_steps{ →  - 1}):": (
            "an interval of all steps but one costs more than none, or as much to within the one per cent"
        ),
        "fits = said.memory_bytes {<= → <} setup.cluster.memory_bytes": "no plan needs exactly what there is",
        "if fits and said.run_s <= setup.deadline_s and cost {< → <=} least:": "of equal costs any will do",
        "if fits and said.run_s {<= → <} setup.deadline_s and cost < least:": "no run takes exactly until the deadline",
    },
    "replay": {
        "attempt {+= → = attempt +} 1": "a whole number is not changed in place",
    },
}
