"""What strategies ask of a module and a communicator before they begin."""

from torch import nn
from torch.nn.parameter import UninitializedTensorMixin

from ..comm import Communicator
from .replicas import trained


def check_wrapped(module, comm):
    """Refuse what cannot be trained.

    Raises:
        TypeError: `module` is no module, or `comm` no communicator.
        ValueError: a parameter has no shape yet or is on another device, or none needs a gradient.
    """
    check_module(module)
    check_communicator(comm)
    check_parameters(module, comm)
    check_trains(module)


def check_module(module):
    """Raise `TypeError` unless `module` is one."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}: a torch.nn.Module is needed")


def check_communicator(comm):
    """Raise `TypeError` unless `comm` is one."""
    if not isinstance(comm, Communicator):
        raise TypeError(f"comm is a {type(comm).__name__}: the Communicator that launch or connect gives is needed")


def check_parameters(module, comm, may_be_meta=False):
    """Raise `ValueError` for a parameter that has no shape yet, or is on another device than the rank."""
    for name, p in module.named_parameters():
        if isinstance(p, UninitializedTensorMixin):
            raise ValueError(f"parameter {name} has no shape yet: run one batch through the module before wrapping it")
        if p.device.type != comm.device.type and not (may_be_meta and p.is_meta):
            raise ValueError(
                f"parameter {name} is on {p.device}, this rank on {comm.device}: use module.to(comm.device)"
            )


def check_trains(module):
    """Raise `ValueError` if no parameter of the module needs a gradient."""
    if not trained(module):
        raise ValueError("module has no parameter that needs a gradient: there is nothing to train")
