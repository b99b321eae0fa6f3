"""Ranks of unequal speed (lesson 20)."""
