"""One checkpoint on its way to the disk, while the rank does something else (lesson 21)."""

import threading
import time

from .disk import finish, write_part

POLL_S = 5e-3


class Job(threading.Thread):
    """Writes the part of one rank, and on rank 0 the manifest when all parts are there; uses no communicator.

    Args:
        partial, folder: where it is written, and the name that it gets.
        about: what the manifest says beside the checksums.
        rank: whose part this is.
        tensors, values: the part, {name: tensor} and {name: plain value}, which nobody changes any more.

    Attributes:
        has_written: an event: the part is on the disk, or could not be written.
    """

    def __init__(self, partial, folder, about, rank, tensors, values):
        super().__init__(daemon=True)
        self.partial, self.folder, self.about = partial, folder, about
        self._rank, self._tensors, self._values, self._error = rank, tensors, values, None
        self.has_written = threading.Event()

    def run(self):
        try:
            write_part(self.partial, self._rank, self._tensors, self._values)
            self.has_written.set()
            if self._rank == 0 and self._all_have_written():
                finish(self.partial, self.folder, self.about, self.about["world_size"])
        except Exception as error:
            self._error = error
            self.has_written.set()

    def _all_have_written(self):
        """Whether all parts have come; not if the folder is gone, because a rank failed or died."""
        waiting = set(range(self.about["world_size"]))
        while waiting and self.partial.exists():
            waiting = {rank for rank in waiting if not (self.partial / f"rank-{rank}.done").exists()}
            time.sleep(POLL_S if waiting else 0)
        return not waiting

    def outcome(self):
        """Raise what went wrong so far."""
        if self._error is not None:
            raise self._error
