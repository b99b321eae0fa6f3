"""The one thread that an engine belongs to, beside an event loop that never waits for it."""

import logging
import math
import threading
import time
from contextlib import suppress

from ..errors import check_whole


class Full(RuntimeError):
    """So many sequences are accepted already that these are not.

    Attributes:
        retry_after_s: when it is worth asking again: as long as those before will take, from how long others took.
    """

    def __init__(self, retry_after_s):
        super().__init__(f"the queue is full; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Closing(RuntimeError):
    """The worker accepts nothing any more."""


class Worker:
    """Runs the steps of an engine while there is something to do. Whatever it accepts ends, with tokens or an error.

    Args:
        engine: `Engine`; nobody else may touch it from now on.
        max_queue: how many sequences may wait, beside those that run.

    Attributes:
        num_accepted: sequences that were accepted and are not done.
        num_steps: forward passes so far.
        closing: whether nothing is accepted any more.
        problem: the last exception that a step raised, or None.
    """

    def __init__(self, engine, max_queue=64):
        check_whole("max_queue", max_queue, 0)
        self.engine, self.limit = engine, engine.max_batch + max_queue
        self.num_accepted, self.num_steps, self.problem = 0, 0, None
        self._new, self._unwanted, self._begun = [], [], {}  # the last: sequence -> when it was accepted
        self._took_s = 0.0  # by a sequence from accepted to done, the last ones counting most
        self.closing = self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lessons_lib engine", daemon=True)
        self._thread.start()

    def accept(self, sequences):
        """Take all of `sequences`, or none.

        Raises:
            Full: they are too many beside those that are not done.
            Closing: `drain` or `close` was called.
        """
        with self._changed:
            if self.closing:
                raise Closing("the server is shutting down")
            if self.num_accepted + len(sequences) > self.limit:
                raise Full(min(60, max(1, math.ceil(self._took_s))))
            self.num_accepted += len(sequences)
            self._new += sequences
            self._changed.notify_all()

    def cancel(self, sequences):
        """End those of `sequences` that are not done, before the next step."""
        if not sequences:
            return
        with self._changed:
            self._unwanted += sequences
            self._changed.notify_all()

    def drain(self, limit_s=None):
        """Accept nothing more, and wait until all is done: whether it was within `limit_s`."""
        with self._changed:
            self.closing = True
            return self._changed.wait_for(lambda: not self.num_accepted, limit_s)

    def close(self):
        """Accept nothing more, end what is not done as "cancelled", and then the thread."""
        with self._changed:
            self.closing = self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self):
        while not self._ended or self.num_accepted:
            with self._changed:
                self._changed.wait_for(lambda: self._new or self._unwanted or self._ended or not self.engine.idle)
                new, unwanted, self._new, self._unwanted = self._new, self._unwanted, [], []
            self._begun.update((sequence, time.monotonic()) for sequence in new)
            try:
                self._advance(new, list(self._begun) if self._ended else unwanted)
            except Exception as problem:  # others wait for their tokens, and must hear of it
                self.problem = problem
                logging.getLogger(__name__).exception("a step failed; all sequences under way end with an error")
                self._end_all()
            self._count_done()

    def _advance(self, new, unwanted):
        for sequence in new:
            self.engine.add(sequence)
        for sequence in unwanted:
            self.engine.cancel(sequence)
        self.engine.step()
        self.num_steps += 1

    def _end_all(self):
        for sequence in self._begun:
            with suppress(Exception):
                self.engine.cancel(sequence, "error")

    def _count_done(self):
        done = [sequence for sequence in self._begun if sequence.finish_reason]
        with self._changed:
            for sequence in done:
                self._took_s += 0.1 * (time.monotonic() - self._begun.pop(sequence) - self._took_s)
            self.num_accepted -= len(done)
            self._changed.notify_all()
