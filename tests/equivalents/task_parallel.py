"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

NOT_IN_PLACE = "a number is never changed in place"
SHIFTED = "all workers are free at the same moment, whichever it is"

equivalent = {
    "halving": {
        "cost {+= → = cost +} len(left) * (budget - done)": NOT_IN_PLACE,
    },
    "owners": {
        "free_s, found = [{0.0 → -1.0}] * num_workers, []": SHIFTED,
        "free_s, found = [{0.0 → 1.0}] * num_workers, []": SHIFTED,
        "free_s[worker] {+= → = free_s[worker] +} time_s": NOT_IN_PLACE,
    },
    "to_give": {
        'if {what == "done" → True}:': "a worker that died has no task: None is none of those that are asked for",
    },
}
