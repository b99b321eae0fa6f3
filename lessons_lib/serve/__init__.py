"""Serving (lesson 26): an engine that continues many sequences at once, and a server that others can talk to.

From below: `text`, `sampling`, `blocks` and `paged` know one step; `sequence` and `engine` make continuous batching of
it; `worker`, `wire`, `answer`, `app` and `server` put it behind HTTP; `load` asks it, and `queueing` and `scaling` say
what to expect.
"""

from .app import App, Limits
from .blocks import BlockPool, BlockStore, OutOfBlocks
from .engine import Engine
from .files import export_model, load_model, save_model
from .load import Report, Timing, arrivals_s, offer
from .metrics import Metrics
from .paged import Chunk, PagedGPT
from .plain import generate
from .queueing import erlang_c, knee, mean_wait_s, pollaczek_khinchine_s, utilisation, waits_of, waits_s
from .sampling import Settings, draw, probabilities
from .scaling import DAY, Outcome, Service, fixed, follow, simulate_day
from .sequence import Sequence
from .server import Server, serve
from .speculate import Speculator, judge, tokens_per_pass
from .text import Bytes, Characters, TextStream
from .tiny import tiny_model
from .worker import Closing, Full, Worker

__all__ = [
    "DAY",
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
    "Metrics",
    "OutOfBlocks",
    "Outcome",
    "PagedGPT",
    "Report",
    "Sequence",
    "Server",
    "Service",
    "Settings",
    "Speculator",
    "TextStream",
    "Timing",
    "Worker",
    "arrivals_s",
    "draw",
    "erlang_c",
    "export_model",
    "fixed",
    "follow",
    "generate",
    "judge",
    "knee",
    "load_model",
    "mean_wait_s",
    "offer",
    "pollaczek_khinchine_s",
    "probabilities",
    "save_model",
    "serve",
    "simulate_day",
    "tiny_model",
    "tokens_per_pass",
    "utilisation",
    "waits_of",
    "waits_s",
]
