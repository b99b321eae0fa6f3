"""Heads of attention that are divided by the ranks (lesson 15)."""

from numbers import Integral

WIDTHS = ("head_width", "head_dim", "head_size")


def head_counts(module):
    """{attribute: number} of a module's own numbers of heads, such as num_heads and num_kv_heads."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Integral) and not isinstance(value, bool) and "head" in name and name not in WIDTHS
    }


def check_heads(module, name, columns, comm):
    """Raise unless the heads of attention `module` divide by the ranks.

    Args:
        columns: its layers that are cut by columns.

    Raises:
        ValueError: they don't, or how many there are cannot be seen.
    """
    width = next((getattr(module, each) for each in WIDTHS if isinstance(getattr(module, each, None), Integral)), None)
    counts = head_counts(module)
    if not counts and width and columns:
        counts = {"num_heads": columns[0].out_features // width}
    if not counts:
        raise ValueError(f"{name} is no attention with a number of heads: an attribute such as num_heads is needed")
    for attribute, number in counts.items():
        if number % comm.world_size:
            raise ValueError(f"{name} has {attribute}={number}: a multiple of the {comm.world_size} ranks is needed")


def divide_heads(module, comm):
    """Let a module that cuts its tensors by its number of heads find those of this rank alone."""
    for attribute, number in head_counts(module).items():
        setattr(module, attribute, number // comm.world_size)
