"""Random numbers that N ranks draw as one process would: dropout inside and outside of split regions (lesson 15)."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from ..hooks import OwnHook
from .conjugate import bounds


class SharedDraws:
    """While a module computes in training, all ranks draw from rank 0's generator; after it, each from its own again.

    So dropout on whole tensors has the same mask on every rank, and rank 0's generator ends where that of one process
    would. It begins with the outermost module that is called, so the stages of a pipeline may be called one by one.

    Args:
        module: its modules are hooked.
        comm: `Communicator`.
        always: also share where no dropout is found, for a module that draws in another way.

    Communication: a broadcast of the generator's state, 5,056 bytes on the CPU, for each forward pass in training of a
    module that has dropout; nothing otherwise.
    """

    def __init__(self, module, comm, always=False):
        self._comm, self._always, self._inside, self._before = comm, always, [], None
        self._is_shared = False
        for each in module.modules():
            droppers = [other for other in each.modules() if _may_drop(other)]
            if droppers or each is module:
                each.register_forward_pre_hook(OwnHook(lambda outer, args, found=droppers: self._enter(outer, found)))
                each.register_forward_hook(OwnHook(lambda outer, args, output: self._leave(outer)), always_call=True)

    def _enter(self, module, droppers):
        self._inside.append(module)
        if len(self._inside) == 1:
            self._before = _get_state(self._comm.device)
            drops = any(each.training and _drops(each) for each in droppers)
            self._is_shared = drops or (self._always and module.training)
            if self._is_shared:
                state = self._before.clone()
                self._comm.broadcast(state)
                _set_state(state, self._comm.device)

    def _leave(self, module):
        if module not in self._inside:  # another hook raised before it was entered
            return
        while self._inside.pop() is not module:
            pass
        if not self._inside:
            if self._is_shared and self._comm.rank:
                _set_state(self._before, self._comm.device)
            drew = not self._is_shared and module.training
            if drew and not torch.equal(_get_state(self._comm.device), self._before):
                raise RuntimeError(
                    f"{type(module).__name__} drew random numbers, though it has no dropout that parallelize could "
                    "see, so the ranks drew different ones: use parallelize(..., draws=True)"
                )


class SplitDropout(nn.Dropout):
    """Dropout of a tensor that is cut along `dim`: the ranks drop together what one process would drop.

    Each rank draws the mask of the whole tensor and takes its part; for a moment it holds the whole mask. It needs
    generators that agree (`SharedDraws`).

    Args:
        p: the share that is dropped.
        comm: `Communicator`.
        dim: along which the input is cut, by `chunk_bounds`.

    Communication: an all-reduce of one number, the length of the whole, forward in training.
    """

    def __init__(self, p, comm, dim):
        super().__init__(p)
        self.comm, self.dim = comm, dim

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        dim = self.dim % x.dim()
        size = torch.tensor(x.shape[dim])
        self.comm.all_reduce(size)
        start, length = bounds(int(size), self.comm)
        if length != x.shape[dim]:
            raise ValueError(f"x has {x.shape[dim]} numbers along dimension {dim}: {length} of {int(size)} are needed")
        shape = [int(size) if each == dim else old for each, old in enumerate(x.shape)]
        # Numbers are drawn in the order in which they lie in memory.
        order = list(range(x.dim()))
        if not x.is_contiguous():
            order.sort(key=lambda each: -x.stride(each))
        ones = torch.ones([shape[each] for each in order], dtype=x.dtype, device=x.device)
        mask = F.dropout(ones, self.p).permute([order.index(each) for each in range(x.dim())])
        return x * mask.narrow(dim, start, length).clone()

    def __reduce__(self):
        raise TypeError("a SplitDropout belongs to its own rank and cannot be copied or pickled")


def _may_drop(module):
    return isinstance(module, _DropoutNd) or any("drop" in name for name in _rates(module))


def _drops(module):
    return (module.p if isinstance(module, _DropoutNd) else max(_rates(module).values(), default=0)) > 0


def _rates(module):
    """Numbers of a module that are called something like dropout, as those of `nn.MultiheadAttention` are."""
    return {name: value for name, value in vars(module).items() if isinstance(value, float) and "drop" in name}


def _get_state(device):
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def _set_state(state, device):
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
