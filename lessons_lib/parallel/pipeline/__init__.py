"""Pipeline parallelism: layers on different ranks (lesson 16)."""
