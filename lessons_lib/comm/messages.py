"""Messages from one rank to another that go on while the ranks do something else."""

from ..trace import now_s
from .dense import copy_back, dense


class Messages:
    """The part of a `Communicator` that begins to send and to receive, and waits later."""

    def isend(self, tensor, dst):
        """Begin to give `tensor` to rank `dst`; a handle. The tensor must not change until its `wait()` has returned.

        Raises:
            TypeError, ValueError: not a tensor, no such rank, or the rank itself.
        """
        self._check("isend", tensor, dst=dst)
        sent = dense(tensor)
        return Message(self, self._background.alone(self.transport.isend, sent, dst), lambda _: self._has_sent(sent))

    def irecv(self, tensor, src):
        """Begin to fill `tensor` with what rank `src` sends; a handle. It is filled when `wait()` has returned.

        Messages between two ranks arrive in the order in which they were begun. Raises as `isend` does.
        """
        self._check("irecv", tensor, src=src)
        target, start_s = dense(tensor), now_s()
        message = self._background.alone(self.transport.irecv, target, src)
        return Message(self, message, lambda ready_s: self._has_received(tensor, target, src, start_s, ready_s))

    def _has_sent(self, tensor):
        self.ledger.sent(tensor.nbytes)

    def _has_received(self, tensor, target, src, wait_s, ready_s):
        if self.trace is not None:
            self.trace.meeting(self.rank, src, tensor.nbytes, wait_s, ready_s)
        copy_back(tensor, target)
        self.ledger.received(tensor.nbytes)


class Message:
    """A message under way. `arrived(ready_s)` is called once, when it is over."""

    def __init__(self, comm, message, arrived):
        self._comm, self._message, self._arrived, self._is_over = comm, message, arrived, False

    def wait(self):
        """Return when the other rank has taken it, or when it is here; raise what went wrong."""
        if not self._is_over:
            self._comm._background.settle()
            ready_s = self._comm._background.alone(self._comm.transport.wait_for, self._message)
            self._is_over = True
            self._arrived(ready_s)

    def is_completed(self):
        """Whether `wait()` would not wait."""
        if not self._is_over and self._comm._background.alone(self._comm.transport.is_done, self._message):
            self.wait()
        return self._is_over
