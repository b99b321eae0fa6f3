"""Split a model by a plan: which layers by columns, which by rows, what is computed on a part of the positions."""

import zlib

from torch import nn

from ...errors import check_whole
from ..copies import is_piece
from ..hooks import OwnHook
from ..replicas import share_start
from ..wrapped import check_communicator, check_module
from .conjugate import add_up, check_divides, cut, join
from .draws import SharedDraws, SplitDropout
from .heads import divide_heads
from .layers import ColumnParallelLinear, RowParallelLinear, gather_input
from .parts import part_of
from .plans import check_plan, read_plan
from .same_input import compare_first_input
from .vocabulary import VocabParallelEmbedding


def parallelize(module, comm, plan, sequence_parallel=False, gather_again=False, sequence_dim=1, draws=False):
    """Split `module` over the ranks of `comm`, in place, so that together they compute what one process would.

    All ranks take over rank 0's numbers and keep their parts of them, in the same `nn.Parameter` objects. A layer that
    the plan does not name stays whole: every rank computes it, with the same numbers.

    Args:
        module: any `nn.Module`; parts of a model, such as a stage of a pipeline, will do.
        comm: `Communicator`, such as one axis of a mesh.
        plan: {pattern of module names: kind}, patterns as in a shell: "blocks.*.mlp.up"; "" is the module itself.
            column, row: a linear layer by its outputs, or by its inputs; the pair takes one all-reduce a pass.
            gathered column: its outputs are joined again.
            vocabulary: a table by its rows.
            heads: attention whose q, k and v are "column": its own number of heads is divided by the ranks. With
                `sequence_parallel` its first argument is gathered before it looks at its shape.
            dropout: an `nn.Dropout` between a column and a row layer, on a tensor cut along its last dimension;
                ("dropout", 1) along dimension 1, as the heads of attention's weights are.
            scatter, gather: after this module a rank goes on with its own positions; with all of them again.
            sequence: a module (norm, dropout) between those two, outside of the pairs, on this rank's positions.
            whole: everything in this module is the same on all ranks, as what is not named.
        sequence_parallel: use "scatter", "gather" and "sequence", which otherwise change nothing. Every layer with
            parameters or dropout must then be named, or be in one that "scatter" or "whole" names.
        gather_again: keep only a rank's own positions of the inputs of the column layers, and gather them once more
            in backward.
        sequence_dim: the dimension of positions; 1 for (B, T, D).
        draws: share random numbers even though no dropout is seen (see `SharedDraws`).

    Returns:
        The module; another one only where "" is in the plan.

    Raises:
        ValueError: a pattern names no module, or a module that cannot be split so; heads that do not divide; a tied
            parameter that is cut in one place and not in the other.
        CollectiveMismatch: the ranks' modules or plans differ; in the first forward pass, the inputs of the module.

    Communication: for each pair of a column and a row layer, with M bytes in (B, T, D), one all-reduce of M forward and
    one backward: 2 (N-1)/N M per rank and pass. With `sequence_parallel` an all-gather and a reduce-scatter instead,
    the same bytes ((N-1)/N M more with `gather_again`), and an all-reduce of each parameter's gradient that is computed
    from positions: norms, and biases of row layers. A broadcast of 5,056 bytes a forward pass if there is dropout.

    Memory: 1/N of what is cut. Activations kept by a block of `models.GPT` in numbers, without dropout, where F is
    (B, T, D):  (4 + 12/N) F;  with `sequence_parallel` (2 + 14/N) F;  with `gather_again` too, 16/N F.

    Differs from torch's `parallelize_module`: a rank's tensors are plain tensors; dropout draws as one process would.
    Dropout that a forward method calls as a function inside a split region cannot be seen: it is drawn per part.

    Source: Shoeybi et al., Megatron-LM (2019), §3; Korthikanti et al. (2022), §4; lesson 15.
    """
    check_module(module)
    check_communicator(comm)
    if any(is_piece(parameter) for parameter in module.parameters()):
        raise ValueError("module holds pieces of a FullySharded: parallelize it first, and wrap it then")
    kinds = read_plan(module, plan)
    check_plan(module, comm, kinds, sequence_parallel)
    check_whole("sequence_dim", sequence_dim, 0)
    options = f"plan {zlib.crc32(repr(kinds).encode()):08x}, {sequence_parallel=}, {gather_again=}, {sequence_dim=}"
    share_start(module, comm, options, "parallelize")
    positions = sequence_dim if sequence_parallel else None
    made = {}  # a layer that has two names becomes one
    for name, kind in kinds.items():
        layer = module.get_submodule(name)
        if id(layer) not in made:
            made[id(layer)] = _split(layer, kind, comm, positions, gather_again), layer
        module = _put(module, name, made[id(layer)][0])
    _without_shortcuts(module)
    compare_first_input(module, comm, is_whole=not sequence_parallel)
    SharedDraws(module, comm, draws)
    return module


