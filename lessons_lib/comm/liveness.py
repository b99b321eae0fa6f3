"""What the launcher tells the ranks of an elastic launch about those that have died, in memory that all see."""

import json
from dataclasses import dataclass

from ..errors import RankLost
from .block import Block, Fence

GENERATION, LENGTH, TEXT_AT, REASON_CHARACTERS = 0, 1, 16, 1000
SIZE_BYTES = 1 << 14  # holds the numbers of 128 ranks and a reason, whatever its characters


@dataclass(frozen=True)
class Generation:
    """Who is alive from one death to the next.

    Attributes:
        number: how many ranks have died before; 0 at the start.
        ranks: the numbers in the launch of those that live, in order.
        board: the name of the memory in which these meet.
        lost: the rank that has died last.
        reason: what happened to it, one line.
    """

    number: int
    ranks: list
    board: str
    lost: int
    reason: str


class Liveness:
    """The launcher writes a `Generation` for each death, in their order; any rank can look at the newest.

    Args:
        name: of the memory, in a rank; None makes it, in the launcher.

    Attributes:
        newest: the communicator that this rank has made last by `regroup`, or None.
    """

    def __init__(self, name=None):
        self._block, self._fence, self.newest = Block(SIZE_BYTES, name), Fence(), None
        self.name, self._bytes = self._block.name, memoryview(self._block.view)
        self._ints = self._bytes[:TEXT_AT].cast("B").cast("q")

    @property
    def number(self):
        """How many ranks have died so far."""
        return self._ints[GENERATION] // 2

    def announce(self, ranks, board, lost, reason):
        """Tell all ranks that `lost` has died. The launcher alone does so."""
        data = json.dumps([ranks, board, lost, reason[:REASON_CHARACTERS]]).encode()
        self._ints[GENERATION] += 1  # odd: the text changes now
        self._fence()
        self._bytes[TEXT_AT : TEXT_AT + len(data)] = data
        self._ints[LENGTH] = len(data)
        self._fence()
        self._ints[GENERATION] += 1

    def read(self):
        """The newest `Generation`; there must have been a death."""
        while True:
            before = self._ints[GENERATION]
            self._fence()
            data = bytes(self._bytes[TEXT_AT : TEXT_AT + self._ints[LENGTH]])
            self._fence()
            if before % 2 == 0 and self._ints[GENERATION] == before:
                return Generation(before // 2, *json.loads(data))

    def check(self, number):
        """Raise if a rank has died since the generation of that number began.

        Raises:
            RankLost: one has.
        """
        if self.number > number:
            newest = self.read()
            raise RankLost(newest.lost, newest.reason)

    def end(self):
        """Give the memory up."""
        self._ints.release()
        self._bytes.release()
        self._block.end()
