"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

IN_PLACE = "nobody else holds what would be changed in place"

equivalent = {
    "halving_doubling": {
        'swap {+= → = swap +} [Message(r, r ^ distance, chunk, "add") for chunk in range…': IN_PLACE,
        "distance {//= → = distance //} 2": IN_PLACE,
    },
}
