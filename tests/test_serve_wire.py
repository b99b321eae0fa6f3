"""Whatever a body holds, it is understood or refused in the words of the interface, and what is understood can run."""

import json

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessons_lib.models import GPT
from lessons_lib.serve import Bytes, Engine
from lessons_lib.serve.wire import BadRequest, Wanted, understand

torch.manual_seed(0)
ENGINE = Engine(GPT(256, 8, num_layers=1, num_heads=1, context=16), Bytes().decode, num_blocks=6, block_size=4)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 20), st.floats(), st.floats(0, 2), st.text(max_size=3)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner), max_leaves=4
)
LIKELY = {
    "prompt": st.text(max_size=6)
    | st.lists(st.text(max_size=3), max_size=3)
    | st.lists(st.integers(0, 256), max_size=9),
    "max_tokens": st.integers(0, 8),
    "temperature": st.floats(0, 100) | st.sampled_from([5e-324, 1e-40]),
    "top_k": st.integers(0) | st.sampled_from([10**30]),
    "top_p": st.floats(0, 1, exclude_min=True),
    "seed": st.integers(),
    "n": st.integers(1, 4),
    "stop": st.text(max_size=2) | st.lists(st.text(min_size=1, max_size=2), max_size=4),
    "stream": st.booleans(),
    "stream_options": st.just({"include_usage": True}),
    "echo": st.booleans(),
}
BODIES = st.fixed_dictionaries({}, optional={field: value | VALUES for field, value in LIKELY.items()})
OTHERS = {field: value for field, value in LIKELY.items() if field not in ("prompt", "stream_options")}
RIGHT = st.fixed_dictionaries({"prompt": st.text(min_size=1, max_size=3) | LIKELY["prompt"]}, optional=OTHERS)


def accepted(body):
    """The `Wanted` of a body, or None: whatever is refused is refused in one way."""
    try:
        return understand(body, "tiny", Bytes())
    except BadRequest as refused:
        assert 400 <= refused.status < 500 and str(refused)
        json.dumps(refused.body()).encode()
        return None


@settings(deadline=None)
@given(st.binary(max_size=60) | (VALUES | BODIES).map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_understood_or_refused(body):
    assert accepted(body) is None or isinstance(accepted(body), Wanted)


@settings(deadline=None, max_examples=150)
@given(RIGHT)
def test_what_is_understood_runs_to_its_end(fields):
    wanted = accepted(json.dumps(fields).encode())
    sequences = []
    try:
        for prompt in wanted.prompts if wanted else ():
            sequences += [ENGINE.sequence(prompt, wanted.settings, number=number) for number in range(wanted.n)]
    except ValueError:
        return
    for sequence in sequences:
        ENGINE.add(sequence)
    while not ENGINE.idle:
        ENGINE.step()
    for sequence in sequences:
        assert sequence.finish_reason in ("length", "stop")
        assert sequence.finish_reason == "stop" or sequence.num_added == wanted.settings.max_tokens
        assert not any(stop in sequence.text.text for stop in wanted.settings.stop)
        assert sequence.finish_reason == "stop" or sequence.text.text == Bytes().decode(sequence.added)
    assert ENGINE.pool.num_free == ENGINE.pool.num_blocks
