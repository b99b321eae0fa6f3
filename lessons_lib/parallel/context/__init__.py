"""Sequences that are cut over the ranks (lesson 17)."""
