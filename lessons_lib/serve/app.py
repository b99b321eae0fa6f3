"""The HTTP side: routes, limits and errors, as an ASGI application."""

import asyncio
import hmac
import json
import math
import time
from dataclasses import dataclass
from numbers import Real

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from .answer import Answer
from .metrics import Metrics
from .wire import BadRequest, as_bad_request, understand
from .worker import Closing, Full


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
        max_body_bytes: of a request.
        max_n: choices of one request, over all of its prompts.
        max_queue: sequences that wait, beside those in the batch.
        read_timeout_s: for the body of a request to arrive.
        timeout_s: for a request to be done.
        drain_s: for all that is accepted to be done when the server is told to end.
    """

    max_body_bytes: int = 1 << 20
    max_n: int = 16
    max_queue: int = 64
    read_timeout_s: float = 10.0
    timeout_s: float = 120.0
    drain_s: float = 30.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not isinstance(value, Real) or not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r}: a finite number of at least 0 is needed")


class App:
    """The application of one engine; `asgi` is what a server of ASGI runs.

    Args:
        worker: `Worker`.
        tokenizer: with `encode` and `decode`.
        name: the model's.
        limits: `Limits`.
        keys: of which a client has to send one as a bearer token; none needs no token.
    """

    def __init__(self, worker, tokenizer, name="gpt", limits=None, keys=()):
        self.worker, self.tokenizer, self.name, self.limits = worker, tokenizer, name, limits or Limits()
        self.metrics = Metrics(worker)
        self._keys, self._created = [key.encode() for key in keys], int(time.time())
        routes = [
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
        ]
        handlers = {BadRequest: self._refused, HTTPException: self._no_route, ClientDisconnect: self._left}
        handlers[Exception] = self._failed
        self.asgi = Starlette(routes=routes, exception_handlers=handlers)

    async def completions(self, request):
        self._check_key(request)
        try:
            body = await asyncio.wait_for(self._body(request), self.limits.read_timeout_s)
        except asyncio.TimeoutError:
            message = f"the body did not arrive within {self.limits.read_timeout_s} s"
            raise BadRequest(message, status=408, kind="timeout_error") from None
        wanted = understand(body, self.name, self.tokenizer, min(self.limits.max_n, self.worker.limit))
        own = self.metrics, self.worker.cancel, self.limits.timeout_s
        answer = Answer(wanted, self.name, self.tokenizer.decode, *own)
        self._accept(answer, wanted)
        return answer

    async def _body(self, request):
        body, most = bytearray(), self.limits.max_body_bytes
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise BadRequest(f"the body has more than {most} bytes, the server's limit", status=413)
        return bytes(body)

    def _accept(self, answer, wanted):
        pairs = [(prompt, number) for prompt in wanted.prompts for number in range(wanted.n)]
        try:
            for index, (prompt, number) in enumerate(pairs):
                sequence = self.worker.engine.sequence(prompt, wanted.settings, answer.on_event(index), number)
                answer.sequences.append(sequence)
        except ValueError as problem:
            raise as_bad_request(problem) from None
        try:
            self.worker.accept(answer.sequences)
        except Full as problem:
            raise self._later(problem, 429, "rate_limit_error", "queue_full", problem.retry_after_s) from None
        except Closing as problem:
            raise self._later(problem, 503, "server_error", "server_shutting_down", 1) from None

    def _later(self, problem, status, kind, code, after_s):
        return BadRequest(str(problem), None, status, kind, code, {"retry-after": str(after_s)})

    async def models(self, request):
        self._check_key(request)
        return _json({"object": "list", "data": [self._described()]})

    async def model(self, request):
        self._check_key(request)
        if request.path_params["name"] != self.name:
            message = f"model={request.path_params['name']!r}: this server has {self.name!r}"
            raise BadRequest(message, "model", 404, code="model_not_found")
        return _json(self._described())

    def _described(self):
        return {"id": self.name, "object": "model", "created": self._created, "owned_by": "lessons_lib"}

    async def health(self, request):
        if self.worker.closing:
            return _json({"status": "shutting down"}, 503)
        return _json({"status": "ok"})

    async def show_metrics(self, request):
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def _check_key(self, request):
        if not self._keys:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        right = [hmac.compare_digest(key.encode(), known) for known in self._keys]
        if kind.lower() != "bearer" or not any(right):
            headers = {"www-authenticate": "Bearer"}
            message = "a header `Authorization: Bearer KEY` with a key of this server is needed"
            raise BadRequest(message, status=401, kind="authentication_error", code="invalid_api_key", headers=headers)

    async def _refused(self, request, problem):
        self.metrics.answered(problem.status)
        return _json(problem.body(), problem.status, problem.headers)

    async def _no_route(self, request, problem):
        message = f"{request.method} {request.url.path}: {problem.detail}"
        refused = BadRequest(message, status=problem.status_code, code="no_route", headers=problem.headers)
        return await self._refused(request, refused)

    async def _failed(self, request, problem):
        return await self._refused(request, BadRequest("the server failed", status=500, kind="server_error"))

    async def _left(self, request, problem):
        return await self._refused(request, BadRequest("the client left before its body arrived", status=400))


def _json(content, status=200, headers=None):
    return Response(json.dumps(content), status, headers, media_type="application/json")
