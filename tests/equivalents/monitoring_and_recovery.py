"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

REPLACED = "the first interval that is tried always loses less than infinity"

equivalent = {
    "save_whole": {
        'beside = name + {".partial → "write}"': "any name will do that is not the file's own",
    },
    "whole_steps": {
        'best, least = {1 → 0}, float("inf")': REPLACED,
        'best, least = {1 → 2}, float("inf")': REPLACED,
        "lost = save_s / interval_s + (interval_s / 2 {+ → -} restart_s) / mean_between_s": (
            "a restart costs the same whatever the interval is"
        ),
    },
}
