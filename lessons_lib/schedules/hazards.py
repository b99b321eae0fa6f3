"""Which steps must have ended before memory may be read or written.

Ranks do not march in step: each goes on as soon as its own waits are over. So a rank must not read a piece that its
owner has yet to write (read after write), nor write a piece that another rank has yet to read (write after read), nor
let what comes early land where it has yet to write itself (write after write).

A piece is (chunk, segment). Steps are counted: "after 3 steps" means that steps 0, 1 and 2 have ended.
"""


class Hazards:
    """What has been read and written up to a step, for the plan of one rank.

    Args:
        rank: the rank whose memory others read, and which therefore has to wait for them.
    """

    def __init__(self, rank):
        self._rank = rank
        self._written = {}  # (rank, piece) -> after how many steps that rank has last written the piece
        self._readers = {}  # piece -> {reader: after how many steps it has last read the piece from this rank}

    def written(self, rank, pieces):
        """After how many steps `rank` has written all of `pieces`."""
        return max((self._written.get((rank, piece), 0) for piece in pieces), default=0)

    def readers(self, pieces=None):
        """Who reads any of `pieces` (by default, of all) from this rank.

        Returns:
            {reader: the number of steps that it must have ended before this rank may overwrite them}.
        """
        readers = {}
        for piece in self._readers if pieces is None else pieces:
            for reader, num_steps in self._readers.get(piece, {}).items():
                readers[reader] = max(num_steps, readers.get(reader, 0))
        return readers

    def end_step(self, num_steps, messages, segment):
        """Note what `messages` have read and written once all ranks have ended `num_steps` steps."""
        for src, dst, chunk, _ in messages:
            piece = chunk, segment
            self._written[dst, piece] = num_steps
            if src == self._rank:
                self._readers.setdefault(piece, {})[dst] = num_steps
