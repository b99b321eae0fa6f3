"""Memory that several processes see, and what differs between Linux, macOS and Windows about it.

On Linux a block is an anonymous file (`memfd_create`): it does not count against /dev/shm, which is 64 MB in many
containers, and it vanishes with the last process that maps it, however that process ends.
"""

import mmap
import os
import threading
import time
from multiprocessing import shared_memory

HAS_MEMFD = hasattr(os, "memfd_create")
yield_core = getattr(os, "sched_yield", lambda: time.sleep(0))


class Block:
    """`size_bytes` of shared memory. `view` is a writable buffer of it, `name` lets another process attach."""

    def __init__(self, size_bytes, name=None):
        self.size_bytes = max(size_bytes, 1)
        self._segment = self._fd = None
        if HAS_MEMFD:
            self._map_file(name)
        else:
            self._segment = shared_memory.SharedMemory(
                name, create=name is None, size=self.size_bytes if name is None else 0
            )
            self.name, self.view = self._segment.name, self._segment.buf

    def _map_file(self, name):
        fd = os.open(name, os.O_RDWR) if name else os.memfd_create("lessons_lib")
        if not name:
            os.ftruncate(fd, self.size_bytes)
        self.view = mmap.mmap(fd, self.size_bytes)
        self._fd, self.name = fd, f"/proc/{os.getpid()}/fd/{fd}"
        if name:
            self.all_attached()

    def all_attached(self):
        """Forget the name: nobody else can attach, and the memory goes with the last process that maps it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def unlink(self):
        """End the block's life as a name; called by whoever made it, when all who use it are done."""
        self.all_attached()
        if self._segment is not None:
            self._segment.unlink()


class Fence:
    """Orders this process's writes before the ones that follow, also on processors that would reorder them (Arm)."""

    def __init__(self):
        self._lock = threading.Lock()
        self._lock.acquire()

    def __call__(self):
        self._lock.release()
        self._lock.acquire()
