"""How the processes of ranks are made: forked from a server that has loaded torch, where the system can."""

import glob
import multiprocessing
import os
import secrets
import signal
import sys
import threading
import types
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, process, resource_tracker, util

LONGEST_FOLDER = 80  # bytes; a socket's name, with its folder, has 104 at most on macOS and 108 on Linux


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
            with _short_temporary_folder():
                multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return made


def _forget_server():
    """In a forked process: the server is no child of this one, which could neither ask whether it lives nor end it."""
    server = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)  # the server ends when nobody has it open: not later than its launcher
    server.__init__()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_server)


@contextmanager
def _short_temporary_folder():
    """Give the server's socket, which is in the temporary folder, a short name: the system takes 108 bytes at most."""
    folder, settings = util.get_temp_dir(), process.current_process()._config
    if len(os.fsencode(folder)) < LONGEST_FOLDER or not os.path.isdir("/proc/self/fd"):
        yield
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    settings["tempdir"] = f"/proc/self/fd/{fd}"
    try:
        yield
    finally:
        settings["tempdir"] = folder
        if not (forkserver._forkserver._forkserver_address or "").startswith(f"/proc/self/fd/{fd}/"):
            os.close(fd)  # a server runs that was started before; otherwise each new rank is asked for by this name


def semaphore_prefix():
    """How the names of all semaphores begin that the ranks of one launch make, and those of launches inside them."""
    return f"{process.current_process()._config['semprefix']}-{secrets.token_hex(3)}"


def name_semaphores(prefix):
    """Let the names of semaphores that this process makes with multiprocessing begin with `prefix`."""
    process.current_process()._config["semprefix"] = prefix


def unlink_semaphores(prefix):
    """Take away semaphores that were left by processes that were killed. They can be listed on Linux alone."""
    for path in glob.glob(f"/dev/shm/sem.{glob.escape(prefix[1:])}-*"):
        name = "/" + os.path.basename(path).removeprefix("sem.")
        with suppress(FileNotFoundError):
            os.unlink(path)
            resource_tracker.unregister(name, "semaphore")


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
