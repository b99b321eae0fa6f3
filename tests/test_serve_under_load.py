"""Floods, clients that leave or dawdle, the end of a server: what was accepted is answered, and no block is lost."""

import concurrent.futures
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest
import torch
from left_behind import wait_until as wait_until_within
from one_thread import one_thread  # noqa: F401 - it acts by being here

from lessons_lib.models import GPT
from lessons_lib.serve import Characters, Limits, save_model, serve

TEXT = Characters("abcdefgh \n")
BATCH, QUEUE = 2, 3
wait_until = partial(wait_until_within, limit_s=60)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(TEXT.vocabulary, 16, num_layers=1, num_heads=2, context=64).double().eval()


class Gate:
    """Holds the engine before each step until `open` is called."""

    def __init__(self, server):
        self.open, self.step = threading.Event(), server.worker.engine.step
        server.worker.engine.step = self

    def __call__(self):
        assert self.open.wait(60)
        self.step()


@contextmanager
def held(model, **more):
    """A server whose engine does no step until its gate is opened; no block may be taken at its end."""
    limits = Limits(**{"max_queue": QUEUE, **more.pop("limits", {})})
    with serve(model, TEXT, name="tiny", max_batch=BATCH, limits=limits, **more) as server:
        server.gate, server.left, cancel = Gate(server), threading.Event(), server.worker.cancel

        def cancelled(sequences):
            cancel(sequences)
            if sequences:
                server.left.set()

        server.worker.cancel = cancelled
        try:
            yield server
        finally:
            server.gate.open.set()
    assert not server.worker.num_accepted
    assert server.worker.engine.pool.num_free == server.worker.engine.pool.num_blocks


def client(server, key="none"):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=60)


def ask(server, **more):
    return client(server).completions.create(model="tiny", prompt="abc", **{"max_tokens": 5, **more})


def connect(server, body, length=None, head="POST /v1/completions"):
    """A socket on which a request was sent."""
    body = json.dumps(body).encode()
    connection = socket.create_connection((server.host, server.port), timeout=60)
    lines = f"{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    connection.sendall(lines.encode() + body)
    return connection


def read(connection, ending):
    """What comes until it holds `ending`."""
    text = b""
    while ending not in text:
        part = connection.recv(1 << 16)
        assert part, text
        text += part
    return text


def metrics(server):
    with connect(server, "", head="GET /metrics") as connection:
        connection.shutdown(socket.SHUT_WR)
        text = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    return {name: float(value) for name, value in re.findall(r"^(serve_[^ ]*) (\S+)\r?$", text, re.MULTILINE)}


def test_a_flood_is_told_to_come_again_and_all_that_was_accepted_is_answered(model):
    with held(model) as server, concurrent.futures.ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, server, stream=number % 2 == 0) for number in range(20)]
        assert wait_until(lambda: sum(a.done() and a.exception() is not None for a in asked) == 20 - BATCH - QUEUE)
        refused = [a.exception() for a in asked if a.done() and a.exception()]
        for problem in refused:
            assert isinstance(problem, openai.RateLimitError), problem
            assert int(problem.response.headers["retry-after"]) >= 1
        server.gate.open.set()
        kept = [a.result() for a in asked if not (a.done() and a.exception())]
        texts = [list(a)[-1].choices[0].finish_reason if isinstance(a, openai.Stream) else a.usage for a in kept]
        assert len(kept) == BATCH + QUEUE and all(texts)
        assert metrics(server)['serve_answers_total{status="429"}'] == 20 - BATCH - QUEUE
        assert ask(server).usage.completion_tokens == 5  # and it goes on


def test_one_request_with_more_choices_than_places_is_refused_as_a_whole(model):
    with held(model) as server:
        server.gate.open.set()
        with pytest.raises(openai.BadRequestError, match="n=6: a whole number from 1 to 5"):  # coming again is no use
            ask(server, n=BATCH + QUEUE + 1)
        assert len(ask(server, n=BATCH + QUEUE).choices) == BATCH + QUEUE


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_blocks(model, stream):
    with held(model) as server:
        left = connect(server, {"prompt": "ab", "max_tokens": 50, "n": 2, "stream": stream})
        assert wait_until(lambda: server.worker.num_accepted == 2)
        left.close()
        assert server.left.wait(60)
        server.gate.open.set()
        assert wait_until(lambda: not server.worker.num_accepted)
        assert server.worker.num_steps <= 2  # the rest of its 50 tokens were not computed
        assert metrics(server)['serve_answers_total{status="499"}'] == 1


def test_a_client_that_leaves_in_the_midst_of_a_stream(model):
    with held(model) as server:
        step, steps = server.gate.step, threading.Semaphore(3)

        def three_steps():
            assert steps.acquire(timeout=60)
            step()

        server.gate.step = three_steps
        server.gate.open.set()
        left = connect(server, {"prompt": "ab", "max_tokens": 50, "stream": True})
        read(left, b"data: ")
        left.close()
        assert server.left.wait(60)
        server.gate.step = step
        steps.release()
        assert wait_until(lambda: not server.worker.num_accepted)
        assert server.worker.num_steps < 20


def test_what_takes_too_long_is_told_so_and_frees_its_blocks(model):
    with held(model, limits={"timeout_s": 0.05}) as server:
        with pytest.raises(openai.APIStatusError, match=r"not done within 0\.05 s") as problem:
            ask(server)
        assert problem.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"not done within 0\.05 s"):
            list(ask(server, stream=True))
        server.gate.open.set()
        assert wait_until(lambda: not server.worker.num_accepted)


