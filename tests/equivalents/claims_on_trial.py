"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {}
