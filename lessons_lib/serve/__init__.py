"""Serving (lesson 26): an engine that continues many sequences at once, and a server that others can talk to."""

from .blocks import BlockPool, BlockStore, OutOfBlocks
from .engine import Engine
from .paged import Chunk, PagedGPT
from .plain import generate
from .sampling import Settings, draw, probabilities
from .sequence import Sequence
from .text import Bytes, Characters, TextStream

__all__ = [
    "BlockPool",
    "BlockStore",
    "Bytes",
    "Characters",
    "Chunk",
    "Engine",
    "OutOfBlocks",
    "PagedGPT",
    "Sequence",
    "Settings",
    "TextStream",
    "draw",
    "generate",
    "probabilities",
]
