"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

NOT_IN_PLACE = "a number is never changed in place"

equivalent = {
    "own_doing": {
        "own_s {-= → = own_s -} max(0.0, min(end_s, other_end_s) - max(start_s, other_star…": NOT_IN_PLACE,
        "totals_s[peer] {+= → = totals_s[peer] +} own_s": NOT_IN_PLACE,
    },
    "best_shares": {
        "shares[done_s.index(min(done_s))] {+= → = shares[done_s.index(min(done_s))] +} 1": NOT_IN_PLACE,
    },
}
