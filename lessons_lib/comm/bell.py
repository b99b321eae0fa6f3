"""Sleeping until another process has written into shared memory: Linux's futex, reached through its system call."""

import ctypes
import platform
import sys

# The kernel's number for futex(2); other machines go without.
FUTEX = {("linux", "x86_64"): 202, ("linux", "aarch64"): 98}.get((sys.platform, platform.machine()))
WAIT, WAKE, EVERYBODY = 0, 1, 2**31 - 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Bell:
    """Lets ranks sleep on a whole number in shared memory, and wakes those who do.

    A rank that spins or yields keeps its core busy, and on a busy machine the system takes the core away from it for
    milliseconds; a rank that sleeps is put back as soon as it is woken. The kernel compares the number once more before
    it lets a rank sleep, so no wake-up falls between looking and sleeping.

    Args:
        memory: a writable buffer of 64-bit whole numbers that all ranks map.

    Attributes:
        works: whether this system has it; elsewhere `sleep` and `ring` must not be called.
    """

    def __init__(self, memory):
        self.works = FUTEX is not None and sys.byteorder == "little"
        if self.works:
            self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            self._system_call = ctypes.CDLL(None, use_errno=True).syscall
            # Without these, ctypes would pass pointers as 32-bit numbers.
            pointer = ctypes.c_void_p
            self._system_call.argtypes = [ctypes.c_long, pointer, ctypes.c_int, ctypes.c_uint, pointer, pointer]
            # A sandbox may refuse the call. It tells how many it woke: a rank that came earlier may sleep already.
            self.works = self._call(0, WAKE, EVERYBODY) >= 0

    def sleep(self, index, seen, limit_s):
        """Sleep until somebody rings for the number at `index`, at most `limit_s`; not at all if it is not `seen`."""
        limit = _Timespec(int(limit_s), int(limit_s % 1 * 1e9))
        self._call(index, WAIT, seen & 0xFFFFFFFF, ctypes.addressof(limit))

    def ring(self, index):
        """Wake all who sleep on the number at `index`, which has been written."""
        self._call(index, WAKE, EVERYBODY)

    def _call(self, index, operation, value, limit=None):
        # int: a rank may be a number of NumPy. A futex has 32 bits: the lower half, first on little-endian machines.
        return self._system_call(FUTEX, self._address + 8 * int(index), operation, value, limit, None)
