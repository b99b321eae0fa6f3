"""Two names of before, until all code says `count` and `simulate`."""

from .count import count
from .simulate import simulate


def count_program(program, block_bytes=0):
    """`count`."""
    return count(program, block_bytes=block_bytes)


def simulate_program(program, cost_s, block_bytes=0, links=None):
    """`simulate`."""
    return simulate(program, links=links, cost_s=cost_s, block_bytes=block_bytes)
