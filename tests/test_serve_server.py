"""The server, as its clients see it: OpenAI's own, and some that behave badly."""

import json
import threading
import urllib.error
import urllib.request

import openai
import pytest
import torch
from one_thread import one_thread  # noqa: F401 - it acts by being here

from lessons_lib.models import GPT
from lessons_lib.serve import Characters, Limits, Settings, generate, serve

ALPHABET = "abcdefgh é€😀\n."
CONTEXT = 64
TEXT = Characters(ALPHABET)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    gpt = GPT(len(ALPHABET), 16, num_layers=2, num_heads=2, context=CONTEXT)
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.mul_(3.0)
    return gpt.double().eval()


@pytest.fixture(scope="module")
def server(model):
    with serve(model, TEXT, name="tiny", max_batch=4) as running:
        yield running
        assert running.worker.drain(60)
    assert running.worker.engine.pool.num_free == running.worker.engine.pool.num_blocks


def client(server, key="none"):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=60)


def expected(model, prompt, number=0, **settings):
    return generate(model, TEXT.encode(prompt), Settings(**settings), TEXT.decode, number)


def test_openais_client_gets_what_a_plain_loop_gives(server, model):
    wanted = {"max_tokens": 20, "temperature": 0.9, "seed": 5}
    answer = client(server).completions.create(model="tiny", prompt="abc é", n=3, **wanted)
    for number, choice in enumerate(answer.choices):
        sequence = expected(model, "abc é", number, **wanted)
        assert (choice.index, choice.text, choice.finish_reason) == (number, sequence.text.text, "length")
    assert len({choice.text for choice in answer.choices}) == 3
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 60, 65)


def test_a_stream_has_the_same_text_in_pieces(server, model):
    options = {"max_tokens": 12, "temperature": 0, "stream_options": {"include_usage": True}}
    stream = client(server).completions.create(model="tiny", prompt=["a", "gh"], n=2, stream=True, **options)
    texts, reasons, usage = {}, {}, None
    for event in stream:
        usage = event.usage or usage
        for choice in event.choices:
            texts.setdefault(choice.index, []).append(choice.text)
            reasons[choice.index] = choice.finish_reason
    wanted = [expected(model, prompt, max_tokens=12, temperature=0).text.text for prompt in ("a", "a", "gh", "gh")]
    assert ["".join(texts[index]) for index in range(4)] == wanted
    assert set(reasons.values()) == {"length"} and min(map(len, texts.values())) > 5
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 48)  # a prompt counts once


def test_a_stop_string_across_tokens_is_held_back_and_cut_off(server, model):
    whole = expected(model, "cab", max_tokens=30, temperature=0.7, seed=1).text.text
    stop = whole[7:10]
    at = whole.find(stop)
    options = {"max_tokens": 30, "temperature": 0.7, "seed": 1, "stop": [stop, "never this"]}
    for stream in (False, True):
        answer = client(server).completions.create(model="tiny", prompt="cab", stream=stream, **options)
        choices = [event.choices[0] for event in answer] if stream else answer.choices
        assert "".join(choice.text for choice in choices) == whole[:at]
        assert choices[-1].finish_reason == "stop"


def test_echo_tokens_as_a_prompt_and_a_prompt_as_long_as_the_context(server):
    create = client(server).completions.create
    assert create(model="tiny", prompt="a😀b", echo=True, max_tokens=0).choices[0].text == "a😀b"
    stream = list(create(model="tiny", prompt="a😀b", echo=True, max_tokens=3, stream=True, temperature=0))
    whole = create(model="tiny", prompt="a😀b", echo=True, max_tokens=3, temperature=0).choices[0].text
    assert "".join(event.choices[0].text for event in stream) == whole and stream[0].choices[0].text == "a😀b"
    assert create(model="tiny", prompt=TEXT.encode("bad"), echo=True, max_tokens=1).choices[0].text[:3] == "bad"
    answer = create(model="tiny", prompt="a" * (CONTEXT - 1), max_tokens=1)
    assert answer.usage.completion_tokens == 1 and answer.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match=r"max_tokens=2.*65.*64 are possible"):
        create(model="tiny", prompt="a" * (CONTEXT - 1), max_tokens=2)


def test_the_models_are_listed(server):
    assert [model.id for model in client(server).models.list()] == ["tiny"]
    assert client(server).models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client(server).models.retrieve("gpt-4")


