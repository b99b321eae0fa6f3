"""What a request for completions may hold, as OpenAI's clients write it, and what is said of one that is wrong."""

import json
import re
from dataclasses import dataclass

from .sampling import Settings

NEUTRAL = {  # what clients send although it is what happens anyway; other values are refused
    "best_of": 1,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": None,
    "presence_penalty": 0,
    "suffix": "",
}
SETTINGS = ("max_tokens", "temperature", "top_k", "top_p", "seed", "stop")
FLAGS = ("echo", "stream")
MOST_STOPS = 4


class BadRequest(ValueError):
    """A request that is answered with an error.

    Attributes:
        status: of the answer, 400 to 599.
        param: the field that is wrong, or None.
        kind, code: as in OpenAI's errors.
        headers: to send with it.
    """

    def __init__(self, message, param=None, status=400, kind="invalid_request_error", code=None, headers=None):
        super().__init__(message)
        self.param, self.status, self.kind, self.code = param, status, kind, code
        self.headers = headers or {}

    def body(self):
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass
class Wanted:
    """A request that is right.

    Attributes:
        prompts: the tokens of each.
        texts: the prompts as text, which `echo` gives back.
        settings: `Settings` of all choices.
        n: choices for each prompt.
        echo, stream, include_usage: whether the prompt is given back, whether pieces are sent, and with a count.
    """

    prompts: list
    texts: list
    settings: Settings
    n: int = 1
    echo: bool = False
    stream: bool = False
    include_usage: bool = False


def understand(body, name, tokenizer, max_n=16):
    """Read the body of a request.

    Args:
        body: bytes.
        name: the model's.
        tokenizer: with `encode` and `decode`.
        max_n: the most choices of one request, over all prompts.

    Raises:
        BadRequest: a field is wrong: it says which, its value, and what is accepted.
    """
    fields = _object(body)
    known = {"model", "prompt", "n", "user", "stream_options", *SETTINGS, *FLAGS, *NEUTRAL}
    for field, value in fields.items():
        if field not in known:
            raise BadRequest(f"{_short(field)}: no such field; known are {', '.join(sorted(known))}", field[:80])
        if field in NEUTRAL and value != NEUTRAL[field]:
            only = "" if NEUTRAL[field] is None else f", only {NEUTRAL[field]!r}"
            _refuse(field, value, f"this is not possible here{only}")
    if fields.get("model", name) != name:
        message = f"model={_short(fields['model'])}: this server has {name!r}"
        raise BadRequest(message, "model", 404, code="model_not_found")
    flags = {flag: _flag(fields, flag) for flag in FLAGS}
    prompts, texts = _prompts(fields.get("prompt"), tokenizer)
    n = fields.get("n", 1)
    most = max_n // len(prompts)
    if not most:
        raise BadRequest(f"{len(prompts)} prompts: at most {max_n} are possible", "prompt")
    if type(n) is not int or not 1 <= n <= most:
        _refuse("n", n, f"a whole number from 1 to {most} is needed, for {len(prompts)} prompts")
    return Wanted(prompts, texts, _settings(fields), n, include_usage=_usage(fields, flags["stream"]), **flags)


def _object(body):
    try:
        fields = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as problem:
        raise BadRequest(f"the body is no JSON: {problem}") from None
    if not isinstance(fields, dict):
        raise BadRequest(f"the body is JSON, but a {type(fields).__name__}: an object is needed")
    return {field: value for field, value in fields.items() if value is not None}


def _no_number(text):
    raise ValueError(f"{text} is no number of JSON")


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse(field, value, needed):
    raise BadRequest(f"{field}={_short(value)}: {needed}", field)


def _flag(fields, name):
    value = fields.get(name, False)
    if not isinstance(value, bool):
        _refuse(name, value, "true or false is needed")
    return value


def _usage(fields, stream):
    options = fields.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict) or not isinstance(options.get("include_usage", False), bool):
        _refuse("stream_options", options, 'with stream=true, {"include_usage": true} is possible')
    return options.get("include_usage", False)


def _prompts(prompt, tokenizer):
    """(tokens of each, text of each) of a text, a list of texts, tokens, or a list of lists of tokens."""
    needed = "a text, tokens, or a list of texts or of lists of tokens is needed, each with at least one token"
    if isinstance(prompt, str) or _are_tokens(prompt):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        _refuse("prompt", prompt, needed)
    tokens = []
    for each in prompt:
        if not each or not (isinstance(each, str) or _are_tokens(each)):
            _refuse("prompt", prompt, needed)
        try:
            tokens.append(tokenizer.encode(each) if isinstance(each, str) else each)
        except ValueError as problem:
            _refuse("prompt", each, str(problem))
    return tokens, prompt


def _are_tokens(prompt):
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


def _settings(fields):
    chosen = {field: fields[field] for field in SETTINGS if field in fields}
    stop = chosen.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > MOST_STOPS:
        _refuse("stop", stop, f"a text, or a list of at most {MOST_STOPS} texts, is needed")
    try:
        return Settings(**{**chosen, "stop": tuple(stop)})
    except ValueError as problem:
        raise as_bad_request(problem) from None


def as_bad_request(problem):
    """A `BadRequest` of a `ValueError` whose message begins with the name of the argument."""
    return BadRequest(str(problem), re.match(r"\w*", str(problem))[0])
