"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "first_parting": {
        "partings.append((step, name, {tuple(ranks) → ranks}))": "a list of ranks will do",
    },
    "kind_of": {
        "first = values[{0 → -1}]": "any rank's tensor gives the factor that has to fit all of them",
    },
    "doubled_and_lost": {
        "counts[sample] {+= → = counts[sample] +} 1": "a number is never changed in place",
    },
}
