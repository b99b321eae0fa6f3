"""Text that is sent while it grows, what is drawn from logits, and models in files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_thread import one_thread  # noqa: F401 - it acts by being here

from lessons_lib.models import GPT
from lessons_lib.serve import (
    Bytes,
    Characters,
    Sequence,
    Settings,
    TextStream,
    draw,
    export_model,
    load_model,
    probabilities,
    save_model,
    tiny_model,
)


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_pieces_of_any_bytes_are_the_text_of_all_of_them(tokens):
    stream = TextStream(Bytes().decode)
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) + stream.end() == stream.text == Bytes().decode(tokens)


@settings(deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_is_never_sent_and_nothing_else_is_lost(text, stops):
    stream = TextStream("".join, tuple(stops))
    sent = ""
    for character in text:
        sent += stream.push(character)
        if stream.stopped:
            break
    sent += stream.end()
    reached = next((end for end in range(len(text) + 1) if any(s in text[:end] for s in stops)), None)
    expected = text if reached is None else text[: min(text[:reached].find(s) for s in stops if s in text[:reached])]
    assert (sent, stream.stopped) == (expected, reached is not None)


def test_a_character_in_several_tokens_is_one_piece():
    stream = TextStream(Bytes().decode, stop=("€b",))
    assert [stream.push(token) for token in "aé€c€b".encode()] == ["a", "", "é", "", "", "", "€c", "", "", "", ""]
    assert stream.stopped and stream.end() == ""


def test_the_text_ends_with_what_was_held_back():
    told = []
    sequence = Sequence([0], Settings(max_tokens=2, stop=("bc",)), Characters("abc").decode, lambda *e: told.append(e))
    sequence.add(0)
    sequence.add(1)
    assert told == [("a", None), ("b", "length")]


def test_a_stop_string_that_only_the_end_shows():
    sequence = Sequence([0], Settings(max_tokens=1, stop=("\ufffd",)), Bytes().decode)
    sequence.add(0xE2)  # the beginning of a character that never comes
    assert (sequence.text.text, sequence.finish_reason) == ("", "stop")


def test_text_that_a_model_does_not_know_is_told():
    with pytest.raises(ValueError, match=r"character '!' at place 2: this model knows 'ab'"):
        Characters("ab").encode("ab!")
    with pytest.raises(ValueError, match="alphabet='aa'"):
        Characters("aa")
    assert Characters("ab").decode(Characters("ab").encode("abba")) == "abba"


LOGITS = torch.tensor([[2.0, 1.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    "chosen, kept",
    [
        ({}, [0, 1, 2, 3]),
        ({"temperature": 0.1}, [0, 1, 2, 3]),
        ({"temperature": 5e-324}, [0]),
        ({"temperature": 0}, [0]),
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.6}, [0, 1]),
        ({"top_p": 0.75}, [0, 1, 3]),
        ({"top_p": 1e-9}, [0]),
        ({"top_k": 2, "top_p": 0.9, "temperature": 3.0}, [0, 1]),
    ],
    ids=str,
)
def test_what_is_drawn_from(chosen, kept):
    chosen = Settings(**chosen)
    mixed = probabilities(LOGITS.expand(3, 4), [Settings(temperature=0), chosen, Settings()])
    expected = torch.zeros(4, dtype=torch.float64)
    expected[kept] = ((LOGITS[0, kept].double() - 2) / (chosen.temperature or 1.0)).softmax(0)
    torch.testing.assert_close(mixed[1], expected)
    torch.testing.assert_close(mixed[2], LOGITS[0].double().softmax(0))
    assert mixed[0].tolist() == [1, 0, 0, 0]


def test_a_draw_falls_where_the_sums_exceed_its_number():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    uniform = [0.0, 0.2499, 0.25, 0.9, 1 - 2**-53]
    assert draw(p.expand(5, 5), uniform).tolist() == [1, 1, 3, 3, 3]


def test_settings_are_checked():
    for name, value in [("max_tokens", -1), ("temperature", 101), ("top_p", 0), ("seed", 1.5), ("stop", "a")]:
        with pytest.raises(ValueError, match=f"{name}={value!r}: "):
            Settings(**{name: value})


@pytest.mark.parametrize("tied, num_experts", [(True, 0), (False, 0), (True, 3)])
def test_a_model_and_its_tokenizer_come_back_from_a_file(tmp_path, tied, num_experts):
    model = GPT(5, 12, num_layers=2, num_heads=3, context=9, num_experts=num_experts, tied=tied).double()
    for tokenizer in (Characters("abc€\n"), Bytes()):
        save_model(tmp_path / "model", model, tokenizer)
        back, same = load_model(tmp_path / "model")
        tokens = torch.randint(5, (2, 9))
        assert torch.equal(back(tokens), model(tokens))
        assert (type(same), vars(same)) == (type(tokenizer), vars(tokenizer))
        assert (back.head.logits.weight is back.embed.tokens.weight) == tied and not back.training


def test_a_file_that_is_no_model_is_told(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load_model(tmp_path / "nowhere")
    for content in (b"", b"x" * 100, b"\x02\0\0\0\0\0\0\0{}"):
        (tmp_path / "model").write_bytes(content)
        with pytest.raises(ValueError, match="no model that `save_model` wrote"):
            load_model(tmp_path / "model")
    with pytest.raises(TypeError, match="model is a Linear: a GPT is needed"):
        save_model(tmp_path / "model", torch.nn.Linear(2, 2), Bytes())


def test_a_model_that_is_exported_gives_the_same_logits_in_any_shape(tmp_path):
    model = GPT(11, 16, num_layers=2, num_heads=2, context=13, dropout=0.3).train()
    export_model(model, tmp_path / "model.pt2")
    assert model.training
    program, model = torch.export.load(tmp_path / "model.pt2").module(), model.eval()
    for shape in ((1, 2), (1, 13), (7, 5)):
        tokens = torch.randint(11, shape)
        torch.testing.assert_close(program(tokens), model(tokens), rtol=0, atol=0)
    with pytest.raises(ValueError, match="3 experts per block: one without"):
        export_model(GPT(11, 16, 1, 2, 13, num_experts=3), tmp_path / "model.pt2")


def test_the_tiny_model_learns_and_leaves_torchs_draws_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    model, tokenizer = tiny_model(steps=20, width=16, num_layers=1, context=32)
    assert torch.equal(torch.random.get_rng_state(), before)
    tokens = torch.tensor([tokenizer.encode("The statement is the same as the one")[:32]])
    loss = torch.nn.functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:])
    assert loss.item() < 3.9  # and log 96 = 4.56 is what knows nothing
