"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

why = "the default is only for the case that all workers have ended, and then nobody waits"
equivalent = {
    "may_go_on": {
        "…([clock for clock in clocks if clock is not None], default={0 → 1})": why,
        "…([clock for clock in clocks if clock is not None], default={0 → -1})": why,
    },
}