def test_a_body_that_does_not_come_is_not_waited_for(model):
    with held(model, limits={"read_timeout_s": 0.05}) as server:
        with connect(server, {"prompt": "a"}, length=1_000) as connection:
            assert read(connection, b"did not arrive within").startswith(b"HTTP/1.1 408")
        with connect(server, {"prompt": "a"}, length=1_000) as connection:
            connection.shutdown(socket.SHUT_WR)  # it will never come
        server.gate.open.set()
        assert ask(server).usage.completion_tokens == 5


def test_an_engine_that_fails_says_so_and_goes_on(model):
    with held(model) as server:
        step = server.gate.step

        def fails():
            server.gate.step = step
            raise ArithmeticError("planted")

        server.gate.step = fails
        server.gate.open.set()
        with pytest.raises(openai.InternalServerError, match="the engine failed"):
            ask(server)
        assert str(server.worker.problem) == "planted"
        assert ask(server).usage.completion_tokens == 5


def test_keys(model):
    with held(model, keys=["right", "also"]) as server:
        server.gate.open.set()
        for key in ("right", "also"):
            assert [m.id for m in client(server, key).models.list()] == ["tiny"]
        for call in (lambda c: c.models.list(), lambda c: c.completions.create(model="tiny", prompt="a")):
            with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer KEY"):
                call(client(server, "wrong"))
        assert metrics(server)['serve_answers_total{status="401"}'] == 2


def test_health_and_metrics(model):
    with held(model) as server:
        with connect(server, "", head="GET /health") as connection:
            assert read(connection, b'{"status": "ok"}').startswith(b"HTTP/1.1 200")
        server.gate.open.set()
        ask(server, n=2)
        list(ask(server, stream=True, max_tokens=0))
        seen = metrics(server)
    assert seen['serve_tokens_total{part="added"}'] == 10
    assert seen['serve_tokens_total{part="prompt"}'] == 9
    assert seen["serve_first_token_seconds_count"] == seen["serve_token_seconds_count"] == 2
    assert seen["serve_blocks_free"] == seen["serve_blocks"] == server.worker.engine.pool.num_blocks


def test_at_the_end_what_is_accepted_is_finished_and_what_is_new_is_refused(model):
    with held(model) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, server, n=2, stream=number == 1) for number in range(2)]
        assert wait_until(lambda: server.worker.num_accepted == 4)
        ending = pool.submit(server.stop)
        assert wait_until(lambda: server.worker.closing)
        with pytest.raises(openai.InternalServerError, match="shutting down") as problem:
            ask(server)
        assert problem.value.status_code == 503
        with connect(server, "", head="GET /health") as connection:
            assert read(connection, b"shutting down").startswith(b"HTTP/1.1 503")
        server.gate.open.set()
        ending.result()
        answer, stream = (a.result() for a in asked)
        assert answer.usage.completion_tokens == 10
        assert [event.choices[0].finish_reason for event in stream].count("length") == 2


def test_what_is_not_finished_within_the_limit_is_told_so(model):
    with held(model, limits={"drain_s": 0.05}) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = pool.submit(ask, server)
        assert wait_until(lambda: server.worker.num_accepted)
        ending = pool.submit(server.stop)
        assert wait_until(lambda: server.worker._ended)
        server.gate.open.set()
        ending.result()
        with pytest.raises(openai.InternalServerError, match="shut down before this was done"):
            asked.result()
        assert server.num_cancelled == 1


@contextmanager
def started(model):
    """The command in a process of its own, and a client of it."""
    command = [sys.executable, "-m", "lessons_lib", "serve", str(model), "--port", "0"]
    folder = Path(__file__).resolve().parent.parent
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+/v1", process.stdout.readline())[0]
            yield process, openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        finally:
            process.kill()


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_midst_of_a_stream_loses_no_token(which, tmp_path):
    torch.manual_seed(0)
    save_model(tmp_path / "model", GPT(TEXT.vocabulary, 16, num_layers=2, num_heads=2, context=512), TEXT)
    with started(tmp_path / "model") as (process, own):
        stream = own.completions.create(model="model", prompt="ab", max_tokens=500, stream=True)
        text = next(stream).choices[0].text
        process.send_signal(which)
        events = [event.choices[0] for event in stream]
        assert len(text + "".join(event.text for event in events)) == 500
        assert events[-1].finish_reason == "length"
        assert process.wait(60) == 0
        assert "all that was accepted is finished" in process.stdout.read()


def test_a_second_signal_ends_it_at_once(tmp_path):
    save_model(tmp_path / "model", GPT(TEXT.vocabulary, 16, num_layers=2, num_heads=2, context=20_000), TEXT)
    with started(tmp_path / "model") as (process, own):
        stream = own.completions.create(model="model", prompt="ab", max_tokens=19_000, stream=True)
        next(stream)
        process.send_signal(signal.SIGTERM)
        health = str(own.base_url).replace("/v1/", "/health")
        assert wait_until(lambda: httpx.get(health).status_code == 503)  # the first one has come
        process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shut down before this was done"):
            list(stream)
        assert process.wait(60) == 1
        assert "1 accepted requests were not finished" in process.stdout.read()
