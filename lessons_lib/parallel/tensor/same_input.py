"""Ranks that compute one layer together need one input; a sampler may have dealt each another one (lesson 15)."""

import zlib

import torch
from torch.utils._pytree import tree_leaves

from ..hooks import OwnHook


def compare_first_input(module, comm, is_whole):
    """Let the first forward pass of `module` raise `CollectiveMismatch` on every rank where the ranks' inputs differ.

    Args:
        module: what the ranks compute together.
        comm: `Communicator`.
        is_whole: floating-point inputs are the same on all ranks too, and not each rank's positions.
    """

    def compare(module, args, kwargs):
        handle.remove()
        number = 0
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, torch.Tensor) and (is_whole or not each.is_floating_point()):
                bits = each.detach().cpu().contiguous().flatten().view(torch.uint8)
                number = zlib.crc32(bits.numpy(), number)
        comm.transport.agree(f"input of {type(module).__name__} with checksum {number:08x}: the same batch is needed")

    handle = module.register_forward_pre_hook(OwnHook(compare), with_kwargs=True)
