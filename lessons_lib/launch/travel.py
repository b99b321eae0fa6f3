"""How functions, classes and values travel between the launcher and its ranks, and their source lines with them."""

import functools
import io
import linecache
import marshal
import os
import pickle
import sys
import types
import weakref
from collections import ChainMap
from multiprocessing.reduction import ForkingPickler

import cloudpickle
import torch
from cloudpickle import cloudpickle as inside


def packed(value):
    """`value` as bytes, and the source of its functions. What cannot be imported elsewhere travels by value."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.sources


def unpacked(pickled, sources):
    """The value that was `packed`. Its functions' tracebacks show their source; classes known here stay as they are."""
    linecache.cache.update(sources)
    return _Unpickler(io.BytesIO(pickled)).load()


class _Pickler(cloudpickle.Pickler):
    """Keeps in code objects the file that they came from, for tracebacks, and collects the source of cells.

    cloudpickle forgets the file since version 3.1.3.
    """

    def __init__(self, file):
        self.sources = {}
        # Before the pickler is set up, which looks once for this table.
        own = {
            types.CodeType: self._reduce_code,
            functools._lru_cache_wrapper: _reduce_cached,
            functools.cached_property: lambda made: (
                functools.cached_property,
                (made.func,),
                {"attrname": made.attrname},
            ),
            weakref.WeakKeyDictionary: lambda made: (weakref.WeakKeyDictionary, (dict(made),)),  # of singledispatch
        }
        self.dispatch_table = ChainMap(own, self.dispatch_table)
        super().__init__(file, pickle.HIGHEST_PROTOCOL)

    def _reduce_code(self, code):
        file, name = code.co_filename, _cell_name(code.co_filename)
        if name not in self.sources and not os.path.exists(file) and (lines := linecache.getlines(file)):
            size_bytes, no_time = sum(map(len, lines)), None  # without a time, linecache never drops it as outdated
            self.sources[name] = size_bytes, no_time, lines, name
        return marshal.loads, (marshal.dumps(_renamed(code, name)),)

    def reducer_override(self, obj):
        """A tensor that is part of a larger one travels alone, without the rest."""
        if type(obj) is torch.Tensor and obj.layout == torch.strided and obj.untyped_storage().nbytes() > obj.nbytes:
            return obj.detach().clone().requires_grad_(obj.requires_grad).__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return super().reducer_override(obj)


def _reduce_cached(cached):
    """A function with `functools.cache` or `lru_cache` travels with an empty cache."""
    module = sys.modules.get(cached.__module__)
    found = inside._lookup_module_and_qualname(cached)
    if found is not None and not inside._is_registered_pickle_by_value(module):
        return cached.__qualname__
    # It may call itself, and be part of what its function needs: so it is made first, and told its function later.
    state = cached.__wrapped__, cached.__dict__
    return _empty_cached, (cached.cache_parameters(),), state, None, None, _set_wrapped


def _empty_cached(parameters):
    def call(*args, **kwargs):
        return cached.__wrapped__(*args, **kwargs)

    cached = functools.lru_cache(**parameters)(call)
    return cached


def _set_wrapped(cached, state):
    wrapped, attributes = state
    functools.update_wrapper(cached, wrapped)
    cached.__dict__.update(attributes)


def send_to_children_by_value():
    """Let multiprocessing, in this process, send by value what its children cannot import: what came from a cell.

    So a `Dataset` of a cell reaches the workers of a `DataLoader`, however these are started.
    """
    ForkingPickler.reducer_override = _reduce_for_children


def _reduce_for_children(_, obj):
    if not isinstance(obj, (type, types.FunctionType)) or inside._lookup_module_and_qualname(obj) is not None:
        return NotImplemented
    return cloudpickle.loads, (cloudpickle.dumps(obj),)


class _Unpickler(pickle.Unpickler):
    """Leaves a class that this process has already as it is, whatever a copy of it has become on a rank."""

    def __init__(self, file):
        super().__init__(file)
        self._known = set(inside._DYNAMIC_CLASS_TRACKER_BY_CLASS)  # cloudpickle has no public way to ask

    def find_class(self, module, name):
        found = super().find_class(module, name)
        return self._set_state if found is inside._class_setstate else found

    def _set_state(self, made, state):
        return made if made in self._known else inside._class_setstate(made, state)


def _cell_name(file):
    """What tracebacks of a notebook call the cell that `file` stands for, such as "Cell In[3]"; otherwise `file`."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    label = shell and getattr(shell.compile, "format_code_name", lambda file: None)(file)
    return " ".join(label) if label else file


def _renamed(code, file):
    """`code`, and the functions and classes inside it, as if it came from `file`."""
    inner = (_renamed(part, file) if isinstance(part, types.CodeType) else part for part in code.co_consts)
    return code.replace(co_filename=file, co_consts=tuple(inner))
