"""Operations that go on while the rank does something else: one thread, one after another, in the order called."""

from concurrent.futures import ThreadPoolExecutor


class Background:
    """Runs operations in a thread that starts with the first of them."""

    def __init__(self):
        self._thread, self._pending = None, []

    def start(self, operation):
        """Begin `operation()` when those before it have ended; a handle to wait for it."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="collectives")
        work = Work(self._thread.submit(operation))
        self._pending.append(work)
        return work

    def settle(self):
        """Wait for everything begun so far, and raise what it raised, so that operations keep their order."""
        pending, self._pending = self._pending, []
        for work in pending:
            work.wait()

    def close(self):
        if self._thread is not None:
            self._thread.shutdown()


class Work:
    """An operation under way."""

    def __init__(self, future):
        self._future = future

    def wait(self):
        """Return when it is done; raise what it raised."""
        self._future.result()

    def is_completed(self):
        return self._future.done()
