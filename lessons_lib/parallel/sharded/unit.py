"""A part of a module whose weights are gathered when it runs, and let go afterwards (lesson 14)."""

import torch

from ..data.count import tensors_in
from ..hooks import Hook, remove
from .gathered import Gathered


class Unit:
    """Watches one module: gathers before its forward and its backward, and lets go after them.

    Args:
        module: which is called to use the parameters.
        name: how traces call it.
        places: [(owner, name, parameter), ...]: the modules in which the parameters stand.
        flats: their `FlatShard`s.
        owner: the `Passes`, which are told what happens.
    """

    def __init__(self, module, name, places, flats, owner):
        self.module, self.name, self.flats, self.owner = module, name, flats, owner
        self._places = places
        self._installed, self._calls, self.is_open, self._missing, self._span = None, [], False, 0, None
        self._handles = [
            module.register_forward_pre_hook(Hook(self, Unit._before), with_kwargs=True),
            module.register_forward_hook(Hook(self, Unit._after), with_kwargs=True, always_call=True),
        ]

    def __del__(self):
        remove(self._handles)

    # --- the whole parameters ----------------------------------------------------------------------------------------

    def begin(self):
        """Begin to gather, while others compute."""
        for flat in self.flats:
            flat.begin()

    def drop(self):
        """Let go of the whole parameters."""
        for flat in self.flats:
            flat.drop()

    def whole(self, counts=None, is_synced=True):
        """The whole parameters by piece: with a way back to the pieces where gradients are wanted."""
        found = {}
        for flat in self.flats:
            flat.gather()
            if torch.is_grad_enabled() and any(p.requires_grad for p in flat.parameters):
                views = Gathered.apply(flat, self, counts, is_synced, *flat.parameters)
            else:
                views = flat.views()
            found.update(zip(flat.parameters, views, strict=True))
        return found

    def install(self, whole):
        """Let the modules see these parameters, or their own pieces if None."""
        self._installed = whole
        for owner, name, parameter in self._places:
            owner._parameters[name] = parameter if whole is None else whole[parameter]
        for owner in dict.fromkeys(owner for owner, _, _ in self._places):
            if hasattr(owner, "_flat_weights_names"):  # recurrent layers of torch keep a list of their weights
                owner._flat_weights = [getattr(owner, name, None) for name in owner._flat_weights_names]

    # --- what happens ------------------------------------------------------------------------------------------------

    def _before(self, module, args, kwargs):
        self._calls.append(self._installed)
        counts, is_synced = self.owner.enters(self, args, kwargs)
        self.install(self.whole(counts, is_synced))
        self.owner.goes_on(self, 1)
        self._begin_span("forward")

    def _after(self, module, args, kwargs, output):
        self._end_span()
        self.install(self._calls.pop())
        if torch.is_grad_enabled():
            hook = Hook(self, Unit._before_backward)
            nodes = {tensor.grad_fn for tensor in tensors_in(output)} - {None}
            for node in nodes:
                node.register_prehook(hook)
            self.owner.note_weighed(nodes)
        self.owner.leaves(self)

    def _before_backward(self, gradients):
        """Backward comes to an output of the module."""
        self.owner.comes_back(self)
        if not self.is_open:
            self.is_open = True
            self._missing = sum(any(p.requires_grad for p in flat.parameters) for flat in self.flats)
            with torch.enable_grad():  # what is recomputed now needs a way back to the pieces, too
                self.install(self.whole(*self.owner.last_counts))
            self.owner.goes_on(self, -1)
            self._begin_span("backward")

    def is_frozen(self):
        """Whether no parameter needs a gradient, so that none will tell that backward is through."""
        return not any(p.requires_grad for flat in self.flats for p in flat.parameters)

    def reduce(self, flat, gradients, counts, is_synced):
        """The gradients of the pieces of a flat, given those of its whole parameters: backward is through with it."""
        self._missing -= 1
        if self._missing <= 0:
            self.close()
        flat.drop()
        return self.owner.reduce(flat, gradients, counts, is_synced)

    def close(self):
        """Backward is through with this unit."""
        self.uninstall()
        self.drop()

    def uninstall(self):
        """Let the modules see their pieces again, if backward had taken them away."""
        self._end_span()
        if self.is_open:
            self.is_open = False
            self.install(None)

    def _begin_span(self, what):
        """From now on this unit computes, for traces."""
        self._end_span()
        if self.name:
            self._span = self.owner.comm.compute(f"{what} {self.name}")
            self._span.__enter__()

    def _end_span(self):
        if self._span is not None:
            span, self._span = self._span, None
            span.__exit__(None, None, None)
