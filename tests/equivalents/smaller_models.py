"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "keep_units": {
        "leaving = w2.square().{sum → mean}(dim=0).sqrt()": "all products get the same factor: their order stays",
    },
}
