"""Local SGD and DiLoCo: every rank trains alone for H steps, then the ranks average (lesson 13)."""

import warnings
import zlib
from weakref import WeakSet

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ...errors import check_whole
from ..flat import pack, unpack
from ..hooks import Hook, remove
from ..replicas import share_start
from ..wrapped import check_wrapped
from .outer import Outer, check_makes_optimizer


class LocalSGD(nn.Module):
    """Averages the weights of all ranks after every H inner steps; in between each rank trains alone.

    At the start every rank takes over rank 0's parameters and buffers, θ. Each of N ranks then takes H steps of its own
    optimiser, which lead it to θ_k, and `step()` after the H-th gives all ranks the same weights:

        θ ← Σ_k θ_k / N                                            without an outer optimiser
        Δ = Σ_k (θ − θ_k) / N,   θ ← outer_optimizer(θ, gradient Δ)   with one

    With an outer SGD of lr=0.7, momentum=0.9, nesterov=True and an inner AdamW it is DiLoCo; with lr=1 and no momentum
    it is the plain mean. The state of inner optimisers, such as Adam's moments, stays on its rank.

        net = LocalSGD(model, comm, inner_steps=8)
        optimizer = torch.optim.AdamW(net.parameters())
        ...
            optimizer.step()
            net.step()

    Args:
        module: any `nn.Module`, with the same parameters on every rank; on `comm.device`.
        comm: `Communicator`.
        inner_steps: H, at least 1.
        outer_optimizer: makes an optimiser of a list of parameters, such as
            `partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)`; or None.

    Attributes:
        module: the wrapped module.
        num_steps: how many inner steps this rank has taken.
        outer_optimizer: the optimiser that was made, or None.

    Raises:
        TypeError, ValueError: bad arguments; no parameter needs a gradient.
        CollectiveMismatch: the ranks' modules, options, or numbers of steps differ.
        RuntimeError: an optimiser steps twice and `step()` was not called in between.

    Communication: per H steps one all-reduce of the parameters that needed a gradient and of the floating-point
    buffers, for each dtype: 1/H of what gradients would take. Other buffers become rank 0's.

    Memory: with an outer optimiser one copy more of all parameters, and its state. While ranks average, a copy of what
    travels, beside what the communicator needs.

    Batch statistics and everything else that changes between two averages is the rank's own, evaluation included:
    `average()` before you evaluate or save. What is saved after fewer than H steps belongs to its rank and is loaded
    there. Clip by the norm of the rank's own gradient. Wrapping a module again ends the old wrapper.

    Source: Stich, Local SGD Converges Fast and Communicates Little (2019); Douillard et al., DiLoCo (2023),
    algorithm 1; lesson 13.
    """

    def __init__(self, module, comm, inner_steps, outer_optimizer=None):
        super().__init__()
        check_wrapped(module, comm)
        check_whole("inner_steps", inner_steps, 1)
        if outer_optimizer is not None:
            check_makes_optimizer(outer_optimizer, "outer_optimizer")
        _check_wrapped_once(module)
        self.module, self.comm, self.inner_steps = module, comm, int(inner_steps)
        share_start(module, comm, f"{inner_steps=}, {'an' if outer_optimizer else 'no'} outer optimiser", "LocalSGD")
        self._outer = None if outer_optimizer is None else Outer(_numbers(module), outer_optimizer)
        self.num_steps, self._num_local, self._num_averages = 0, 0, 0
        self._moving, self._stepped, self._handles = self._trained(), WeakSet(), []
        self._state, self._loaded = None, 0
        self._versions = self._versions_now()
        self._watch()

    @property
    def outer_optimizer(self):
        return self._outer and self._outer.optimizer

    def forward(self, *args, **kwargs):
        """What the module gives."""
        return self.module(*args, **kwargs)

    def step(self):
        """Count an inner step; the H-th since the last average is followed by one. Call it after `optimizer.step()`.

        Where the training loop is not yours: `optimizer.register_step_post_hook(lambda *_: net.step())`.
        """
        self._check_is_ours()
        if self.num_steps == 0 and not self._stepped and self._versions == self._versions_now():
            warnings.warn("LocalSGD.step() before any weight has moved: call it after optimizer.step()", stacklevel=2)
        self._stepped.clear()
        self._moving |= self._trained()
        self.num_steps, self._num_local = self.num_steps + 1, self._num_local + 1
        if self._num_local >= self.inner_steps:
            self.average()

    @torch.no_grad()
    def average(self):
        """Average now, if steps were taken since the last time. All ranks call it together, after as many steps."""
        self._check_is_ours()
        numbers = _numbers(self.module)
        moving = [k for k, p in enumerate(numbers) if id(p) in self._moving]
        self.comm.transport.agree(self._call(moving))
        if self._num_local:
            self._average(numbers, moving)
            self._num_averages += 1
        self._num_local, self._moving, self._loaded = 0, self._trained(), 0

    def _average(self, numbers, moving):
        weights = [numbers[k] for k in moving]
        given = [*weights, *(buffer for buffer in self.module.buffers() if _is_number(buffer))]
        flats = pack(given)
        means = unpack(flats, given)
        if self._outer:
            self._outer.turn_back(means[: len(moving)], moving)
        for flat in flats:
            self.comm.all_reduce(flat, op="mean")
        if self._outer:
            means[: len(moving)] = self._outer.move(means[: len(moving)], moving, numbers)
        for tensor, mean in zip(given, means, strict=True):
            tensor.copy_(mean)
        for buffer in self.module.buffers():
            if not _is_number(buffer):
                self.comm.broadcast(buffer)

    # --- what may go wrong -------------------------------------------------------------------------------------------

    def _trained(self):
        return {id(p) for p in self.module.parameters() if p.requires_grad}

    def _versions_now(self):
        return sum(p._version for p in self.module.parameters())

    def _call(self, moving):
        """What ranks must agree on before they average: how far they are, and which parameters have moved."""
        told = zlib.crc32(repr([self._num_averages, self._num_local, self._loaded, moving]).encode())
        after = f"{self._num_local} steps since average {self._num_averages}"
        return f"LocalSGD.average() after {after}, of {len(moving)} parameters {told:08x}"

    def _check_is_ours(self):
        if not self._handles:
            raise RuntimeError("the module of this LocalSGD has been wrapped again: use the new one")
        if self._outer and not self._outer.fits(_numbers(self.module)):
            raise RuntimeError("the module has other parameters than when it was wrapped: wrap it again")

    def _watch(self):
        """Be told when an optimiser moves the module's weights, and when they are loaded."""
        for hook in list(self.module._load_state_dict_post_hooks.values()):
            if isinstance(hook, Hook) and isinstance(other := hook.owner(), LocalSGD):
                remove(other._handles)
        loaded = self.module.register_load_state_dict_post_hook(Hook(self, LocalSGD._reload))
        self._handles += [loaded, register_optimizer_step_pre_hook(Hook(self, LocalSGD._steps))]

    def _steps(self, optimizer, args, kwargs):
        ours = {id(p) for p in self.module.parameters()}
        if not any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
            return
        if optimizer in self._stepped:
            raise RuntimeError(
                "an optimiser steps for the second time, and LocalSGD.step() was not called in between: call "
                "net.step() after each optimizer.step()"
            )
        self._stepped.add(optimizer)

    def __del__(self):
        remove(self.__dict__.get("_handles", []))

    # --- saving and loading ------------------------------------------------------------------------------------------

    def get_extra_state(self):
        """What `state_dict()` keeps beside the module's: the count of steps and what the outer optimiser needs."""
        outer = self._outer and self._outer.optimizer.state_dict()
        start = [p.detach().clone() for p in self._outer.start] if self._outer and self._num_local else []
        state = {"num_steps": self.num_steps, "num_local": self._num_local, "rank": self.comm.rank}
        return state | {"world_size": self.comm.world_size, "outer": outer, "start": start}

    def set_extra_state(self, state):
        """Go on where `state` was saved. The module's numbers are loaded after this."""
        theirs = state["rank"], state["world_size"]
        if state["num_local"] and theirs != (self.comm.rank, self.comm.world_size):
            raise ValueError(
                f"state of rank {theirs[0]} of {theirs[1]}, {state['num_local']} steps after an average: rank "
                f"{self.comm.rank} of {self.comm.world_size} needs its own, or one saved after net.average()"
            )
        if (state["outer"] is None) != (self._outer is None):
            raise ValueError(
                f"state with{'out' if state['outer'] is None else ''} an outer optimiser: this LocalSGD has "
                f"{'one' if self._outer else 'none'}"
            )
        if self._outer:
            self._outer.optimizer.load_state_dict(state["outer"])
        self.num_steps, self._state = state["num_steps"], state

    def _reload(self, module, keys):
        """The module has other numbers now: ranks start from them, unless what was saved says from where."""
        state, self._state = self._state, None
        self._num_local, self._moving = state["num_local"] if state else 0, self._trained()
        common = (state and state["start"]) or ([] if self._num_local else _numbers(self.module))
        if self._outer:
            self._outer.restart(common)
        # What differs between ranks now would differ for ever, or be averaged in silence: the next average tells.
        self._loaded = 1 + _checksum(common)

    def __reduce__(self):
        raise TypeError(
            "a LocalSGD belongs to its own rank and cannot be copied or pickled: use net.module, or net.state_dict()"
        )


def _is_number(tensor):
    return tensor.is_floating_point() or tensor.is_complex()


def _numbers(module):
    """The parameters that can be averaged, tied ones once."""
    return [p for p in module.parameters() if _is_number(p)]


def _checksum(tensors):
    flats = [flat.cpu().view(torch.uint8).numpy() for flat in pack(tensors)]
    return zlib.crc32(repr([zlib.crc32(flat) for flat in flats]).encode())


def _check_wrapped_once(module):
    for name, layer in module.named_modules():
        if isinstance(layer, LocalSGD):
            raise TypeError(f"module{name and '.' + name} is a LocalSGD: its .module is needed, wrapped once")
