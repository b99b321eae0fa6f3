"""Data parallelism: every rank has the whole model and a share of the batch (lesson 12)."""

from contextlib import contextmanager
from numbers import Integral, Real

import torch
from torch import nn

from ..copies import is_cut_within
from ..replicas import share_buffers, share_start
from ..sharded.sharded_state import ShardedState
from ..wrapped import check_communicator, check_module, check_parameters, check_trains
from .count import SampleCounter, checked_weight, takes_weight
from .reducer import Reducer


class DataParallel(nn.Module):
    """Trains one model on many ranks: gradients are averaged over all samples when `backward()` returns.

    At the start every rank takes over rank 0's parameters and buffers. With n_k samples on rank k and g_k the gradient
    of their mean loss, every rank gets  g = Σ_k n_k g_k / Σ_k n_k,  the gradient of the mean over all samples.

    n_k is counted when the module's forward runs, and bound to the graph of its outputs: it counts in those backward
    passes that come to them. Several forward passes may lead to one average, as in accumulation, if each gives the
    ranks the same weights; otherwise every rank raises.

    Args:
        module: any `nn.Module`, with the same parameters on every rank; on `comm.device`.
        comm: `Communicator`.
        bucket_cap_mb: gradients travel in buckets of about this size (MB), the last layers' first.
        overlap: whether buckets are reduced in a thread while `backward()` goes on; by default where messages wait for
            a wire, and not in shared memory, where the reduction needs the same core.
        weight_by_batch: count n_k (a rank may have none). False: a plain mean over ranks, as in torch's DDP; the two
            are equal when all n_k are.
        broadcast_buffers: take over rank 0's buffers (batch norm statistics) before each forward pass in training.
        batch_dim: along which dimension of the tensors given to `forward` the n_k samples lie; 0 if None. Must be
            given for modules with `batch_first=False` inside.
        hook: called as `hook(bucket, comm)` for each bucket in place of its all-reduce, in the same order on all ranks,
            when `backward()` is done; it leaves the sum over ranks of `bucket.gradients` there. Those of
            `lessons_lib.compress` send less (lesson 24). What it keeps between steps (`state_dict`) is kept by a
            `Checkpoints` too.

    Attributes:
        module: the wrapped module.

    In a module that `context_parallel` or `ExpertParallel` has changed, tokens of other ranks pass through this one.
    There n_k counts tokens (the two dimensions from `batch_dim` on), and weighs what comes back to the outputs, before
    it mixes with what comes from other ranks; one all-reduce of two numbers per forward pass tells Σ n_k.

    Around a `FullySharded` over another axis, whose gradients are the mean over its ranks already, n_k are the samples
    of all of them: one all-reduce of two numbers per forward pass adds them up, and every replica needs one.

    Raises:
        TypeError, ValueError: bad arguments; no parameter needs a gradient, or one is split over ranks of `comm`.
        CollectiveMismatch: the ranks' modules or options differ.

    Communication: one all-reduce of the gradients a backward pass, and as many numbers more as there are parameters,
    plus 4. For half precision one more of a single number; two more of few numbers where the lengths of several
    inputs, or of several forward passes, differ.

    Differs from torch's DDP: parameters without a gradient need no flag, and keep `grad` None if no rank has one;
    uneven shards are weighted; `net.module(x)` counts as `net(x)` does; several backward passes may go through one
    forward pass; parameters that come, go or change their dtype are taken over by the next forward pass; ranks that do
    different numbers of passes are told. Parameters' `.grad` are views of the buckets after a backward pass. Wrapping
    a module again ends the old wrapper. Copies and pickles are those of `.module`. A graph of the averages
    (`backward(create_graph=True)`), sparse gradients and lazy parameters are refused.

    Source: Li et al., PyTorch Distributed (2020), §3.2; lesson 12.
    """

    def __init__(
        self,
        module,
        comm,
        bucket_cap_mb=25.0,
        overlap=None,
        weight_by_batch=True,
        broadcast_buffers=True,
        batch_dim=None,
        hook=None,
    ):
        super().__init__()
        _check_options(module, comm, bucket_cap_mb, batch_dim, hook)
        if weight_by_batch and batch_dim is None:
            _check_batch_first(module)
        self.module, self.comm, self.broadcast_buffers = module, comm, broadcast_buffers
        overlap = comm.transport.waits_on_wire if overlap is None else overlap
        self._options = f"{bucket_cap_mb:g} MB, {overlap=}, {weight_by_batch=}, {broadcast_buffers=}, {batch_dim=}"
        self._options += f", hook={_told(hook)}" * (hook is not None)
        self._reducer = Reducer(comm, bucket_cap_mb * 1e6, overlap, weight_by_batch, hook)
        self._adopt()
        if hasattr(hook, "serve"):
            hook.serve(self._reducer)
        self._counter, self._takes_weight = SampleCounter(module, self._reducer, batch_dim or 0), takes_weight(module)
        shards = _find_shards(module, weight_by_batch, batch_dim or 0)
        self._check_shards = shards and shards.check_sync
        self._counter.shards = shards.comm if shards and weight_by_batch else None

    def _adopt(self):
        """Start, or go on after the module has changed, with rank 0's numbers and the parameters that it has now."""
        _check_module(self.module, self.comm)
        share_start(self.module, self.comm, self._options)
        self._reducer.watch(self.module)
        self._shares_buffers = self.broadcast_buffers and any(True for _ in self.module.buffers())

    def forward(self, *args, **kwargs):
        """What the module gives.

        Args:
            args, kwargs: of the module's own forward.
            weight: the n_k of this forward pass instead of the number of samples, for a loss that is a mean over
                something else, such as the tokens that are no padding. Where the module's forward has an argument of
                this name, it is the module's.
        """
        weight = None if self._takes_weight else kwargs.pop("weight", None)
        if not torch.is_grad_enabled():
            return self.module(*args, **kwargs)
        self._check_module_is_ours()
        if self._check_shards is not None:
            self._check_shards(self._reducer.is_synced)
            kwargs |= {} if weight is None else {"weight": weight}
        if self._shares_buffers and self.training and self._reducer.is_synced:
            share_buffers(self.module, self.comm)
        counter = self._counter
        counter.given, counter.is_checked = None if weight is None else checked_weight(weight), True
        try:
            return self.module(*args, **kwargs)
        finally:
            counter.given, counter.is_checked = None, False

    def _check_module_is_ours(self):
        """Take over what has changed in the module since it was wrapped, on all ranks together."""
        if self._reducer.is_released:
            raise RuntimeError("the module of this DataParallel has been wrapped again: use the new one")
        if not self._reducer.trains_all(self.module):
            self._adopt()

    @contextmanager
    def no_sync(self):
        """Within this context backward passes add up gradients on each rank; the first pass after it averages them.

        It is the forward pass that must lie within.
        """
        before, self._reducer.is_synced = self._reducer.is_synced, False
        try:
            yield
        finally:
            self._reducer.is_synced = before

    def run_state(self):
        """What the last bits of the next step depend on beside the weights; a `Checkpoints` keeps it (lesson 21)."""
        keeps = hasattr(self._reducer.hook, "state_dict")
        return {"unit": self._reducer.unit} | ({"hook": self._reducer.hook.state_dict()} if keeps else {})

    def load_run_state(self, state):
        """Go on as the run did that gave `state`, bit for bit."""
        self._reducer.unit = state["unit"]
        hook = self._reducer.hook
        if "hook" in state and not hasattr(hook, "load_state_dict"):
            told = None if hook is None else _told(hook)
            raise ValueError(f"hook={told}: the state is of a run with a hook that keeps something, one is needed")
        if "hook" in state:
            hook.load_state_dict(state["hook"])

    def __reduce__(self):
        raise TypeError(
            "a DataParallel belongs to its own rank and cannot be copied or pickled: use net.module, in "
            "deepcopy(net.module), torch.save(net.module.state_dict(), path) or AveragedModel(net.module)"
        )


