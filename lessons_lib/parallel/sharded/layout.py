"""Tensors laid one after the other and cut into one equal chunk per rank: who holds which of their numbers."""

from math import prod


class Layout:
    """Where the numbers of several tensors lie in a flat one, and which of them each rank holds.

    Args:
        shapes: of the tensors, in order.
        world_size: N, how many ranks share them out.

    Attributes:
        numels, offsets: of each tensor its numbers, and where they begin.
        chunk: how many numbers each rank holds, ceil(P / N) of the P numbers; at the very end lies padding.
    """

    def __init__(self, shapes, world_size):
        self.shapes, self.world_size = [tuple(shape) for shape in shapes], world_size
        self.numels = [prod(shape) for shape in self.shapes]
        self.offsets = [sum(self.numels[:number]) for number in range(len(self.numels))]
        self.chunk = -(-sum(self.numels) // world_size)

    def parts(self, rank):
        """For each tensor the (start, stop) of its numbers that `rank` holds; equal where it holds none."""
        low, high = rank * self.chunk, (rank + 1) * self.chunk
        bounds = [(low - offset, high - offset) for offset in self.offsets]
        return [
            (min(max(low, 0), numel), min(max(high, 0), numel))
            for (low, high), numel in zip(bounds, self.numels, strict=True)
        ]

    def views(self, flat):
        """The tensors, as views of a flat one that begins with them."""
        return [
            flat[offset : offset + numel].view(shape)
            for offset, numel, shape in zip(self.offsets, self.numels, self.shapes, strict=True)
        ]

    def pieces(self, chunk, rank):
        """What `rank` holds of each tensor, as 1-D views of its chunk. A tensor without dimensions keeps none."""
        found = []
        for (start, stop), offset, shape in zip(self.parts(rank), self.offsets, self.shapes, strict=True):
            first = offset + start - rank * self.chunk
            piece = chunk[first : first + stop - start] if stop > start else chunk[:0]
            found.append(piece.view(()) if shape == () and stop > start else piece)
        return found
