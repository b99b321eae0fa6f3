"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "average_in_buckets": {
        "buckets, room_bytes = [], -{1 → 2}": "any negative number says that there is no room",
        "for gradient in {reversed(gradients) → gradients}:": "the task leaves open from which end buckets are filled",
        "room_bytes {-= → = room_bytes -} gradient.nbytes": "a number is never changed in place",
    },
}
