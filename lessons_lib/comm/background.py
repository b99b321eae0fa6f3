"""Operations one after another, also those that go on while the rank does something else: in the order called."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock


class Background:
    """Runs operations in a thread that starts with the first of them, and keeps all others apart."""

    def __init__(self):
        self._thread, self._pending = None, []
        self._free, self.is_closed = Lock(), False

    def start(self, operation):
        """Begin `operation()` when those before it have ended; a handle to wait for it."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="collectives")
        work = Work(self._thread.submit(operation))
        self._pending.append(work)
        return work

    def begin(self, begin, *args):
        """Let `begin(*args)` start what then goes on by itself; the handle that it gives, to wait for it.

        What the thread has to do comes first, on all ranks: otherwise their order would depend on who is quick.
        """
        for earlier in self._pending:
            if isinstance(earlier, Work):
                earlier.wait()
        work = self.alone(begin, *args)
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
        try:
            return operation(*args)
        finally:
            self._free.release()

    def close(self):
        """Nothing may follow."""
        if self._thread is not None:
            self._thread.shutdown()
        self.is_closed = self._free.acquire(blocking=False)


class Work:
    """An operation under way."""

    def __init__(self, future):
        self._future, self.is_waited_for = future, False

    def wait(self):
        """Return when it is done; raise what it raised."""
        self.is_waited_for = True
        self._future.result()

    def is_completed(self):
        return self._future.done()