def _check_options(module, comm, bucket_cap_mb, batch_dim, hook):
    check_module(module)
    check_communicator(comm)
    if not isinstance(bucket_cap_mb, Real) or not bucket_cap_mb > 0:
        raise ValueError(f"bucket_cap_mb={bucket_cap_mb!r}: more than 0 MB are needed")
    if hook is not None and not callable(hook):
        raise TypeError(f"hook is a {type(hook).__name__}: a function hook(bucket, comm), or None, is needed")
    if batch_dim is not None and (not isinstance(batch_dim, Integral) or batch_dim < 0):
        raise ValueError(f"batch_dim={batch_dim!r}: a dimension, 0 or more, is needed")


def _told(hook):
    """What ranks compare of a hook: its kind and its settings, as far as these are plain."""
    settings = {name: value for name, value in getattr(hook, "__dict__", {}).items() if not name.startswith("_")}
    plain = {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
    return f"{getattr(hook, '__name__', type(hook).__name__)}{plain or ''}"


def _check_module(module, comm):
    """Raise for what cannot be averaged, in words that name the way out."""
    for name, layer in module.named_modules():
        if isinstance(layer, DataParallel):
            raise TypeError(f"module{name and '.' + name} is a DataParallel: its .module is needed, wrapped once")
        if getattr(layer, "sparse", None) is True and any(p.requires_grad for p in layer.parameters(recurse=False)):
            raise ValueError(f"layer {name or 'module'} has sparse=True: dense gradients are needed, use sparse=False")
    check_parameters(module, comm)
    for name, p in module.named_parameters():
        if is_cut_within(p, comm):
            raise ValueError(
                f"parameter {name} is split over ranks of comm: a comm of ranks that hold the same of it is needed, or "
                "average_gradients(parameters, mesh, axes) instead of DataParallel"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise ValueError(f"{name} is an expanded tensor, whose elements share memory: register its .clone()")
    check_trains(module)


def _find_shards(module, *options):
    """`module` if it is a `FullySharded`, which has to weigh as we do; else None."""
    for name, layer in module.named_modules():
        if isinstance(layer, ShardedState):
            if layer is not module:
                raise TypeError(f"module.{name} is a FullySharded: the whole module has to be wrapped in one")
            if layer.options != options:
                raise ValueError(
                    f"weight_by_batch, batch_dim={options}: those of the FullySharded, {layer.options}, are needed"
                )
            return module
    return None


def _check_batch_first(module):
    for name, layer in module.named_modules():
        if getattr(layer, "batch_first", None) is False:
            raise ValueError(
                f"layer {name or 'module'} has batch_first=False: batch_dim=1 is needed if samples lie along "
                "dimension 1 of the inputs of forward, batch_dim=0 if they lie along dimension 0"
            )
