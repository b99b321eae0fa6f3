"""What a launch may not leave behind, as a fixture: import `nothing_is_left_behind` and every test is held to it."""

import os
import time
from collections import Counter

import psutil
import pytest


def wait_until(condition, limit_s=5.0):
    """Whether `condition()` comes true within the limit."""
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True


def left_behind():
    """The rank processes below this one, and the names of open memory files."""
    ranks = [p for p in psutil.Process().children(recursive=True) if _is_rank(p)]
    files = []
    if os.path.isdir("/proc/self/fd"):
        links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
        files = [os.readlink(link) for link in links if os.path.islink(link)]
    return ranks, [name for name in files if "memfd:lessons_lib" in name]


def _is_rank(process):
    """Ranks are grandchildren: children of the fork server, which itself has none of its own kind above it."""
    try:
        return process.parent().pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = Counter(left_behind()[1])  # a test that failed earlier keeps what its traceback refers to
    yield
    assert wait_until(lambda: not left_behind()[0]), left_behind()
    assert not Counter(left_behind()[1]) - before
