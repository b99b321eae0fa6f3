"""`python -m lessons_lib serve`: a model from a file, or one that is trained first, until a signal ends it."""

import math
from pathlib import Path

from .app import Limits
from .files import load_model
from .server import Server
from .tiny import tiny_model


def run(options, error):
    """Serve until SIGTERM or Ctrl-C, and finish what was accepted.

    Args:
        options: of the command line: model, host, port, keys, max_batch, max_queue, drain.
        error: called with a sentence that says what is wrong with them; it does not return.

    Returns:
        The exit status: 0 if all that was accepted was finished, else 1.
    """
    _check(options, error)
    try:
        server = Server(
            *_model(options.model),
            options.host,
            options.port,
            name=Path(options.model).stem if options.model else "tiny",
            limits=Limits(max_queue=options.max_queue, drain_s=options.drain),
            keys=_keys(options.keys),
            max_batch=options.max_batch,
        )
    except (OSError, ValueError) as problem:
        error(str(problem))
    print(f"{server.app.name} on {server.url}/v1 (models, completions), /health and /metrics", flush=True)
    server.run()
    left = server.num_cancelled
    print(f"ended; {left} accepted requests were not finished" if left else "ended; all that was accepted is finished")
    return 1 if left else 0


def _check(options, error):
    for name, value, least in (("--max-batch", options.max_batch, 1), ("--max-queue", options.max_queue, 0)):
        if value < least:
            error(f"{name}: {value}: a whole number of at least {least} is needed")
    if not 0 <= options.port <= 65535:
        error(f"--port: {options.port}: a whole number from 0 to 65535 is needed")
    if not 0 <= options.drain < math.inf:
        error(f"--drain: {options.drain}: a finite number of at least 0 is needed")


def _keys(path):
    """The keys of a file: not an argument, which every user of the machine could read."""
    keys = Path(path).read_text(encoding="utf-8").split() if path else []
    if path and not keys:
        raise ValueError(f"{path}: at least one line with a key is needed")
    return keys


def _model(path):
    if path:
        return load_model(path)
    print("without a model file: training a tiny one on Python's help for some seconds", flush=True)
    return tiny_model()
