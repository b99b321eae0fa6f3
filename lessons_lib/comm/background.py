"""Operations one after another, also those that go on while the rank does something else: in the order called."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock, get_ident

from ..trace import now_s


class Background:
    """Runs operations in a thread that starts with the first of them, and keeps all others apart.

    Attributes:
        spent_s: how long the rank's own code has been in operations so far, or waited for the thread.
    """

    def __init__(self):
        self._thread, self._thread_number, self._pending, self.spent_s = None, None, [], 0.0
        self._free, self.is_closed = Lock(), False

    def start(self, operation):
        """Begin `operation()` when those before it have ended; a handle to wait for it."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="collectives")
        work = Work(self._thread.submit(self._in_thread, operation), self)
        self._pending.append(work)
        return work

    def _in_thread(self, operation):
        self._thread_number = get_ident()
        return operation()

    def count(self, start_s):
        """Count the time since `start_s`, unless this is the thread."""
        if get_ident() != self._thread_number:
            self.spent_s += now_s() - start_s

    def begin(self, begin, *args):
        """Let `begin(*args)` start what then goes on by itself; the handle that it gives, to wait for it.

        What the thread has to do comes first, on all ranks: otherwise their order would depend on who is quick.
        """
        for earlier in self._pending:
            if isinstance(earlier, Work):
                earlier.wait()
        work = self.alone(begin, *args)
        work.count = self.count
        self._pending = [earlier for earlier in self._pending if not earlier.is_waited_for] + [work]
        return work

    def settle(self):
        """Wait for everything begun so far, and raise what it raised, so that operations keep their order."""
        pending, self._pending = self._pending, []
        for work in pending:
            work.wait()

    def alone(self, operation, *args):
        """Do `operation(*args)`, and nothing beside it: messages of two threads would get mixed up."""
        if not self._free.acquire(blocking=False):
            reason = "is closed" if self.is_closed else "is busy in another thread: use async_op=True"
            raise RuntimeError(f"the communicator {reason}")
        start_s = now_s()
        try:
            return operation(*args)
        finally:
            self._free.release()
            self.count(start_s)

    def close(self):
        """Nothing may follow."""
        if self._thread is not None:
            self._thread.shutdown()
        self.is_closed = self._free.acquire(blocking=False)


class Work:
    """An operation under way."""

    def __init__(self, future, background):
        self._future, self._background, self.is_waited_for = future, background, False

    def wait(self):
        """Return when it is done; raise what it raised."""
        self.is_waited_for, start_s = True, now_s()
        try:
            self._future.result()
        finally:
            self._background.count(start_s)

    def is_completed(self):
        return self._future.done()
