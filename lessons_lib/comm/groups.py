"""Groups: some ranks of a communicator, as a communicator of their own."""

from contextlib import suppress
from numbers import Integral

from ..errors import CollectiveMismatch, RankFailed, RankLost, check_whole
from ..schedules.schedule import Schedule
from ..trace import GroupTrace
from .background import Background


class Groups:
    """The part of a `Communicator` that makes groups."""

    def split(self, color, key=None, name=None):
        """Part the ranks into groups, as MPI does. All ranks call it together.

        Args:
            color: a whole number of at least 0. Ranks of the same color are in one group; None: this rank is in none.
            key: a whole number; ranks of a group are numbered by it, and by their rank here where keys are equal.
            name: under which what the group does counts in `ledger.groups` and in the trace; by default the color.

        Returns:
            The `Communicator` of this rank's group, or None. It is let go with the last reference to it, by `close()`,
            or with this communicator. With an own `Schedule` as algorithm, which is made for all ranks, a group
            takes "auto".

        Raises:
            ValueError: a color, key or name of another kind.
        """
        _check(color, key, name)
        self._background.settle()
        self.ledger.call("split")
        in_none, key = color is None, self.rank if key is None else int(key)
        table = self.tell("split of sizes", [in_none, 0 if in_none else int(color), key])
        mates = sorted((k, rank) for rank, (none, c, k) in enumerate(table) if not (none or in_none) and c == color)
        members = [rank for _, rank in mates]
        transport = self._background.alone(self.transport.make_group, members)
        return self._group(transport, members, name or f"group {color}") if members else None

    def regroup(self):
        """Go on after a rank of an elastic launch has died: with those that live, and with its replacement if one came.

        All that live call it together, when they have caught `RankLost`; where another rank dies meanwhile, it waits
        for the others to notice. A replacement begins the function anew with `restart_count` 1, and meets them here:
        its communicator is this one. What was made for the old communicator (groups, meshes, strategies, buffers for
        collectives) has to be made for the new one.

        Returns:
            The `Communicator` of the ranks that live, in their order; `ranks` has their numbers in the launch.

        Raises:
            RuntimeError: the launch is not elastic, no rank has died, or this is a group.
            RankFailed: a rank that lives does not come.

        Source: MPI_Comm_shrink of User Level Failure Mitigation (Bland et al., 2013); lesson 21.
        """
        if self.name:
            raise RuntimeError(f"regroup() of group {self.name!r}: the launch's own communicator is needed")
        with suppress(RankLost):  # what goes on in the background ends so
            self._background.settle()
        transport, ranks = self._background.alone(self.transport.regroup, self.ranks[self.rank])
        is_for_all = isinstance(self.algorithm, Schedule) and len(ranks) < self.world_size
        made = type(self)(transport, "auto" if is_for_all else self.algorithm, self.device, ranks=ranks)
        made.restart_count, made.ledger = self.restart_count, self.ledger
        made._background = GroupBackground(ranks, "the ranks that live")
        if self.trace is not None:
            made.trace = transport.trace = GroupTrace(self.trace, "", ranks)
        transport.liveness.newest = made
        return made

    def _group(self, transport, members, name):
        algorithm = "auto" if isinstance(self.algorithm, Schedule) else self.algorithm
        group = type(self)(transport, algorithm, self.device, restart_count=self.restart_count)
        group.ranks, group.name = [self.ranks[rank] for rank in members], name
        group._background = GroupBackground(group.ranks, name)
        group.ledger = self.ledger.group(name)
        if self.trace is not None:
            group.trace = transport.trace = GroupTrace(self.trace, name, group.ranks)
        self._groups.add(group)
        return group

    def _settle_all(self):
        """Wait for what is pending here and in all groups below."""
        self._background.settle()
        for group in list(self._groups):
            if not group._background.is_closed:
                group._settle_all()

    def _release(self):
        """Let go of memory and sockets, of groups first. All ranks are done with them."""
        for group in list(self._groups):
            if not group._background.is_closed:
                group._release()
        self._background.close()
        self.transport.close()


class GroupBackground(Background):
    """Operations of a group. Their errors name ranks as the launch does, and say who they are in the group."""

    def __init__(self, ranks, name):
        super().__init__()
        self._ranks, self._name = ranks, name

    def alone(self, operation, *args):
        try:
            return super().alone(operation, *args)
        except RankLost:  # names the rank as the launch does already
            raise
        except CollectiveMismatch as error:
            calls = {self._ranks[r]: f"{call} as rank {r} of {self._name!r}" for r, call in error.calls.items()}
            raise CollectiveMismatch(calls) from error
        except RankFailed as error:
            rank = error.rank if error.rank is None else self._ranks[error.rank]
            who = ", ".join(map(str, self._ranks))
            raise RankFailed(rank, f"{error.reason}, all in {self._name!r}: ranks {who} of the launch") from error


def _check(color, key, name):
    if color is not None:
        check_whole("color", color, 0)
    if key is not None and (not isinstance(key, Integral) or isinstance(key, bool)):
        raise ValueError(f"key={key!r}: a whole number is needed")
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError(f"name={name!r}: a text is needed")
