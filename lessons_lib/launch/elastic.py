"""The processes of an elastic launch: one that dies is replaced, or the others go on without it (lesson 21)."""

from contextlib import suppress
from dataclasses import replace

from ..comm.block import Block
from ..comm.factory import meeting_bytes
from ..comm.liveness import Liveness
from ..errors import RankFailed
from .cause import Report, cause
from .processes import Ranks


class ElasticRanks(Ranks):
    """The processes of one launch, of which some may die.

    Args:
        world_size: how many.
        timeout_s: how long a rank waits for another one. A process that is stopped is lost after half of that, so that
            the others hear of it before they give up.
        spares: how many replacements may be started.

    Attributes:
        failures: a `RankFailed` for each death, in order.
    """

    def __init__(self, world_size, timeout_s, spares):
        super().__init__(world_size, timeout_s / 2)
        self._spares, self._liveness, self._boards = spares, Liveness(), []
        self._setup, self._living = None, list(range(world_size))

    def start(self, setup):
        self._setup = replace(setup, liveness_name=self._liveness.name)
        super().start(self._setup)

    def results(self, let_interrupts_through):
        """Wait for all that live: (results, ledgers, trace), None for a rank that died. Raises if all have."""
        while self._living and len(self._reports) < self._world_size:
            let_interrupts_through()
            self._listen()
            self._look_for_stopped()
            for rank in [rank for rank in self._living if rank in self._reports]:
                if self._reports[rank].kind != "result":
                    self._bury(rank)
                elif self.failures:  # it may have returned while the others regroup: they must not wait for it
                    self._living.remove(rank)
                    self._announce(rank, f"rank {rank} has returned from its function")
        if not any(report.kind == "result" for report in self._reports.values()):
            self._texts.show()
            raise cause(self._reports)
        return self._ended()

    def _bury(self, rank):
        """Rank `rank` has failed: end its process, and tell the others who lives from now on."""
        self._say_how_processes_ended()
        self._end(rank)
        self.failures.append(_failure(rank, self._reports[rank]))
        for pipe in [pipe for pipe, owner in self._pipes.items() if owner == rank]:
            del self._pipes[pipe]
            pipe.close()
        is_replaced = self._spares > 0
        if is_replaced:
            self._spares -= 1
            del self._reports[rank]
        else:
            self._living.remove(rank)
        members, board = self._announce(rank, self.failures[-1].reason)
        if is_replaced:
            self._start(rank, self._setup_of_replacement(rank, members, board))

    def _announce(self, rank, reason):
        """Tell all who goes on from now on, since `rank` does not."""
        members = [each for each in self._living if each not in self._reports]
        board = Block(meeting_bytes("shared_memory", max(1, len(members))))
        self._boards.append(board)
        self._liveness.announce(members, board.name, rank, reason)
        return members, board

    def _setup_of_replacement(self, rank, members, board):
        return replace(
            self._setup,
            ranks=members,
            meeting_place=board.name,
            generation=self._liveness.number,
            restart_count=self._setup.restart_count + sum(failure.rank == rank for failure in self.failures),
        )

    def _is_stopped(self, rank):
        error = super()._is_stopped(rank)
        self._reports[rank] = Report("error", error=error)
        return error

    def _look_for_stopped(self):
        with suppress(RankFailed):  # its report says so
            super()._look_for_stopped()

    def kill(self):
        super().kill()
        for block in self._boards:
            block.end()
        self._liveness.end()


def _failure(rank, report):
    """The `RankFailed` that names `rank`, whatever it failed of."""
    found = cause({rank: report})
    if isinstance(found, RankFailed) and found.rank == rank:
        return found
    return RankFailed(rank, f"rank {rank} raised {type(found).__name__}: {found}", report.details, found.trace)
