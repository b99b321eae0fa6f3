"""Run a function that may never end: in a thread of its own, which is stopped or left behind."""

import ctypes
import threading
import time

_STACK_BYTES = 2**26  # elsewhere than on Linux a thread's stack is too small for deep recursion


class TimeUp(SystemExit):
    """Raised inside a function that has used up its time: `except Exception` does not catch it.

    A thread that ends with a SystemExit ends without a word.
    """


def in_time(fn, time_limit_s=None):
    """Call `fn()` in a thread of its own, which starts with torch's own settings: CPU, gradients, no autocast.

    Args:
        fn: a function without arguments.
        time_limit_s: after so many seconds the function is stopped; None waits for it.

    Returns:
        What `fn` returns.

    Raises:
        TimeUp: there is no result in time. Where nothing stopped the function, its thread goes on.
        BaseException: what `fn` raised.
    """
    results, errors, go, done = [], [], threading.Event(), threading.Event()

    def body():
        go.wait()  # an interrupt inside `Thread.start` leaves a thread that cannot be stopped
        try:
            results.append(fn())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=body, daemon=True)
    try:
        _start(thread)
        go.set()
        late = not done.wait(time_limit_s)  # `Thread.join` takes the thread for ended when an interrupt comes
    finally:  # also when the person at the keyboard interrupts
        go.set()
        stopped = _stop(thread, done)
    if late:
        raise TimeUp("" if stopped else "and nothing stops it: restart the kernel")
    if errors:
        raise errors[0]
    return results[0]


def _start(thread):
    before = threading.stack_size(_STACK_BYTES)
    try:
        thread.start()
    finally:
        threading.stack_size(before)


def _stop(thread, done, patience_s=1.0):
    """Raise `TimeUp` in the thread until it is done; whether it is.

    It comes between two steps of Python, so it may be caught by a bare `except:`, or never come where a lock is waited
    for.
    """
    end_s = time.monotonic() + patience_s
    while not done.is_set() and thread.is_alive() and time.monotonic() < end_s:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeUp))
        done.wait(0.005)
    return done.is_set() or not thread.is_alive()
