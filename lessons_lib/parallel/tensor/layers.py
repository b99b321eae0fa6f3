"""Tensor parallelism: every rank holds some columns or rows of a layer's weight (lesson 15)."""

import torch
from torch import nn
from torch.nn import functional as F

from ..replicas import share_start
from .again import Again, keeping_parts
from .conjugate import add_up, cut, enter, gather, join, reduce_scatter
from .parts import check_part, cut_parameter, whole_size


class SplitLayer(nn.Module):
    """A layer of which this rank holds a part.

    Args:
        layer: the whole layer. Its parameters are cut in place: ties and optimisers keep the very objects.
        comm: `Communicator`.
        dims: {name of a parameter: the dimension along which it is cut}. All others stay whole.
        is_shared: the ranks hold the same numbers already. False: they take over rank 0's.
    """

    def __init__(self, layer, comm, dims, is_shared):
        super().__init__()
        if not is_shared:
            share_start(layer, comm, dims, type(self).__name__)
        self.comm = comm
        for name, parameter in layer.named_parameters(recurse=False):
            if name in dims:
                cut_parameter(parameter, comm, dims[name])
            self.register_parameter(name, parameter)
        if "bias" not in self._parameters:
            self.bias = None
        self.train(layer.training)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination._metadata[prefix[:-1]]["part"] = self.comm.rank, self.comm.world_size

    def _load_from_state_dict(self, state_dict, prefix, metadata, *args):
        """Take this rank's own part, or cut it from what a whole layer has saved."""
        if metadata.get("assign_to_params_buffers"):
            raise ValueError("assign=True: a parameter that is cut needs assign=False, which copies numbers into it")
        for name, parameter in self._parameters.items():
            value = state_dict.get(prefix + name)
            if parameter is not None and value is not None:
                state_dict[prefix + name] = check_part(parameter, value, metadata.get("part"), prefix + name)
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)

    def __reduce__(self):
        raise TypeError(
            f"a {type(self).__name__} belongs to its own rank and cannot be copied or pickled: use "
            "full_state_dict(module), and load it into a model of one process"
        )


class ColumnParallelLinear(SplitLayer):
    """Linear layer of which each rank computes some outputs:  y_k = x A_kᵀ + b_k  with A = (A_0; …; A_{N−1}).

    The weight is stored as torch does, (outputs, inputs), so a column of the paper's A is a row of it. Sizes that do
    not divide are cut by `chunk_bounds`.

    Args:
        linear: `nn.Linear`, the whole one on every rank; its parameters are cut in place.
        comm: `Communicator`.
        gather_output: join the outputs of all ranks; else a rank goes on with its own.
        positions: along which dimension `x` holds only this rank's positions (sequence parallelism); None: `x` is
            whole, the same on all ranks.
        gather_again: keep only this rank's positions of `x` for backward, which gathers them once more.
        is_shared: the ranks hold the same numbers already. False: they take over rank 0's.

    Raises:
        ValueError, TypeError: the layer is no plain `nn.Linear`.

    Communication: with whole input nothing forward, one all-reduce of x's size backward; with `positions` an
    all-gather forward and a reduce-scatter backward (and one more all-gather with `gather_again`). Layers that get the
    very same tensor, as q, k and v do, share it. `gather_output`: an all-gather of the whole y forward.

    Source: Shoeybi et al., Megatron-LM (2019), §3; Korthikanti et al. (2022), §4.2.
    """

    def __init__(self, linear, comm, gather_output=False, positions=None, gather_again=False, is_shared=False):
        check_linear(linear)
        super().__init__(linear, comm, {"weight": 0, "bias": 0}, is_shared)
        self.in_features, self.out_features = self.weight.shape[1], whole_size(self.weight)
        self.gather_output, self.positions, self.gather_again = gather_output, positions, gather_again

    def forward(self, x):
        whole, again = _entered(x, self.comm, self.positions, self.gather_again)
        with keeping_parts(again):
            y = F.linear(whole, self.weight, self.bias)
        return join(y, self.comm, y.dim() - 1, self.out_features) if self.gather_output else y

    def extra_repr(self):
        return f"{self.in_features}, {self.weight.shape[0]} of {self.out_features}, bias={self.bias is not None}"


