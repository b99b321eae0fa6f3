"""Training with fewer waits, or none: local steps and parameter servers (lesson 13)."""
