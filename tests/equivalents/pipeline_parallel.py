"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "choose_micro_batches": {
        "for num in range(1, batch_size + {1 → 2}):": "batch_size + 1 divides batch_size in no case",
        "samples = batch_size {// → /} num": "where num does not divide, nothing is done with it",
    },
    "place_weights": {
        "steps.append(waiting.pop({0 → -1}))": "the task leaves open which of the waiting ones is done first",
    },
}
