"""How functions, classes and values travel between the launcher and its ranks, and their source lines with them."""

import io
import linecache
import marshal
import os
import pickle
import sys
import types
from collections import ChainMap

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
        self.dispatch_table = ChainMap({types.CodeType: self._reduce_code}, self.dispatch_table)
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
