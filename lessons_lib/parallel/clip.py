"""Clipping by the one norm that the whole model's gradient has, wherever its parts lie (lessons 14 and 18)."""

import math

import torch

from .averaged import scale
from .copies import num_copies


@torch.no_grad()
def clip_grad_norm_(parameters, max_norm, comm, norm_type=2.0, error_if_nonfinite=False):
    """Scale all gradients so that their norm, over the parts on all ranks, is at most `max_norm`.

    The norm of order p of all numbers g of the model's gradient is (Σ |g|ᵖ)^(1/p). A rank adds up its own numbers, each
    divided by how many ranks hold it (`lies_on`), and the sums are added over the ranks. All ranks call it together.

    Args:
        parameters: this rank's parameters, or one; those without a gradient are passed over.
        max_norm: the limit; infinity measures without clipping.
        comm: the `Communicator` of all ranks that train the model, or a `Mesh`.
        norm_type: p > 0, or infinity for the largest number.
        error_if_nonfinite: whether a norm that is nan or infinite raises, on every rank.

    Returns:
        The norm before clipping, a tensor of float64: the same on every rank.

    Raises:
        ValueError: `max_norm` or `norm_type` is out of range.
        RuntimeError: the norm is not finite, and `error_if_nonfinite`.

    Communication: one all-reduce of one number.

    Source: Pascanu et al. (2013), §3.2; `torch.nn.utils.clip_grad_norm_`.
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm={max_norm!r}: a number of at least 0 is needed")
    if not norm_type > 0:
        raise ValueError(f"norm_type={norm_type!r}: a number above 0 is needed")
    comm = getattr(comm, "comm", comm)
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(dict.fromkeys(parameters))
    held = [parameter for parameter in parameters if parameter.grad is not None and parameter.numel()]
    norm = _largest(held, comm) if math.isinf(norm_type) else _norm(held, comm, norm_type)
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError(f"the norm of the gradient is {norm.item()}: it cannot be clipped")
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter in held if max_norm < math.inf else ():
        scale(parameter.grad, factor.to(parameter.grad.dtype))
    return norm


def _norm(held, comm, norm_type):
    total = torch.zeros((), dtype=torch.float64, device=comm.device)
    for parameter in held:
        powers = torch.linalg.vector_norm(parameter.grad, norm_type, dtype=torch.float64) ** norm_type
        total += powers / num_copies(parameter, comm.world_size)
    comm.all_reduce(total)
    return total ** (1 / norm_type)


def _largest(held, comm):
    largest = torch.zeros((), dtype=torch.float64, device=comm.device)
    for parameter in held:
        largest = torch.maximum(largest, parameter.grad.abs().max().double())
    comm.all_reduce(largest, op="max")
    return largest
