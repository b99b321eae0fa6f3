"""Copies of one module that are to stay equal: the same start on every rank, the same buffers, the same parameters."""

import zlib

import torch
from torch.nn.modules.batchnorm import _NormBase

from .flat import pack, unpack


def share_start(module, comm, options, name="DataParallel"):
    """Take over rank 0's parameters and buffers. `CollectiveMismatch` if modules differ in shape, or in `options`."""
    comm.transport.agree(f"{name}({_signature(module)}, {options})")
    for tensor, value in _broadcast([*module.parameters(), *module.buffers()], comm):
        tensor.detach().copy_(value)


def share_buffers(module, comm):
    """Take over rank 0's buffers, so that graphs that still need the old ones find out, if they do."""
    # Statistics that a layer in training only writes are not part of any graph: no graph needs to know.
    layers = [layer for layer in module.modules() if isinstance(layer, _NormBase) and layer.training]
    only_written = {id(buffer) for layer in layers for buffer in layer.buffers(recurse=False)}
    for buffer, value in _broadcast(list(module.buffers()), comm):
        if id(buffer) in only_written:
            buffer.data.copy_(value)
        elif not torch.equal(buffer, value):
            buffer.detach().copy_(value)


def trained(module):
    """The parameters that need a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def identities(module, found=None):
    """Ids and dtypes of what `trained` gives, tied ones more than once: fast, as every forward pass asks.

    None in it stands for a tensor that `torch.func.functional_call` has put there for a while.
    """
    found = [] if found is None else found
    for parameter in module._parameters.values():
        if parameter is not None and parameter.requires_grad:
            found += (None,) if parameter.__class__ is torch.Tensor else (id(parameter), parameter.dtype)
    for child in module._modules.values():
        if child is not None:
            identities(child, found)
    return found


def _signature(module):
    shapes = [(name, tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in module.named_parameters()]
    shapes += [(name, tuple(b.shape), str(b.dtype)) for name, b in module.named_buffers()]
    numel = sum(p.numel() for p in module.parameters())
    return f"{len(shapes)} tensors, {numel} numbers, shapes {zlib.crc32(repr(shapes).encode()):08x}"


@torch.no_grad()
def _broadcast(tensors, comm):
    """Pairs of a tensor and its value on rank 0; none on rank 0 itself."""
    flats = pack(tensors)
    for flat in flats:
        comm.broadcast(flat)
    return list(zip(tensors, unpack(flats, tensors), strict=True)) if comm.rank else []
