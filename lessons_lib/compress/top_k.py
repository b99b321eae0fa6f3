"""Only the largest numbers of a gradient travel, each with its place (lesson 24)."""

import math

import torch

from .feedback import Compression

INDEX_BYTES = 4  # int32


class TopK(Compression):
    """Each rank sends the numbers of a bucket that are largest in magnitude, and where they stand.

    Args:
        share: of all numbers of a bucket, how many are sent: above 0 and at most 1; at least one number.
        feedback: whether what is not sent counts in the next step. Without it small gradients never count.

    Communication: one all-gather; with k numbers sent and N ranks (N - 1) k (itemsize + 4) bytes per rank. That grows
    with N: an all-reduce of all n numbers sends 2 (N - 1) / N n itemsize.

    Source: Lin et al., Deep Gradient Compression (2018), §3; Stich et al. (2018).
    """

    def __init__(self, share=0.01, feedback=True):
        super().__init__(feedback)
        if not 0 < share <= 1:
            raise ValueError(f"share={share!r}: a number above 0 and at most 1 is needed")
        self.share = share

    def num_sent(self, numel):
        """How many of `numel` numbers a rank sends."""
        return max(1, math.ceil(self.share * numel))

    def reduce(self, bucket, comm):
        gradients = bucket.gradients
        k = self.num_sent(gradients.numel())
        places = gradients.abs().topk(k).indices.to(torch.int32)
        message = torch.cat([gradients[places].view(torch.uint8), places.view(torch.uint8)])
        everybodys = message.new_empty(comm.world_size * len(message))
        comm.all_gather(everybodys, message)
        own = torch.zeros_like(gradients).index_put((places.long(),), gradients[places])
        gradients.zero_()
        for theirs in everybodys.view(comm.world_size, -1):  # in order of rank, so that all come to the same bits
            cut = k * gradients.itemsize
            values = theirs[:cut].clone().view(gradients.dtype)
            gradients.index_add_(0, theirs[cut:].clone().view(torch.int32), values)
        return own

    def bytes_sent(self, shapes, world_size, itemsize=4):
        numel = sum(torch.Size(shape).numel() for shape in shapes)
        return (world_size - 1) * self.num_sent(numel) * (itemsize + INDEX_BYTES)
