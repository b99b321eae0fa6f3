"""Serving (lesson 26): an engine that continues many sequences at once, and a server that others can talk to."""

from .app import App, Limits
from .blocks import BlockPool, BlockStore, OutOfBlocks
from .engine import Engine
from .files import export_model, load_model, save_model
from .paged import Chunk, PagedGPT
from .plain import generate
from .sampling import Settings, draw, probabilities
from .sequence import Sequence
from .server import Server, serve
from .speculate import Speculator, judge, tokens_per_pass
from .text import Bytes, Characters, TextStream
from .tiny import tiny_model
from .worker import Closing, Full, Worker

__all__ = [
    "App",
    "BlockPool",
    "BlockStore",
    "Bytes",
    "Characters",
    "Chunk",
    "Closing",
    "Engine",
    "Full",
    "Limits",
    "OutOfBlocks",
    "PagedGPT",
    "Sequence",
    "Server",
    "Settings",
    "Speculator",
    "TextStream",
    "Worker",
    "draw",
    "export_model",
    "generate",
    "judge",
    "load_model",
    "probabilities",
    "save_model",
    "serve",
    "tiny_model",
    "tokens_per_pass",
]
