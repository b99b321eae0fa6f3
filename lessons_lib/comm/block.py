"""Memory that several processes see, and what differs between Linux, macOS and Windows about it.

On Linux a block is an anonymous file (`memfd_create`): it does not count against /dev/shm, which is 64 MB in many
containers, and it vanishes with the last process that maps it, however that process ends.
"""

import mmap
import os
import threading
import time
from contextlib import suppress
from multiprocessing import shared_memory

import numpy as np
import torch

HAS_MEMFD = hasattr(os, "memfd_create")
yield_core = getattr(os, "sched_yield", lambda: time.sleep(0))


class Block:
    """`size_bytes` of shared memory. `view` is a writable buffer of it, `name` lets another process attach.

    With `name`, the block is one that another process made; it must be told the same size.
    """

    def __init__(self, size_bytes, name=None):
        self.size_bytes, self._is_own, self._fd = max(size_bytes, 1), name is None, None
        fd = _memory_file() if self._is_own else None
        if fd is not None or (name or "").startswith("/proc/"):
            self._map_file(fd, name)
        else:
            self._segment = shared_memory.SharedMemory(name, create=self._is_own, size=self.size_bytes)
            self.name, self.view = self._segment.name, self._segment.buf

    def _map_file(self, fd, name):
        if name:
            fd = os.open(name, os.O_RDWR)
        try:
            if not name:
                os.ftruncate(fd, self.size_bytes)
            self.view, self._segment = mmap.mmap(fd, self.size_bytes), None
        except BaseException:
            os.close(fd)
            raise
        self._fd, self.name = fd, f"/proc/{os.getpid()}/fd/{fd}"
        if name:
            self.forget_name()

    @property
    def is_file(self):
        """Whether `name` is one that any process can open as a file."""
        return self.name.startswith("/proc/")

    @torch.inference_mode(False)  # this memory is used again and again, in that mode and out of it
    def tensor(self, dtype, numel):
        """The block's first `numel` elements as a 1-D tensor, which keeps the memory mapped."""
        size_bytes = numel * dtype.itemsize
        return torch.from_numpy(np.frombuffer(self.view, np.uint8)[:size_bytes]).view(dtype)

    def forget_name(self):
        """Nobody else can attach from now on; who has attached goes on. Harmless where names cannot be forgotten."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._segment is not None and self._is_own:
            self._segment.unlink()
        self._is_own = False

    def end(self):
        """Give the block up; called by whoever made it, when all who use it have attached or are done."""
        self.forget_name()
        with suppress(BufferError):  # tensors still look at it: it goes with the last of them
            self.view.close() if self._segment is None else self._segment.close()


def _memory_file():
    """A new anonymous file, or None where there is none: not Linux, or a container whose filter refuses the call."""
    if HAS_MEMFD:
        with suppress(OSError):
            return os.memfd_create("lessons_lib")
    return None


class Fence:
    """Orders this process's writes before the ones that follow, also on processors that would reorder them (Arm)."""

    def __init__(self):
        self._lock = threading.Lock()
        self._lock.acquire()

    def __call__(self):
        self._lock.release()
        self._lock.acquire()
