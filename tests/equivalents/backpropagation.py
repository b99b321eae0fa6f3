"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "gradients": {
        "missing[source] {-= → = missing[source] -} 1": "with an integer, -= makes a new one as well",
    },
}
