"""One forward pass for sequences of any lengths at once: what is new of each, in one row of tokens.

All layers but attention treat each position by itself, so that the new positions of all sequences go through them as
one matrix. Attention alone has to know whose they are: it writes the new keys and values into the sequence's blocks,
reads all of its blocks, and hides what lies behind each position.
"""

import copy
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .blocks import BlockPool, BlockStore


class Chunk(NamedTuple):
    """New tokens of one sequence, at positions `start` and on; those before are in the blocks of `table` already."""

    tokens: list
    start: int
    table: list


class Group(NamedTuple):
    """Sequences with the same number of new tokens, n: their rows (B, n), tables (B, blocks), mask (B, 1, n, L)."""

    rows: torch.Tensor
    tables: torch.Tensor
    mask: torch.Tensor


class PagedGPT:
    """A `models.GPT` that remembers keys and values in blocks; it shares the weights of the model it is given.

    Args:
        model: `models.GPT`, dense or with experts. It stays as it is; dropout does not act here.
        num_blocks, block_size: of the memory for keys and values.

    Attributes:
        pool: the `BlockPool` to take blocks from.
        context, vocabulary: of the model.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, model, num_blocks, block_size):
        shared = {id(weight): weight for weight in [*model.parameters(), *model.buffers()]}
        self.model = copy.deepcopy(model, memo=shared).eval()
        self.context, width = model.embed.positions.weight.shape
        self.vocabulary = model.embed.tokens.num_embeddings
        self.pool = BlockPool(num_blocks, block_size)
        head_width = model.blocks[0].attention.head_width
        weight = model.embed.tokens.weight
        self.store = BlockStore(len(model.blocks), width // head_width, head_width, self.pool, weight)
        for layer, block in enumerate(self.model.blocks):
            block.attention.attend = partial(self._attend, layer)

    @torch.inference_mode()
    def logits(self, chunks, num_last=1):
        """Compute the new positions of all chunks, and give the logits of the last ones of each.

        Args:
            chunks: of different sequences, each `Chunk` with at least `num_last` tokens, and a table that has blocks
                for all of its positions.
            num_last: of how many positions, counted from the end.

        Returns:
            (len(chunks), num_last, V); row b, j is after position start + len(tokens) - num_last + j of chunk b.
        """
        lengths = [len(chunk.tokens) for chunk in chunks]
        tokens = self._tensor([token for chunk in chunks for token in chunk.tokens])
        positions = [p for chunk in chunks for p in range(chunk.start, chunk.start + len(chunk.tokens))]
        places = [self.store.places(table, start, start + len(tokens)) for tokens, start, table in chunks]
        self._places = self._tensor([place for those in places for place in those])
        self._groups = self._grouped(chunks, lengths)
        x = self.model.blocks(self.model.embed(tokens.unsqueeze(0), self._tensor(positions).unsqueeze(0)))
        ends = self._tensor(lengths).cumsum(0).unsqueeze(1)
        return self.model.head(x[0][ends - num_last + torch.arange(num_last, device=ends.device)])

    def _grouped(self, chunks, lengths):
        starts = [sum(lengths[:i]) for i in range(len(chunks))]
        members = {}
        for i, length in enumerate(lengths):
            members.setdefault(length, []).append(i)
        return [self._group(n, [chunks[i] for i in mine], [starts[i] for i in mine]) for n, mine in members.items()]

    def _group(self, length, chunks, starts):
        new = torch.arange(length, device=self.store.keys.device)
        most = max(self.pool.needed(chunk.start + length) for chunk in chunks)
        tables = [(chunk.table + [self.store.nobody] * most)[:most] for chunk in chunks]
        positions = self._tensor([chunk.start for chunk in chunks]).unsqueeze(1) + new
        seen = torch.arange(most * self.pool.block_size, device=new.device) <= positions.unsqueeze(2)
        rows = self._tensor(starts).unsqueeze(1) + new
        return Group(rows, self._tensor(tables), seen.unsqueeze(1))

    def _attend(self, layer, q, k, v):
        """As `models.gpt.causal_attention`, for the one row (1, heads, N, d) in which all new positions lie."""
        q, k, v = (part[0].transpose(0, 1) for part in (q, k, v))
        self.store.write(layer, self._places, k, v)
        out = torch.empty_like(q)
        for rows, tables, mask in self._groups:
            keys, values = self.store.read(layer, tables)
            answers = F.scaled_dot_product_attention(q[rows].transpose(1, 2), keys, values, attn_mask=mask)
            out[rows] = answers.transpose(1, 2)
        return out.transpose(0, 1).unsqueeze(0)

    def _tensor(self, numbers):
        return torch.tensor(numbers, dtype=torch.long, device=self.store.keys.device)
