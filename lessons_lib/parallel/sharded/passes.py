"""The passes of a sharded module: which unit is at work, which one comes next, and when whole weights are let go."""

import weakref

import torch

from ..data.count import batch_sizes
from ..data.weights import check_equal
from ..replicas import share_buffers
from ..weighed import note_weighed
from .gathered import SaveWeightsAsPlaces


class Passes:
    """Is told by all `Unit`s what happens to them.

    Args:
        module: the wrapped module.
        comm: `Communicator`.
        reshard, prefetch, weight_by_batch, batch_dim: options of `FullySharded`.

    Attributes:
        units: to be set, the module itself first.
        given: the count that the caller has given for the forward pass under way, or None.
        is_synced: whether the gradients of forward passes from now on are to be reduced.
        last_counts: what the last forward pass counted, and whether its gradients are to be reduced.
    """

    def __init__(self, module, comm, reshard, prefetch, weight_by_batch, batch_dim):
        self.comm, self.units, self.given, self.is_synced = comm, [], None, True
        self.last_counts = ((1,),), True
        self._module, self._reshard, self._prefetch = module, reshard, prefetch
        self._weight_by_batch, self._batch_dim = weight_by_batch, batch_dim
        self._depth, self._order, self._called, self._token, self._staging = 0, [], [], _nothing, {}

    def start(self, units):
        """Set the units, and ask for the memory in which gradients are put together. All ranks do so together."""
        self.units, most = units, {}
        for flat in self.flats():
            most[flat.reduce_dtype] = max(most.get(flat.reduce_dtype, 0), flat.staging_numel())
        self._staging = {dtype: self.comm.buffer(numel, dtype) for dtype, numel in most.items()}

    def flats(self):
        """The `FlatShard`s of all units."""
        return [flat for unit in self.units for flat in unit.flats]

    def is_in_backward(self):
        """Whether a backward pass is under way, and a forward is thus a recomputation."""
        return self._token() is not None

    def enters(self, unit, args, kwargs):
        """The forward of a unit begins; what it counts, and whether its gradients are to be reduced."""
        self._depth += 1
        if self._depth == 1:
            if not self.is_in_backward():
                self._begin_forward(args, kwargs)
            self._saving = SaveWeightsAsPlaces(self.flats())
            self._saving.__enter__()
        self._called.append(unit)
        return self.last_counts

    def _begin_forward(self, args, kwargs):
        self._called = []
        for unit in self.units:
            unit.close()  # what a pass that failed has left, and whole weights that may have changed since
        if torch.is_grad_enabled():
            for flat in self.flats():
                flat.check_kept()
            self.last_counts = (self._count(args, kwargs),), self.is_synced
            if self._module.training and self.is_synced:
                share_buffers(self._module, self.comm)

    def _count(self, args, kwargs):
        if not self._weight_by_batch:
            return (1,)
        counts = tuple(dict.fromkeys(batch_sizes((args, kwargs), self._batch_dim)))
        if self.given is None and not counts:
            raise ValueError(
                f"forward was given no tensor with a dimension {self._batch_dim}: how many samples there are is "
                "needed, as weight=n"
            )
        counts = counts if self.given is None else (self.given,)
        if any(hasattr(layer, "mixes_ranks") for layer in self._module.modules()):
            check_equal(counts[0], self.comm)
        return counts

    def note_weighed(self, nodes):
        """Outputs of a unit begin at these nodes of the graph."""
        if self._weight_by_batch:
            note_weighed(nodes, self.comm)

    def leaves(self, unit):
        """The forward of a unit has ended."""
        self._depth -= 1
        is_kept = torch.is_grad_enabled() and not self._reshard
        if not is_kept and not self.is_in_backward():
            unit.drop()
        if self._depth == 0:
            self._saving.__exit__()
            if not self.is_in_backward():
                self._order = self._called

    def goes_on(self, unit, direction):
        """A unit computes now: gather the one that comes after it, forward (1) or backward (-1)."""
        if not self._prefetch:
            return
        if direction == 1:
            place = len(self._called) if not self.is_in_backward() else len(self._order)
        else:
            place = self._order.index(unit) - 1 if unit in self._order else -1
            place = len(self._order) - 1 if unit is self._order[0] else place
        if 0 < place < len(self._order) and not self._order[place].is_open:
            self._order[place].begin()

    def comes_back(self, unit):
        """A backward pass has come to an output of a unit."""
        if not self.is_in_backward():
            # The engine holds the token, and drops it with a pass that fails: the module shows its pieces again then.
            token = _Token()
            self._token = weakref.ref(token, lambda _, units=self.units: [unit.uninstall() for unit in units])
            torch.autograd.Variable._execution_engine.queue_callback(lambda token=token: self._end_backward())
        for other in self.units:
            if other.is_open and other is not unit and other.is_frozen():
                other.close()

    def _end_backward(self):
        self._token = _nothing
        for unit in self.units:
            unit.close()
        for flat in self.flats():
            flat.mark_kept()

    def reduce(self, flat, gradients, counts, is_synced):
        """The gradients of a flat's pieces."""
        if not is_synced:
            return flat.keep(gradients, counts)
        return flat.reduce(gradients, counts, self._staging[flat.reduce_dtype])


class _Token:
    """Stands for a backward pass that is under way."""


def _nothing():
    """What a dead weak reference gives."""
