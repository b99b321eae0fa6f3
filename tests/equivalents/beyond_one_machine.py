"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "alpha_beta": {
        "pairs = [(size - mean_bytes, time {- → +} mean_s) for size, time in zip(sizes_bytes, times_s, strict…": (
            "a constant added to all times is multiplied by sizes that sum up to 0"
        ),
    },
    "cheapest": {
        'best, least = None, (float("inf"), {float("inf") → "inf"})': "a finite price is below infinity already",
    },
}