def _split(layer, kind, comm, positions, gather_again):
    """The layer that takes the place of `layer`, which may be itself."""
    if kind in ("column", "gathered column"):
        return ColumnParallelLinear(layer, comm, kind != "column", positions, gather_again, is_shared=True)
    if kind == "row":
        row = RowParallelLinear(layer, comm, positions, is_shared=True)
        if positions is not None and row.bias is not None:
            _add_up_gradient(row.bias, comm)
            row.register_forward_pre_hook(_check_adds_up)
        return row
    if kind == "vocabulary":
        return VocabParallelEmbedding(layer, comm, is_shared=True)
    if kind == "heads":
        divide_heads(layer, comm)
        if positions is not None:
            gather = OwnHook(lambda module, args: gather_input(module, args, comm, positions, gather_again))
            layer.register_forward_pre_hook(gather)
    elif kind == "dropout" or isinstance(kind, tuple):
        return SplitDropout(layer.p, comm, kind[1] if isinstance(kind, tuple) else -1).train(layer.training)
    elif positions is not None:
        return _on_positions(layer, kind, comm, positions)
    return layer


def _on_positions(layer, kind, comm, positions):
    """The layer in its place under sequence parallelism."""
    if kind == "scatter":
        layer.register_forward_hook(OwnHook(lambda module, args, output: _own_positions(output, comm, positions)))
    elif kind == "gather":
        layer.register_forward_hook(OwnHook(lambda module, args, output: _all_positions(output, comm, positions)))
    elif kind == "sequence" and isinstance(layer, nn.Dropout):
        return SplitDropout(layer.p, comm, positions).train(layer.training)
    elif kind == "sequence":
        for parameter in layer.parameters():
            _add_up_gradient(parameter, comm)
        layer.register_forward_pre_hook(_check_adds_up)
    return layer


def _own_positions(x, comm, dim):
    check_divides(x, comm, dim)
    return cut(x, comm, dim)


def _all_positions(x, comm, dim):
    return join(x, comm, dim, x.shape[dim] * comm.world_size)


def _add_up_gradient(parameter, comm):
    """Let the gradient of a whole parameter, which comes from this rank's positions, be that of all positions."""
    if not hasattr(parameter, "_adds_up"):
        needs_grad, parameter._adds_up = parameter.requires_grad, True
        parameter.requires_grad_(True)  # a frozen one cannot be hooked, and may be trained later
        parameter.register_hook(lambda gradient: add_up(gradient, comm))
        parameter.requires_grad_(needs_grad)


def _check_adds_up(layer, args):
    """A parameter that somebody has put in the place of another would get the gradient of a rank's own positions."""
    for name, parameter in layer.named_parameters():
        is_cut = part_of(parameter) is not None
        if isinstance(parameter, nn.Parameter) and not is_cut and not hasattr(parameter, "_adds_up"):
            raise RuntimeError(f"{name} of a {type(layer).__name__} is new: change the old one in place")


def _without_shortcuts(module):
    """Let torch's transformer layers call their layers: in evaluation they would take the weights out of them."""
    for each in module.modules():
        if isinstance(each, nn.TransformerEncoderLayer):
            each.activation_relu_or_gelu = 0
        elif isinstance(each, nn.TransformerEncoder):
            each.use_nested_tensor = False


def _put(module, name, layer):
    """Put `layer` in its place; the module then, which is `layer` itself where the name is ""."""
    if not name:
        return layer
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, layer)
    return module