class RowParallelLinear(SplitLayer):
    """Linear layer of which each rank takes some inputs:  y = Σ_k x_k B_kᵀ + b  with B = (B_0, …, B_{N−1}).

    The bias is added once, after the sum. An `x` that is whole is cut first.

    Args:
        linear: `nn.Linear`, the whole one on every rank; its weight is cut in place, the bias stays whole.
        comm: `Communicator`.
        positions: along which dimension the output holds only this rank's positions (sequence parallelism). The bias
            then gets the gradient of these alone: `parallelize` adds it up over the ranks.
        is_shared: the ranks hold the same numbers already. False: they take over rank 0's.

    Raises:
        ValueError, TypeError: the layer is no plain `nn.Linear`; `x` has neither this rank's inputs nor all.

    Communication: one all-reduce of the output's size forward, nothing backward; with `positions` a reduce-scatter
    forward and an all-gather backward.

    Source: Shoeybi et al., Megatron-LM (2019), §3; Korthikanti et al. (2022), §4.2.
    """

    def __init__(self, linear, comm, positions=None, is_shared=False):
        check_linear(linear)
        super().__init__(linear, comm, {"weight": 1}, is_shared)
        self.in_features, self.out_features = whole_size(self.weight), self.weight.shape[0]
        self.positions = positions

    def forward(self, x):
        own = self.weight.shape[1]
        if x.shape[-1] == self.in_features != own:
            x = cut(x, self.comm, x.dim() - 1)
        elif x.shape[-1] != own:
            raise ValueError(f"x has {x.shape[-1]} numbers: this rank's {own} are needed, or all {self.in_features}")
        y = F.linear(x, self.weight)
        y = add_up(y, self.comm) if self.positions is None else reduce_scatter(y, self.comm, self.positions)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self):
        return f"{self.weight.shape[1]} of {self.in_features}, {self.out_features}, bias={self.bias is not None}"


def _entered(x, comm, positions, gather_again):
    """`x` inside the split region, and how to get it again; layers that are given the same tensor enter it once."""
    if hasattr(x, "_again"):  # it is there already
        return x, x._again
    version = None if x.is_inference() else x._version
    key = comm, positions, gather_again, version, torch.is_grad_enabled()
    if getattr(x, "_entered", (None,))[0] != key:
        if positions is None:
            x._entered = key, enter(x, comm), None
        else:
            whole = gather(x, comm, positions, keep=gather_again)
            x._entered = key, whole, Again(x, whole, comm, positions) if gather_again else None
    return x._entered[1:]


def gather_input(module, args, comm, positions, gather_again):
    """Let a module's first argument into the split region before the module looks at its shape: a forward pre-hook."""
    x, *others = args
    if hasattr(x, "_again"):
        return args
    whole = gather(x, comm, positions, keep=gather_again)
    whole._again = Again(x, whole, comm, positions) if gather_again else None
    return whole, *others


def check_linear(layer, name="linear"):
    """Raise unless `layer` is a linear layer whose weight may be cut."""
    if not isinstance(layer, nn.Linear):
        packed = ": its weights of q, k and v are packed in one; give it linear layers q, k and v of their own"
        more = packed if isinstance(layer, nn.MultiheadAttention) else ""
        raise ValueError(f"{name} is a {type(layer).__name__}: an nn.Linear is needed{more}")
    check_plain(layer, name, nn.Linear)


def check_plain(layer, name, kind):
    """Raise unless `layer` computes with its own two parameters what its `kind` does, and nothing else."""
    names = {name for name, _ in layer.named_parameters(recurse=False)}
    if type(layer) is not kind or not names <= {"weight", "bias"}:
        raise ValueError(f"{name} is a {type(layer).__name__} with parameters {sorted(names)}: a plain {kind.__name__}")
    if any(value for key, value in vars(layer).items() if key.endswith("_hooks")):
        raise ValueError(f"{name} has hooks, which would be lost: register them after it has been split")
