"""ZeRO, stages 2 and 3: every rank keeps a share of weights, gradients and state, and gathers to use (lesson 14)."""

import zlib
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..copies import is_cut_within
from ..data.count import checked_weight, takes_weight
from ..data.data_parallel import DataParallel
from ..wrapped import check_communicator, check_module, check_parameters
from .find_units import find_units
from .flat_shard import FlatShard
from .materialise import materialise
from .passes import Passes
from .sharded_state import ShardedState
from .unit import Unit


class FullySharded(ShardedState, nn.Module):
    """Keeps 1/N of every parameter on each of N ranks, and gathers a block when it computes.

    The parameters of a block lie one after the other in one flat tensor, cut into N equal chunks; this rank's part of
    each parameter is its *piece*, 1-D and perhaps empty. `parameters()` are the pieces: any optimiser of torch that
    treats each number by itself steps them, and its state is a share too. At the start every rank takes over rank 0's
    numbers.

    Gradients are the mean over all samples, g = Σ_k n_k g_k / Σ_k n_k, with n_k counted in `forward`, as in
    `DataParallel`; the ranks add them up block by block while `backward()` goes on, and each keeps those of its pieces.

    Args:
        module: any `nn.Module`; also one on the meta device, which is then made block by block.
        comm: `Communicator`.
        reshard_after_forward: let go of a block after its forward, and gather it again for its backward (stage 3).
            False: keep it until then (stage 2).
        units: the modules that are gathered one by one; by default the children of the outermost `nn.Sequential`s and
            `nn.ModuleList`s. The rest of the module is one more unit.
        dtype: in which weights are gathered and blocks compute, such as torch.bfloat16. The pieces, and the sums of
            gradients, keep their own. Floating-point inputs of `forward` are cast.
        weight_by_batch: count n_k. False: a plain mean over ranks.
        batch_dim: along which dimension of the tensors given to `forward` the n_k samples lie.
        prefetch: whether the next unit is gathered in a thread while one computes; by default where messages wait for
            a wire.
        initialise: for a module on the meta device: gives a layer its first numbers; `layer.reset_parameters()` if
            None.

    Attributes:
        module: the wrapped module, whose parameters are the pieces.
        options: (weight_by_batch, batch_dim).

    Raises:
        TypeError, ValueError: bad arguments.
        CollectiveMismatch: the ranks' modules or options differ.

    Communication: for each unit of P numbers, c = ceil(P/N): in forward an all-gather of N c numbers, one more in
    backward in stage 3, and a reduce-scatter of N (c + n + 4) in the dtype of the parameters, with n parameters: the
    numbers behind each chunk say who has used a parameter and how many samples there were. A rank sends (N - 1) / N of
    each. A unit of frozen parameters reduces nothing.

    Memory: between steps c numbers of each unit, and as many of gradients and of each of the optimiser's moments. While
    it computes, the whole weights of the unit at work, of the module's own unit and of the next one if it is
    prefetched; in backward the gradients of one unit twice, and those of the module's own.

    Differs from torch's `fully_shard`: a wrapper, flat shards; uneven batches are weighted; the optimiser may be made
    before. `state_dict` and `load_state_dict` are those of the whole module; all ranks call them together. The graph of
    gradients (`create_graph=True`) is refused. A step between forward and backward raises, and so do unequal n_k where
    tokens of other ranks pass through a rank (`context_parallel`, `ExpertParallel`).

    Source: Rajbhandari et al., ZeRO (2020), §5.2 and §5.3; Zhao et al., PyTorch FSDP (2023); lesson 14.
    """

    def __init__(
        self,
        module,
        comm,
        reshard_after_forward=True,
        units=None,
        dtype=None,
        weight_by_batch=True,
        batch_dim=0,
        prefetch=None,
        initialise=None,
    ):
        super().__init__()
        _check(module, comm)
        self.module, self.comm, self.dtype = module, comm, dtype
        prefetch = comm.transport.waits_on_wire if prefetch is None else prefetch
        self._passes = Passes(module, comm, reshard_after_forward, prefetch, weight_by_batch, batch_dim)
        options = f"{reshard_after_forward}, {dtype}, {weight_by_batch}, {batch_dim}, {prefetch}"
        found = find_units(module, units)
        names = {each: name for name, each in module.named_modules()}
        shapes = [(names[unit], _shapes(places)) for unit, places in found.items()]
        comm.transport.agree(f"FullySharded(shapes {zlib.crc32(repr(shapes).encode()):08x}, {options})")
        self._passes.start([self._make(unit, names[unit], found, initialise) for unit in found])
        for buffer in module.buffers():
            comm.broadcast(buffer)
        self._takes_weight, self.options = takes_weight(module), (weight_by_batch, batch_dim)

    def _make(self, unit, name, found, initialise):
        places = materialise(unit, found, initialise, self.comm.device)
        parameters = list(dict.fromkeys(parameter for _, _, parameter in places))
        kinds = dict.fromkeys((p.dtype, p.requires_grad) for p in parameters)
        flats = [
            FlatShard([p for p in parameters if (p.dtype, p.requires_grad) == kind], self.comm, self._dtype_of(kind[0]))
            for kind in kinds
        ]
        return Unit(unit, name, places, flats, self._passes)

    def _dtype_of(self, dtype):
        return self.dtype if dtype.is_floating_point else None

    def forward(self, *args, **kwargs):
        """What the module gives.

        Args:
            args, kwargs: of the module's own forward.
            weight: the n_k of this forward pass instead of the number of samples.
        """
        weight = None if self._takes_weight else kwargs.pop("weight", None)
        self._passes.given = None if weight is None else checked_weight(weight)
        if self.dtype is not None:
            args, kwargs = _cast((args, kwargs), self.dtype)
        try:
            return self.module(*args, **kwargs)
        finally:
            self._passes.given = None

    @contextmanager
    def no_sync(self):
        """Within this context backward passes add up whole gradients on each rank; the first pass after it reduces all.

        It is the forward pass that must lie within. Until then `.grad` holds zeros.
        """
        before, self._passes.is_synced = self._passes.is_synced, False
        try:
            yield
        finally:
            self._passes.is_synced = before

    def check_sync(self, is_synced):
        """Raise if a `DataParallel` around this would average gradients that wait here to be reduced."""
        if is_synced and not self._passes.is_synced:
            raise RuntimeError(
                "no_sync() of a FullySharded within a DataParallel that averages: enter no_sync() of both, or of the "
                "DataParallel alone"
            )

    def __reduce__(self):
        raise TypeError("a FullySharded belongs to its own rank and cannot be copied or pickled: use net.state_dict()")


def _shapes(places):
    return [(name, tuple(p.shape), str(p.dtype), p.requires_grad) for _, name, p in places]


def _cast(values, dtype):
    """Floating-point tensors in any containers as `dtype`."""
    return tree_map(lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, values)


def _check(module, comm):
    check_module(module)
    check_communicator(comm)
    check_parameters(module, comm, may_be_meta=True)
    for name, layer in module.named_modules():
        if isinstance(layer, FullySharded | DataParallel):
            raise TypeError(
                f"module{name and '.' + name} is a {type(layer).__name__}: its .module is needed, wrapped once"
            )
        if getattr(layer, "sparse", None) is True:
            raise ValueError(f"layer {name or 'module'} has sparse=True: dense gradients are needed, use sparse=False")
    for name, p in module.named_parameters():
        if is_cut_within(p, comm):
            raise ValueError(
                f"parameter {name} is split over ranks of comm already: wrap a module once, and over ranks that hold "
                "the same of it"
            )
    if not any(True for _ in module.parameters()):
        raise ValueError("module has no parameter: there is nothing to share out")
