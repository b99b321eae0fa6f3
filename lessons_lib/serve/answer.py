"""The answer to one request: all at once, or piece by piece as server-sent events, as long as somebody listens.

Source: OpenAI's API reference, Completions; the HTML standard, §9.2, for server-sent events.
"""

import asyncio
import json
import time
import uuid

from .wire import BadRequest

JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
CLIENT_LEFT = 499  # no status of HTTP, but what others write into their logs, too
FAILURES = {  # reason: message, status, code
    "timeout": ("this was not done within {} s, the server's limit", 504, "timeout"),
    "cancelled": ("the server shut down before this was done", 503, "server_shutting_down"),
    "error": ("the engine failed at this request", 500, "engine_failed"),
}


class Answer:
    """An ASGI response that waits for its sequences. If the client leaves, they are cancelled, and their blocks free.

    Args:
        wanted: `wire.Wanted`.
        name: of the model.
        decode: tokens -> text.
        metrics: `Metrics`, which hears of what is done.
        cancel: called with the sequences that nobody waits for any more.
        timeout_s: how long all of it may take.

    Attributes:
        sequences: to be filled before it is called; `on_event(index)` makes what each of them tells.
    """

    def __init__(self, wanted, name, decode, metrics, cancel, timeout_s):
        self.wanted, self.decode, self.metrics = wanted, decode, metrics
        self.cancel, self.timeout_s = cancel, timeout_s
        self.sequences, self._loop, self._events = [], asyncio.get_running_loop(), asyncio.Queue()
        self._begun_s, self._status = time.monotonic(), CLIENT_LEFT
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        self._head["model"] = name

    def on_event(self, index):
        """What sequence `index` calls, in the engine's thread."""

        def tell(piece, reason):
            if self.wanted.stream or reason:
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, piece, reason))

        return tell

    async def __call__(self, scope, receive, send):
        write = self._write_pieces if self.wanted.stream else self._write_all
        writing, gone = asyncio.ensure_future(write(send)), asyncio.ensure_future(_gone(receive))
        timer = self._loop.call_later(self.timeout_s, self._events.put_nowait, (0, "", "timeout"))
        try:  # a client that does not read holds `send` for ever: hence a limit here, too
            await asyncio.wait({writing, gone}, timeout=self.timeout_s + 5, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                self._status = writing.result()
        finally:
            for waiting in (timer, writing, gone):
                waiting.cancel()
            self.metrics.answered(self._status)
            self.cancel([sequence for sequence in self.sequences if not sequence.finish_reason])

    async def _each_event(self):
        """(index, piece, reason) of all sequences until all are done.

        Raises:
            BadRequest: the engine failed, or time is up.
        """
        missing = len(self.sequences)
        while missing:
            index, piece, reason = await self._events.get()
            if reason in FAILURES:
                message, status, code = FAILURES[reason]
                message = message.format(self.timeout_s)
                raise BadRequest(message, status=status, kind="server_error", code=code)
            if reason:
                self.metrics.done(self.sequences[index], self._begun_s)
                missing -= 1
            yield index, piece, reason

    async def _write_all(self, send):
        try:
            async for _ in self._each_event():
                pass
        except BadRequest as problem:
            return await self._send_whole(send, problem.status, problem.body())
        choices = [self._choice(i, self._echo(i) + s.text.text, s.finish_reason) for i, s in enumerate(self.sequences)]
        return await self._send_whole(send, 200, {**self._head, "choices": choices, "usage": self._usage()})

    async def _send_whole(self, send, status, body):
        await start(send, status, JSON)
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})
        return status

    async def _write_pieces(self, send):
        status = 200
        await start(send, status, EVENTS, {"cache-control": "no-cache"})
        try:
            for index in range(len(self.sequences)) if self.wanted.echo else ():
                await self._send_event(send, [self._choice(index, self._echo(index), None)])
            async for index, piece, reason in self._each_event():
                await self._send_event(send, [self._choice(index, piece, reason)])
            if self.wanted.include_usage:
                await self._send_event(send, [], usage=self._usage())
        except BadRequest as problem:  # too late for a status of its own
            status = problem.status
            await _send_data(send, json.dumps(problem.body()))
        await _send_data(send, "[DONE]")
        await send({"type": "http.response.body", "body": b""})
        return status

    async def _send_event(self, send, choices, usage=None):
        more = {"usage": usage} if self.wanted.include_usage else {}
        await _send_data(send, json.dumps({**self._head, "choices": choices, **more}))

    def _choice(self, index, text, reason):
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

    def _echo(self, index):
        prompt = self.wanted.texts[index // self.wanted.n]
        text = prompt if isinstance(prompt, str) else self.decode(prompt)
        return text if self.wanted.echo else ""

    def _usage(self):
        prompt = sum(map(len, self.wanted.prompts))
        added = sum(sequence.num_added for sequence in self.sequences)
        return {"prompt_tokens": prompt, "completion_tokens": added, "total_tokens": prompt + added}


async def start(send, status, content_type, headers=None):
    """Send the head of an answer."""
    pairs = {"content-type": content_type, **(headers or {})}
    encoded = [(name.encode(), value.encode()) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def _send_data(send, text):
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})


async def _gone(receive):
    while (await receive())["type"] != "http.disconnect":
        pass
