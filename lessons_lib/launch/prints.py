"""What ranks print, on its way from their streams to the launcher's: live, whole lines, each with its rank."""

import codecs
import io
import os
import queue
import sys
import threading
import time

LATE_S = 0.02


class Outbox:
    """Sends (kind, data) to the launcher; text that comes fast is sent in bundles, late by 20 ms at most.

    A finaliser may print at any moment, also in the middle of a `send` of its own thread: so the lock lets that thread
    in again, and what it prints then waits until the pipe is free.
    """

    def __init__(self, pipe):
        self._pipe, self._lock, self._sending = pipe, threading.RLock(), False
        self._texts, self._sent_s = [], 0.0
        self._wake, self._woken = queue.SimpleQueue(), False
        threading.Thread(target=self._flush_often, daemon=True).start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._let_go)

    def send(self, kind, data):
        with self._lock:
            self._flush()
            self._put(kind, data)

    def write(self, stream, text):
        with self._lock:
            self._texts.append((stream, text))
            if time.monotonic() - self._sent_s > LATE_S:
                self._flush()
            elif not self._woken:
                self._woken = True
                self._wake.put(None)

    def _flush(self):
        while self._texts and not self._sending:
            texts, self._texts = self._texts, []
            self._put("text", texts)

    def _put(self, kind, data):
        self._sending = True
        try:
            self._pipe.send((kind, data))
        finally:
            self._sending, self._sent_s = False, time.monotonic()

    def _flush_often(self):
        while True:
            self._wake.get()
            time.sleep(LATE_S)
            with self._lock:
                self._woken = False
                self._flush()

    def _let_go(self):
        """In a process that the rank forks: the pipe stays the rank's alone, and prints go where the launcher's go."""
        self.send = lambda kind, data: None
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


class _Raw(io.RawIOBase):
    def __init__(self, outbox, name, number):
        self._outbox, self._name, self._number = outbox, name, number
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self):
        return True

    def fileno(self):
        return self._number

    def write(self, data):
        self._outbox.write(self._name, self._decoder.decode(bytes(data)))
        return len(data)


def streams(outbox):
    """A rank's stdout and stderr: text and, through their `.buffer`, bytes."""
    raw = (_Raw(outbox, name, number) for number, name in enumerate(("stdout", "stderr"), start=1))
    return [io.TextIOWrapper(each, "utf-8", "backslashreplace", newline="", write_through=True) for each in raw]


class NoInput(io.TextIOBase):
    """A rank's stdin: `input()` and a debugger's prompt are refused in words, as nobody could answer four ranks."""

    def readable(self):
        return True

    def readline(self, size=-1):
        raise RuntimeError("a rank has no keyboard: ask before launch, and give the answer to it as an argument")

    read = readline


class Texts:
    """What has arrived in the launcher, shown in whole lines; lines of the same moment in rank order."""

    def __init__(self):
        self._held, self._since_s, self._unfinished = [], 0.0, {}

    def add(self, rank, texts):
        if not self._held:
            self._since_s = time.monotonic()
        self._held += [(rank, stream, text) for stream, text in texts]

    def show(self, older_than_s=None):
        """Show what is held, if it has been held for `older_than_s`; without that, all of it, and end its lines."""
        if older_than_s is not None and (not self._held or time.monotonic() - self._since_s < older_than_s):
            return
        for rank, stream, text in sorted(self._held, key=lambda held: held[0]):
            text = self._unfinished.pop((rank, stream), "") + text
            *lines, rest = text.split("\n")
            self._write(stream, "".join(f"{_labelled(rank, line)}\n" for line in lines))
            if "\r" in rest:
                self._write(stream, _labelled(rank, rest))
                rest = "\r".join(["", _seen(rest), rest.rpartition("\r")[2]])  # what comes next is written over it
            if rest:
                self._unfinished[rank, stream] = rest
        self._held = []
        if older_than_s is None:
            for (rank, stream), rest in sorted(self._unfinished.items()):
                self._write(stream, f"{_labelled(rank, rest)}\n" if _seen(rest) else "")
            self._unfinished = {}

    @staticmethod
    def _write(name, text):
        stream = getattr(sys, name)
        if text and stream is not None:
            encoding = getattr(stream, "encoding", None) or "utf-8"  # not every console can show every letter
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()


def _labelled(rank, line):
    """`line` with its rank before it; of a line that was written over (a progress bar), what is seen of it."""
    seen = _seen(line)
    if "\r" not in line.rstrip("\r"):
        return f"[rank {rank}] {seen}" + ("\r" if line.endswith("\r") else "")
    return f"\r[rank {rank}] {seen}" if seen else "\r" + " " * 100 + "\r"


def _seen(line):
    """What a terminal shows of `line`: after each "\\r", letters come in the place of those from its beginning."""
    seen = ""
    for part in line.split("\r"):
        seen = part + seen[len(part) :]
    return seen.rstrip() if "\r" in line else seen
