"""Hooks that do not keep their owner alive, and that copies of what they are hooked to do not inherit."""

import weakref


class Hook:
    """Calls `act(owner, ...)` as long as `owner` lives: whoever drops a strategy gets a plain module back."""

    def __init__(self, owner, act):
        self._owner, self._act = weakref.ref(owner), act

    def __call__(self, *args):
        owner = self._owner()
        return None if owner is None else self._act(owner, *args)

    def owner(self):
        """Whose hook it is, or None if that is gone."""
        return self._owner()

    def __reduce__(self):
        return _Inert, ()  # a copy of the module, also one on another rank or in a file, trains on its own


class OwnHook:
    """Calls `act(...)`, and lets nobody copy the module: it computes with other ranks."""

    def __init__(self, act):
        self._act = act

    def __call__(self, *args):
        return self._act(*args)

    def __reduce__(self):
        raise TypeError(
            "a module that parallelize has split belongs to its own rank and cannot be copied or pickled: use "
            "full_state_dict(module), and load it into a model of one process"
        )


class _Inert:
    """What is left of a `Hook` in a copy."""

    def __call__(self, *args):
        return None


def remove(handles):
    """Take hooks away, given the list of their handles, and empty it."""
    while handles:
        handles.pop().remove()
