"""A vocabulary that is split over the ranks: the table of tokens, and the loss (lesson 15)."""

import torch
from torch import nn
from torch.nn import functional as F

from .conjugate import add_up, bounds
from .layers import SplitLayer, check_plain
from .parts import whole_size


class VocabParallelEmbedding(SplitLayer):
    """Table of which each rank holds some rows: it gives those of its own tokens, zeros for all others, and the sum.

    Args:
        embedding: `nn.Embedding`, the whole one on every rank; its weight (V, D) is cut in place by `chunk_bounds`.
        comm: `Communicator`.
        is_shared: the ranks hold the same numbers already. False: they take over rank 0's.

    Raises:
        ValueError: there are fewer tokens than ranks, or `max_norm`, `scale_grad_by_freq` or `sparse` are set.
        IndexError: a token is not in the vocabulary; on every rank.

    Communication: one all-reduce of the output (B, T, D) forward, nothing backward.

    Source: Shoeybi et al., Megatron-LM (2019), §3.
    """

    def __init__(self, embedding, comm, is_shared=False):
        check_embedding(embedding, comm)
        super().__init__(embedding, comm, {"weight": 0}, is_shared)
        self.num_embeddings, self.embedding_dim = whole_size(self.weight), self.weight.shape[1]
        self.padding_idx = embedding.padding_idx

    def forward(self, tokens):
        check_tokens(tokens, self.num_embeddings, "tokens")
        start, length = bounds(self.num_embeddings, self.comm)
        local, padding = tokens - start, None
        outside = (local < 0) | (local >= length)
        if self.padding_idx is not None and start <= self.padding_idx < start + length:
            padding = self.padding_idx - start
        rows = F.embedding(local.masked_fill(outside, 0), self.weight, padding)
        return add_up(rows.masked_fill(outside.unsqueeze(-1), 0), self.comm)

    def extra_repr(self):
        return f"{self.weight.shape[0]} of {self.num_embeddings}, {self.embedding_dim}"


def parallel_cross_entropy(logits, target, comm, vocabulary, ignore_index=-100, reduction="mean"):
    """Cross-entropy of logits whose last dimension, the vocabulary, is split over the ranks.

    With l_v the logit of token v, m = max_v l_v and y the target,  loss = ln Σ_v exp(l_v − m) + m − l_y.  Each rank
    adds up its own tokens; m, the sums and l_y are combined over the ranks.

    Args:
        logits: (..., V_k), this rank's part by `chunk_bounds`, as `ColumnParallelLinear` gives it.
        target: (...), whole numbers from 0 to V − 1, or `ignore_index` where nothing counts.
        comm: `Communicator`.
        vocabulary: V.
        ignore_index: a target that does not count.
        reduction: "mean" over the targets that count (nan if none does), "sum" or "none".

    Returns:
        The loss, the same on every rank; of reduction="none" in the shape of `target`, 0 where nothing counts.

    Raises:
        ValueError: shapes do not fit, or `reduction` is another word.
        IndexError: a target is not in the vocabulary; on every rank.

    Communication: all-reduces of one number (the largest logits) and of two numbers per target, forward; nothing
    backward. The logits themselves, V numbers per target, stay where they are.

    Source: Shoeybi et al., Megatron-LM (2019), §3.
    """
    start, length = bounds(vocabulary, comm)
    if logits.shape != (*target.shape, length):
        needed = f"{(*target.shape, length)} is needed: the shape of target, and {length} of vocabulary={vocabulary}"
        raise ValueError(f"logits has shape {tuple(logits.shape)}: {needed}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}: 'mean', 'sum' or 'none' is needed")
    counts = target != ignore_index
    target = target.masked_fill(~counts, 0)
    check_tokens(target, vocabulary, "target")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    largest = logits.detach().amax(-1) if length else logits.new_full(target.shape, float("-inf"))
    comm.all_reduce(largest, op="max")
    shifted, own = logits - largest.unsqueeze(-1), target - start
    outside = (own < 0) | (own >= length)
    sums = shifted.exp().sum(-1)
    found = _picked(shifted, own.masked_fill(outside, 0)).masked_fill(outside, 0)
    sums, found = add_up(torch.stack([sums, found]), comm)
    losses = (sums.log() - found).masked_fill(~counts, 0)
    if reduction == "none":
        return losses
    return losses.sum() / counts.sum() if reduction == "mean" else losses.sum()


def _picked(logits, index):
    """The logit at `index` of each row; 0 of a rank that has no logits."""
    if logits.shape[-1] == 0:
        return logits.sum(-1)
    return logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def check_embedding(layer, comm, name="embedding"):
    """Raise unless `layer` is a table that may be cut."""
    if not isinstance(layer, nn.Embedding):
        raise ValueError(f"{name} is a {type(layer).__name__}: an nn.Embedding is needed")
    check_plain(layer, name, nn.Embedding)
    for option in ("max_norm", "scale_grad_by_freq", "sparse"):
        if getattr(layer, option):
            raise ValueError(f"{name} has {option}={getattr(layer, option)!r}: a table without it is needed")
    if layer.num_embeddings < comm.world_size:
        raise ValueError(f"{name} has {layer.num_embeddings} rows: at least one for each of {comm.world_size} ranks")


def check_tokens(tokens, size, name):
    """Raise unless all tokens lie in the vocabulary: a token that no rank owns would become a row of zeros."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
        raise IndexError(
            f"{name} from {int(tokens.min())} to {int(tokens.max())}: 0 to {size - 1} are in the vocabulary"
        )