def post(server, body, path="/v1/completions", **headers):
    """(status, headers, body) of what is answered to any bytes."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, dict(answer.headers), answer.read()


GARBAGE = {
    b"": (400, None, "no JSON"),
    b"{": (400, None, "no JSON"),
    b"\xff\xfe\x00": (400, None, "no JSON"),
    b"[" * 100_000: (400, None, "no JSON"),
    b"[1]": (400, None, "a list: an object is needed"),
    b'{"prompt": NaN}': (400, None, "NaN is no number"),
    b"{}": (400, "prompt", "at least one token"),
    b'{"prompt": ""}': (400, "prompt", "at least one token"),
    b'{"prompt": []}': (400, "prompt", "at least one token"),
    b'{"prompt": ["a", ""]}': (400, "prompt", "at least one token"),
    b'{"prompt": ["a", 3]}': (400, "prompt", "at least one token"),
    b'{"prompt": [true]}': (400, "prompt", "at least one token"),
    b'{"prompt": [14]}': (400, "prompt", "token 14: 0 to 13 are possible"),
    b'{"prompt": [-1]}': (400, "prompt", "token -1: 0 to 13"),
    b'{"prompt": "Z"}': (400, "prompt", "'Z' at place 0"),
    b'{"prompt": "\\ud800"}': (400, "prompt", "at place 0"),
    b'{"prompt": "a", "max_tokens": -1}': (400, "max_tokens", "max_tokens=-1: a whole number of at least 0"),
    b'{"prompt": "a", "max_tokens": 1e3}': (400, "max_tokens", "max_tokens=1000.0: a whole number"),
    b'{"prompt": "a", "max_tokens": true}': (400, "max_tokens", "max_tokens=True"),
    b'{"prompt": "a", "max_tokens": 64}': (400, "max_tokens", "64 are possible, the model's context"),
    b'{"prompt": "a", "temperature": -0.1}': (400, "temperature", "a number from 0 to 100"),
    b'{"prompt": "a", "temperature": 1e999}': (400, "temperature", "a number from 0 to 100"),
    b'{"prompt": "a", "temperature": 1' + b"0" * 400 + b"}": (400, "temperature", "a number from 0 to 100"),
    b'{"prompt": "a", "seed": 1' + b"0" * 5_000 + b"}": (400, None, "no JSON"),
    b'{"prompt": "a", "temperature": "hot"}': (400, "temperature", "temperature='hot'"),
    b'{"prompt": "a", "top_p": 0}': (400, "top_p", "above 0 and at most 1"),
    b'{"prompt": "a", "top_k": -1}': (400, "top_k", "top_k=-1"),
    b'{"prompt": "a", "seed": 0.5}': (400, "seed", "seed=0.5: a whole number"),
    b'{"prompt": "a", "n": 0}': (400, "n", "n=0: a whole number from 1 to 16"),
    b'{"prompt": ["a", "b"], "n": 9}': (400, "n", "n=9: a whole number from 1 to 8"),
    b'{"prompt": "a", "stop": ["a", ""]}': (400, "stop", "not empty"),
    b'{"prompt": "a", "stop": ["a", "b", "c", "d", "e"]}': (400, "stop", "at most 4"),
    b'{"prompt": "a", "stop": {"a": 1}}': (400, "stop", "a text, or a list"),
    b'{"prompt": "a", "stream": 1}': (400, "stream", "stream=1: true or false"),
    b'{"prompt": "a", "stream_options": {"include_usage": true}}': (400, "stream_options", "with stream=true"),
    b'{"prompt": "a", "logprobs": 3}': (400, "logprobs", "logprobs=3: this is not possible here"),
    b'{"prompt": "a", "logprobs": 0}': (400, "logprobs", "logprobs=0: this is not possible here"),
    b'{"prompt": "a", "best_of": 2}': (400, "best_of", "best_of=2: this is not possible here, only 1"),
    b'{"prompt": [' + b'"a",' * 16 + b'"a"]}': (400, "prompt", "17 prompts: at most 16 are possible"),
    b'{"prompt": "a", "maxtokens": 3}': (400, "maxtokens", "no such field"),
    b'{"prompt": "a", "model": "gpt-4"}': (404, "model", "this server has 'tiny'"),
    b'{"prompt": "a", "model": ["tiny"]}': (404, "model", "this server has 'tiny'"),
}


@pytest.mark.parametrize("body", GARBAGE, ids=lambda body: repr(body[:60]))
def test_a_wrong_request_is_told_its_field_its_value_and_what_is_accepted(server, body):
    status, param, message = GARBAGE[body]
    answered, _, text = post(server, body)
    error = json.loads(text)["error"]
    assert (answered, error["param"]) == (status, param), error
    assert message in error["message"] and error["type"] == "invalid_request_error"


def test_other_paths_methods_and_bodies_that_are_too_long(server):
    assert post(server, {"prompt": "a"}, path="/v1/chat")[0] == 404
    status, headers, body = post(server, b"", path="/v1/models")
    assert (status, headers["allow"]) == (405, "GET, HEAD") or (status, headers["allow"]) == (405, "HEAD, GET")
    assert json.loads(body)["error"]["message"] == "POST /v1/models: Method Not Allowed"
    status, _, body = post(server, b"x" * (Limits.max_body_bytes + 1))
    assert (status, json.loads(body)["error"]["message"]) == (
        413,
        "the body has more than 1048576 bytes, the server's limit",
    )


def test_a_handler_that_fails_says_so_as_others_do(server, monkeypatch):
    def fails(*arguments):
        raise ArithmeticError("planted")

    monkeypatch.setattr("lessons_lib.serve.app.understand", fails)
    status, _, body = post(server, {"prompt": "a"})
    assert (status, json.loads(body)["error"]) == (
        500,
        {"message": "the server failed", "type": "server_error", "param": None, "code": None},
    )


def test_a_tokenizer_of_another_model_is_refused(model):
    with (
        pytest.raises(ValueError, match=r"tokenizer\.vocabulary=3: 14 is needed, the model's"),
        serve(model, Characters("abc")),
    ):
        pass


def test_limits_are_checked():
    with pytest.raises(ValueError, match="drain_s=-1: a finite number of at least 0"):
        Limits(drain_s=-1)


@pytest.mark.parametrize("seed", [0, 2**70, -3])
def test_a_seed_gives_the_same_text_beside_any_others(server, seed):
    create = client(server).completions.create
    options = {"model": "tiny", "prompt": "abc", "max_tokens": 20, "temperature": 1.5, "seed": seed}
    alone = create(**options).choices[0].text
    texts, threads = [], []
    for number in range(8):
        other = {**options, "seed": number + 100} if number % 2 else options
        threads.append(threading.Thread(target=lambda o=other: texts.append((o["seed"], create(**o).choices[0].text))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert [text for own, text in texts if own == seed] == [alone] * 4
