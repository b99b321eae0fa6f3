"""How the processes of ranks are made: forked from a server that has loaded torch, where the system can."""

import multiprocessing
import signal
import sys
import threading
import types
from contextlib import contextmanager
from multiprocessing import resource_tracker


def start_method():
    """How rank processes are made: forked from a server that has torch loaded, or spawned where there is none."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def context():
    """The multiprocessing context of `start_method`; the server of ranks is on its way."""
    made = multiprocessing.get_context(start_method())
    if start_method() == "forkserver":
        # An optimiser of torch imports torch._dynamo in its first step, which takes seconds: here it is loaded once.
        made.set_forkserver_preload(["lessons_lib.launch.rank", "torch._dynamo"])
        # An interrupt meant for the launcher reaches its whole process group, and would end a server that is loading.
        resource_tracker.ensure_running()  # which ends by letting interrupts in again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return made


_main_module_lock = threading.Lock()  # launches of several threads exchange the same entry of sys.modules


@contextmanager
def main_module_hidden():
    """Keep ranks from running the caller's script again: what they need of it travels by value."""
    with _main_module_lock:
        real = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = real
