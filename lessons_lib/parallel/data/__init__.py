"""Data parallelism, and what it is made of (lesson 12)."""
