"""Holds interrupts (Ctrl-C, a kernel's stop button) back while ranks are started and ended."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def interrupts_put_off():
    """Hold back interrupts, so that none comes between starting a process and noting that it must be ended.

    Yields:
        A function that lets those that came so far take effect.
    """
    before, noted = signal.getsignal(signal.SIGINT), []

    def let_through():
        while noted:
            before(*noted.pop())

    # Only the main thread receives interrupts; SIG_IGN, SIG_DFL and None are no functions that could be called later.
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield let_through
        return
    signal.signal(signal.SIGINT, lambda *args: noted.append(args))
    try:
        yield let_through
    finally:
        signal.signal(signal.SIGINT, before)
    let_through()
