"""How long messages take that wait for one another, if each takes a time of 1 from when both ranks are there."""

import collections


class Recorder:
    """A communicator that notes the order of its messages, waits and barriers.

    Attributes:
        num_messages: how many it has begun.
        steps: ("to", rank) and ("from", rank) where a message is begun, ("wait", number of the message on this rank)
            where it has ended, ("barrier", None).
    """

    def __init__(self, comm):
        self.comm, self.steps, self.num_messages = comm, [], 0

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def send(self, tensor, dst):
        self.comm.send(tensor, dst)
        self._note("to", dst)()

    def recv(self, tensor, src=None):
        src = self.comm.recv(tensor, src)
        self._note("from", src)()
        return src

    def isend(self, tensor, dst):
        return _Noted(self.comm.isend(tensor, dst), self._note("to", dst))

    def irecv(self, tensor, src):
        return _Noted(self.comm.irecv(tensor, src), self._note("from", src))

    def barrier(self):
        self.comm.barrier()
        self.steps.append(("barrier", None))

    def is_open(self):
        """Whether this rank has begun a message and not waited for its end."""
        return self.num_messages > sum(what == "wait" for what, _ in self.steps)

    def _note(self, way, peer):
        """Note the begin of a message; returns what notes its end."""
        number, self.num_messages = self.num_messages, self.num_messages + 1
        self.steps.append((way, peer))
        return lambda: self.steps.append(("wait", number))


class _Noted:
    """The handle of a message, whose first `wait` is noted."""

    def __init__(self, work, ended):
        self._work, self._ended = work, ended

    def __getattr__(self, name):
        return getattr(self._work, name)

    def wait(self):
        self._work.wait()
        self._note_end()

    def is_completed(self):
        is_completed = self._work.is_completed()
        if is_completed:
            self._note_end()
        return is_completed

    def _note_end(self):
        self._ended, ended = (lambda: None), self._ended
        ended()


def message_times(steps):
    """How many message times pass until the last rank is done.

    Args:
        steps: by rank, the steps of its `Recorder`.
    """
    steps, clocks = [collections.deque(each) for each in steps], [0] * len(steps)
    begun, own = collections.defaultdict(list), [[] for _ in steps]  # times by (src, dst, end), and messages by rank
    progress = True
    while progress:
        progress = False
        if all(each and each[0][0] == "barrier" for each in steps):
            clocks, progress = [max(clocks)] * len(clocks), True
            for each in steps:
                each.popleft()
        for rank, each in enumerate(steps):
            while each and each[0][0] != "barrier":
                what, peer = each[0]
                if what == "wait":
                    *pair, number = own[rank][peer]
                    ends = [begun[(*pair, end)][number : number + 1] for end in ("to", "from")]
                    if not all(ends):
                        break
                    clocks[rank] = max(clocks[rank], 1 + max(ends)[0])
                else:
                    pair = (rank, peer) if what == "to" else (peer, rank)
                    own[rank].append((*pair, len(begun[(*pair, what)])))
                    begun[(*pair, what)].append(clocks[rank])
                each.popleft()
                progress = True
    return max(clocks)
