"""Settings of the interpreter that an answer may leave changed: they are noted before it runs, and put back after."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Setting:
    """One of them, with how to read and how to set it. `quiet`: a change is put back without a word."""

    name: str
    read: Callable
    write: Callable
    quiet: bool = False


def _own_environment():
    # Torch itself names a folder for what it compiles, when an optimiser takes its first step.
    return {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR")}


def _set_environment(values):
    os.environ.clear()
    os.environ.update(values)


SETTINGS = (
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch's default device", torch.get_default_device, torch.set_default_device),
    Setting("torch.is_grad_enabled()", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting(
        "torch's deterministic algorithms",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("the working directory", os.getcwd, os.chdir),
    Setting("os.environ", _own_environment, _set_environment),
    Setting("os.environ with torch's part", lambda: dict(os.environ), _set_environment, quiet=True),
    Setting("sys.path", lambda: list(sys.path), lambda path: sys.path.__setitem__(slice(None), path)),
    # A module that is imported for the first time may add filters of its own.
    Setting(
        "warnings.filters",
        lambda: list(warnings.filters),
        lambda filters: warnings.filters.__setitem__(slice(None), filters),
        quiet=True,
    ),
)


@contextlib.contextmanager
def settings_kept(left=None):
    """Start from float32 as the default dtype, and put all settings back at the end.

    Args:
        left: a list, to which is added which settings were left changed, in words.
    """
    before = [setting.read() for setting in SETTINGS]
    torch.set_default_dtype(torch.float32)
    start = [torch.float32, *before[1:]]
    try:
        yield
    finally:
        for setting, at_start, value in zip(SETTINGS, start, before, strict=True):
            now = setting.read()
            if now != at_start and left is not None and not setting.quiet:
                left.append(f"{setting.name} {'changed' if isinstance(now, dict | list) else f'at {now}'}")
            if now != value:
                setting.write(value)
