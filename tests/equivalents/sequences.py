"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "clip_gradients": {
        "if norm {> → >=} max_norm:": "where they are equal, the factor is 1",
    },
}
