"""The state of a sharded module and of its optimiser: gathered as one process would save it, and cut again."""

from contextlib import contextmanager

import torch

from .optimizer_state import cut_state, gather_states


class ShardedState:
    """The part of `FullySharded` that saves and loads. All ranks call each of these together."""

    @contextmanager
    def whole(self):
        """Within this context the module holds its whole parameters, to be read."""
        with torch.no_grad():
            wholes = {flat: flat.gather_own() for flat in self._passes.flats()}
            for unit in self._passes.units:
                views = {}
                for flat in unit.flats:
                    views.update(zip(flat.parameters, _parts(flat, wholes[flat]), strict=True))
                unit.install(views)
        try:
            yield wholes
        finally:
            for unit in self._passes.units:
                unit.install(None)

    def state_dict(self, *args, **kwargs):
        """What the module would give if it were whole, on every rank."""
        with self.whole():
            return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, strict=True):
        """Keep this rank's pieces of the state of the whole module."""
        with self.whole() as wholes:
            keys = self.module.load_state_dict(state_dict, strict)
            for flat, whole in wholes.items():
                flat.put(whole)
        return keys

    def optimizer_state_dict(self, optimizer):
        """What an optimiser of the whole parameters would save, on every rank."""
        state = optimizer.state_dict()
        for flat in self._passes.flats():
            states = gather_states(flat.layout, flat.parameters, optimizer.state, self.comm)
            for parameter, each in zip(flat.parameters, states, strict=True):
                number = _number_of(parameter, optimizer)
                if number is not None and each:
                    state["state"][number] = each
        return state

    def load_optimizer_state_dict(self, optimizer, state_dict):
        """Keep this rank's share of what an optimiser of the whole parameters has saved."""
        own = {**state_dict, "state": dict(state_dict["state"])}
        for flat in self._passes.flats():
            parts = flat.layout.parts(self.comm.rank)
            for parameter, shape, part in zip(flat.parameters, flat.layout.shapes, parts, strict=True):
                number = _number_of(parameter, optimizer)
                if number in own["state"]:
                    own["state"][number] = cut_state(own["state"][number], shape, part)
        optimizer.load_state_dict(own)


def _parts(flat, whole):
    """The whole parameters of a `FlatShard`, which may be parts of larger ones along another axis."""
    for parameter, view in zip(flat.parameters, flat.layout.views(whole), strict=True):
        view._part = getattr(parameter, "_part", None)
        yield view


def _number_of(parameter, optimizer):
    """The number of a parameter in the state dict of an optimiser, or None."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    return next((number for number, each in enumerate(parameters) if each is parameter), None)
