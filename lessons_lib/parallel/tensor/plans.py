"""What is to be done with each module of a model: a plan, read and checked before anything is changed (lesson 15)."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ...models.feed_forward import MLP
from ...models.gpt import Attention, Block, Embed, Head
from ..copies import is_cut_within
from ..data.data_parallel import DataParallel
from .heads import check_heads, head_counts
from .layers import check_linear
from .vocabulary import check_embedding

COLUMN = {"weight": 0, "bias": 0}
CUTS = {"column": COLUMN, "gathered column": COLUMN, "row": {"weight": 1}, "vocabulary": {"weight": 0}}
KINDS = (*CUTS, "heads", "dropout", "sequence", "scatter", "gather", "whole")


def gpt_plan(module, gather_logits=False):
    """The plan for a `models.GPT` or any part of it, such as a stage of a pipeline.

    Args:
        module: what is to be split.
        gather_logits: join the logits of the vocabulary; else take `parallel_cross_entropy` as the loss.
    """
    kinds_of_parts = {
        Embed: {"": "scatter", "tokens": "vocabulary"},
        Block: {"norm1": "sequence", "norm2": "sequence", "dropout": "sequence"},
        Attention: {"": "heads", "q": "column", "k": "column", "v": "column", "out": "row"},
        MLP: {"up": "column", "down": "row"},
        Head: {"norm": "sequence", "logits": "gathered column" if gather_logits else "column"},
    }
    plan = {}
    for name, each in module.named_modules():
        for part, kind in kinds_of_parts.get(type(each), {}).items():
            plan[".".join(filter(None, (name, part)))] = kind
    return plan


def read_plan(module, plan):
    """{name of a module: kind}, from a plan with patterns.

    Raises:
        TypeError, ValueError: it is no plan, or not one for this module.
    """
    if not isinstance(plan, Mapping) or not plan:
        raise ValueError(f"plan={plan!r:.80}: a dict {{pattern of module names: kind}} is needed")
    names, kinds = [name for name, _ in module.named_modules(remove_duplicate=False)], {}
    for pattern, kind in plan.items():
        if kind not in KINDS and not _is_dropout(kind):
            raise ValueError(f"plan[{pattern!r}]={kind!r}: one of {', '.join(KINDS)} is needed")
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(f"plan[{pattern!r}]={kind!r} names no module: there are {', '.join(names[1:])[:300]}")
        for name in found:
            if kinds.setdefault(name, kind) != kind:
                raise ValueError(f"plan names {name} twice, as {kinds[name]!r} and as {kind!r}")
    return kinds


def check_plan(module, comm, kinds, sequence_parallel):
    """Raise `ValueError` unless the plan can be carried out."""
    for name, parameter in module.named_parameters():
        if is_cut_within(parameter, comm):
            raise ValueError(f"{name} is split over ranks of comm already: another axis of the mesh is needed")
    for name, each in module.named_modules():
        if isinstance(each, DataParallel):
            raise ValueError(f"{name or 'module'} is a DataParallel: split the module first, then wrap it")
    for name, kind in kinds.items():
        _check_layer(module, name, kind, kinds, comm)
    _check_ties(module, kinds)
    if sequence_parallel:
        _check_all_are_named(module, kinds)
        _check_heads_are_apart(kinds)


def _check_layer(module, name, kind, kinds, comm):
    layer = module.get_submodule(name)
    if kind in ("column", "gathered column", "row"):
        check_linear(layer, name or "module")
        parent = name.rpartition(".")[0]
        counts = head_counts(module.get_submodule(parent)) if name else {}
        if kind == "column" and counts and parent not in kinds:
            raise ValueError(f"{parent or 'module'} has {counts}: name it in the plan, as 'heads' if they are divided")
    elif kind == "vocabulary":
        check_embedding(layer, comm, name or "module")
    elif kind == "heads":
        children = dict(layer.named_children())
        columns = [each for own, each in children.items() if kinds.get(f"{name}.{own}".lstrip(".")) == "column"]
        check_heads(layer, name or "module", columns, comm)
    elif _is_dropout(kind) and type(layer) is not nn.Dropout:
        raise ValueError(f"{name} is a {type(layer).__name__}: an nn.Dropout is needed for {kind!r}")
    elif kind == "sequence" and any(isinstance(each, _BatchNorm) for each in layer.modules()):
        raise ValueError(f"{name} has batch norm, which would see this rank's positions alone: not as 'sequence'")
    elif kind == "sequence" and type(layer) is not nn.Dropout and any(map(_drops, layer.modules())):
        raise ValueError(f"{name} is a {type(layer).__name__} with dropout: name its nn.Dropout itself")


def _check_ties(module, kinds):
    """A tied parameter has one part: it must be cut alike wherever it is used."""
    cuts = {}
    for name, each in module.named_modules(remove_duplicate=False):
        dims = CUTS.get(kinds.get(name), {})
        for own, parameter in each.named_parameters(recurse=False):
            where, dim = cuts.setdefault(id(parameter), (f"{name}.{own}", dims.get(own)))
            if dim != dims.get(own):
                raise ValueError(f"{where} is tied to {name}.{own}: both must be cut along the same dimension")


def _check_all_are_named(module, kinds):
    """What the plan does not name would be computed from this rank's positions, and nobody would add up gradients."""
    covered = [f"{name}." if name else "" for name, kind in kinds.items() if kind in ("scatter", "whole", "sequence")]
    for name, each in module.named_modules():
        has_own = next(each.parameters(recurse=False), None) is not None or _drops(each)
        if has_own and name not in kinds and not any(name.startswith(prefix) for prefix in covered):
            raise ValueError(
                f"plan does not name {name or 'module'}, which sequence_parallel=True needs: is it a part of "
                "'sequence', or is it 'whole'?"
            )


def _check_heads_are_apart(kinds):
    """Attention gets all positions, so what is computed from a rank's own ones has to lie outside of it."""
    for name, kind in kinds.items():
        inside = [
            other for other, each in kinds.items() if each == "sequence" and other.startswith(f"{name}.".lstrip("."))
        ]
        if kind == "heads" and inside:
            raise ValueError(
                f"{name or 'module'} is 'heads', {inside[0]} in it 'sequence': give attention a module of its own"
            )


def _is_dropout(kind):
    pair = isinstance(kind, tuple) and len(kind) == 2 and kind[0] == "dropout" and isinstance(kind[1], int)
    return pair or kind == "dropout"


def _drops(module):
    return isinstance(module, _DropoutNd)
