"""A server that runs: in a thread beside a notebook, or as the process of a command, until it is told to end."""

import socket
import threading
from contextlib import contextmanager

import uvicorn

from .app import App, Limits
from .engine import Engine
from .worker import Worker

KEEP_ALIVE_S = 5  # of a connection without a request
SEND_S = 5  # for the last answers to be sent, once their tokens are there


class Server(uvicorn.Server):
    """A worker, its application and the socket they listen on. Use `serve`, or `run` in the main thread.

    On SIGTERM or SIGINT it accepts no new request (503), finishes those that it has accepted, for at most
    `limits.drain_s`, and then ends. At a second signal it tells
    them that they will not be finished, and ends at once.

    Args:
        model: `models.GPT`.
        tokenizer: with `encode`, `decode` and `vocabulary`, such as `Characters`.
        host, port: where to listen; port 0 takes one that is free.
        name: of the model.
        limits: `Limits`.
        keys: of which a client has to send one as a bearer token; none needs no token.
        engine: more arguments of `Engine`.

    Attributes:
        port, url: where it listens, from the beginning.
        worker: its `Worker`.
        num_cancelled: sequences that were accepted and not finished when it ended.

    Raises:
        OSError: the port is taken.
        ValueError: the tokenizer has another number of tokens than the model, or what `Engine` refuses.
    """

    def __init__(self, model, tokenizer, host="127.0.0.1", port=0, name="gpt", limits=None, keys=(), **engine):
        limits, known = limits or Limits(), model.embed.tokens.num_embeddings
        if tokenizer.vocabulary != known:
            raise ValueError(f"tokenizer.vocabulary={tokenizer.vocabulary}: {known} is needed, the model's")
        engine = Engine(model, tokenizer.decode, **engine)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self.host, self.port = self._socket.getsockname()[:2]
        self.url = f"http://[{self.host}]:{self.port}" if ":" in host else f"http://{self.host}:{self.port}"
        self.worker, self.limits = Worker(engine, limits.max_queue), limits
        self.app = App(self.worker, tokenizer, name, limits, keys)
        config = uvicorn.Config(
            self.app.asgi,
            lifespan="off",
            log_level="warning",
            access_log=False,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SEND_S,
        )
        super().__init__(config)
        self._stopping, self.num_cancelled = False, 0

    def run(self):
        """Serve until a signal or `stop`; then what was accepted is finished."""
        try:
            super().run(sockets=[self._socket])
        finally:
            self.worker.close()
            self._socket.close()

    def stop(self):
        """Accept nothing more, finish what is accepted within `limits.drain_s`, and let `run` return."""
        self.worker.drain(self.limits.drain_s)
        self._end_the_rest()
        self.should_exit = True

    def _end_the_rest(self):
        self.num_cancelled = max(self.num_cancelled, self.worker.num_accepted)
        self.worker.close()

    def handle_exit(self, sig, frame):
        """What uvicorn does at a signal, in the main thread; here other threads wait for what was accepted."""
        end = self._end_the_rest if self._stopping else self.stop
        self._stopping = True
        threading.Thread(target=end, name="lessons_lib stop", daemon=True).start()


@contextmanager
def serve(*arguments, **more):
    """Run a `Server` in a thread for the time of a `with`; at its end, what was accepted is finished.

        with serve(model, tokenizer) as server: ... server.url

    Args:
        arguments, more: those of `Server`.
    """
    server = Server(*arguments, **more)
    thread = threading.Thread(target=server.run, name="lessons_lib server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
