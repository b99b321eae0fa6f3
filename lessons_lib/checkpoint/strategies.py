"""What a checkpoint keeps of each strategy: its state put together as one process would have it (lesson 21)."""

import torch
from torch import nn

from ..parallel.copies import is_piece
from ..parallel.data.data_parallel import DataParallel
from ..parallel.sharded.sharded_optimizer import ShardedOptimizer
from ..parallel.sharded.sharded_state import ShardedState
from ..parallel.tensor.parts import (
    full_optimizer_state_dict,
    full_state_dict,
    load_full_optimizer_state_dict,
    part_of,
)


def take(name, state):
    """What to save of `state[name]`. All ranks call it together.

    Raises:
        TypeError: its state_dict() needs an argument, or it steps pieces of a module that is not in `state`.
    """
    value = state[name]
    if isinstance(value, DataParallel):
        return {"module": take(name, {name: value.module}), "run": value.run_state()}
    if isinstance(value, torch.optim.Optimizer) and not isinstance(value, ShardedOptimizer):
        net = _net_of(name, state)
        if net is not None:
            return net.optimizer_state_dict(value)
        return full_optimizer_state_dict(value) if _is_cut(_parameters(value)) else value.state_dict()
    if isinstance(value, nn.Module) and not isinstance(value, ShardedState) and _is_cut(value.parameters()):
        return full_state_dict(value)
    if not hasattr(value, "state_dict"):
        return value
    try:
        return value.state_dict()
    except TypeError as error:
        raise TypeError(
            f"state[{name!r}].state_dict() raised {error}: the dict that it gives is needed instead, such as "
            "sampler.state_dict(step); after load(state), state[name] is that dict"
        ) from None


def put(name, state, saved):
    """Let `state[name]` go on from what `take` gave. All ranks call it together."""
    value = state[name]
    if isinstance(value, DataParallel):
        put(name, {name: value.module}, saved["module"])
        value.load_run_state(saved["run"])
    elif not hasattr(value, "load_state_dict"):
        state[name] = saved
    elif isinstance(value, torch.optim.Optimizer) and (net := _net_of(name, state)) is not None:
        net.load_optimizer_state_dict(value, saved)
    elif isinstance(value, torch.optim.Optimizer) and _is_cut(_parameters(value)):
        load_full_optimizer_state_dict(value, saved)
    else:
        value.load_state_dict(saved)


def _inner(value):
    while isinstance(value, DataParallel):
        value = value.module
    return value


def _parameters(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_cut(parameters):
    return any(part_of(parameter) is not None for parameter in parameters)


def _net_of(name, state):
    """The `FullySharded` whose pieces the optimiser `state[name]` steps, or None if it steps no pieces."""
    own = {id(parameter) for parameter in _parameters(state[name])}
    if isinstance(state[name], ShardedOptimizer) or not any(is_piece(p) for p in _parameters(state[name])):
        return None
    for value in map(_inner, state.values()):
        if isinstance(value, ShardedState) and own & {id(parameter) for parameter in value.parameters()}:
            return value
    raise TypeError(f"state[{name!r}] steps pieces of a FullySharded: that module is needed in `state` too")
