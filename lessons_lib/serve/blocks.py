"""Keys and values of many sequences in one store, cut into blocks of positions, so that no sequence reserves a maximum.

A sequence holds a table of block numbers. Its position p lies in block table[p // block_size], at place
p % block_size: positions that follow each other may lie anywhere.

Source: Kwon et al., Efficient Memory Management for LLM Serving with PagedAttention (2023), §4.
"""

import torch

from ..errors import check_sizes, check_whole


class OutOfBlocks(RuntimeError):
    """More blocks were asked for than are free; nothing was handed out."""

    def __init__(self, asked, free):
        super().__init__(asked, free)
        self.asked, self.free = asked, free

    def __str__(self):
        return f"{self.asked} blocks were asked for, and {self.free} are free"


class BlockPool:
    """Says which blocks are free: numbers 0 to num_blocks - 1.

    Args:
        num_blocks: how many there are.
        block_size: positions in each.

    Raises:
        ValueError: a size is no whole number of at least 1.
    """

    def __init__(self, num_blocks, block_size):
        check_sizes(num_blocks=num_blocks, block_size=block_size)
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._taken = set()

    @property
    def num_free(self):
        return len(self._free)

    def needed(self, num_positions):
        """How many blocks hold so many positions."""
        return -(-num_positions // self.block_size)

    def take(self, count):
        """Hand out `count` blocks: a list of numbers that nobody else has until `give_back`.

        Raises:
            OutOfBlocks: fewer are free.
        """
        check_whole("count", count, 0)
        if count > len(self._free):
            raise OutOfBlocks(count, len(self._free))
        blocks = [self._free.pop() for _ in range(count)]
        self._taken.update(blocks)
        return blocks

    def give_back(self, blocks):
        """Make `blocks` free.

        Raises:
            ValueError: a block is not taken, or is named twice; none was freed.
        """
        for block in blocks:
            if block not in self._taken or blocks.count(block) > 1:
                raise ValueError(f"blocks={blocks}: block {block} is not taken, or is named twice")
        self._taken.difference_update(blocks)
        self._free.extend(blocks)


class BlockStore:
    """The memory of the blocks: for each layer the keys and the values, (num_blocks + 1, block_size, heads, d) each.

    The last block is nobody's and stays zero: short tables are filled up with it where they lie beside longer ones.

    Args:
        num_layers, num_heads, head_width: of the model; d is `head_width`.
        pool: the `BlockPool` whose numbers count here.
        like: a tensor whose dtype and device the store has.

    Attributes:
        nobody: the number of that last block.
        size_bytes: of keys and values of all layers.
    """

    def __init__(self, num_layers, num_heads, head_width, pool, like):
        shape = (num_layers, pool.num_blocks + 1, pool.block_size, num_heads, head_width)
        self.keys, self.values = (torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(2))
        self.nobody, self.block_size = pool.num_blocks, pool.block_size

    @property
    def size_bytes(self):
        return self.keys.nbytes + self.values.nbytes

    def places(self, table, start, stop):
        """Where positions `start` to `stop` - 1 of the sequence with this table lie: a list of row numbers."""
        size = self.block_size
        return [table[position // size] * size + position % size for position in range(start, stop)]

    def write(self, layer, places, keys, values):
        """Put rows (n, heads, d) of one layer at `places` (n,)."""
        self.keys[layer].flatten(0, 1).index_copy_(0, places, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, places, values)

    def read(self, layer, tables):
        """Keys and values of the blocks in `tables` (B, n), each (B, heads, n · block_size, d)."""
        return tuple(store[layer][tables].flatten(1, 2).transpose(1, 2) for store in (self.keys, self.values))
