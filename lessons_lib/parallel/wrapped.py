"""What strategies that train a whole module on each rank ask of it before they begin."""

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
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}: a torch.nn.Module is needed")
    if not isinstance(comm, Communicator):
        raise TypeError(f"comm is a {type(comm).__name__}: the Communicator that launch or connect gives is needed")
    for name, p in module.named_parameters():
        if isinstance(p, UninitializedTensorMixin):
            raise ValueError(f"parameter {name} has no shape yet: run one batch through the module before wrapping it")
        if p.device.type != comm.device.type:
            raise ValueError(
                f"parameter {name} is on {p.device}, this rank on {comm.device}: use module.to(comm.device)"
            )
    if not trained(module):
        raise ValueError("module has no parameter that needs a gradient: there is nothing to train")
