"""The engine: whatever runs beside a sequence, it gets the tokens that it would get alone, and no block is lost."""

import random

import pytest
import torch

from lessons_lib.models import GPT
from lessons_lib.serve import BlockPool, Bytes, Engine, OutOfBlocks, Settings, generate

VOCABULARY, CONTEXT = 11, 24


def model(num_experts=0, seed=0, **more):
    torch.manual_seed(seed)
    gpt = GPT(VOCABULARY, 16, num_layers=2, num_heads=2, context=CONTEXT, num_experts=num_experts, **more)
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.mul_(3.0)  # else all tokens are about as likely, and position and prompt hardly matter
    return gpt.double().eval()


def requests(count, seed=0):
    """(prompt, settings) of every kind: lengths from 1 to the context, greedy and drawn."""
    source = random.Random(seed)
    made = []
    for number in range(count):
        length = source.randint(1, CONTEXT - 1)
        settings = Settings(
            max_tokens=source.randint(1, CONTEXT - length),
            temperature=source.choice([0, 0.5, 1.0, 2.0]),
            top_k=source.choice([0, 1, 3]),
            top_p=source.choice([1.0, 0.7]),
            seed=number,
        )
        made.append(([source.randrange(VOCABULARY) for _ in range(length)], settings))
    return made


def run(engine, made, joins_per_step=100):
    sequences = [engine.sequence(*request) for request in made]
    todo = list(sequences)
    while todo or not engine.idle:
        for sequence in todo[:joins_per_step]:
            engine.add(sequence)
        del todo[:joins_per_step]
        engine.step()
    return sequences


@pytest.mark.parametrize("num_experts", [0, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        {"max_batch": 1},
        {"max_batch": 16, "block_size": 1},
        {"max_batch": 5, "block_size": 7, "step_tokens": 6},
        {"max_batch": 16, "block_size": 4, "num_blocks": 9},
    ],
    ids=str,
)
def test_tokens_equal_those_of_a_loop_that_computes_all_anew(num_experts, sizes):
    net, made = model(num_experts), requests(40)
    engine = Engine(net, **sizes)
    for sequence, (prompt, settings) in zip(run(engine, made, joins_per_step=2), made, strict=True):
        assert sequence.added == generate(net, prompt, settings).added
        assert (sequence.finish_reason, sequence.num_added) == ("length", settings.max_tokens)
    assert engine.pool.num_free == engine.pool.num_blocks
    assert engine.num_preempted > 0 or "num_blocks" not in sizes


def test_the_model_that_was_given_stays_as_it_is():
    net = model(dropout=0.5).train()
    attend = net.blocks[0].attention.attend
    a, b = (run(Engine(net), requests(3)) for _ in range(2))
    assert [s.added for s in a] == [s.added for s in b]  # dropout does not act
    assert net.training and net.blocks[0].attention.attend is attend
    net.embed.tokens.weight.data.zero_()
    assert Engine(net).paged.model.embed.tokens.weight is net.embed.tokens.weight


def test_blocks_are_never_given_out_twice_and_never_lost():
    pool, source, held = BlockPool(13, 4), random.Random(0), []
    for _ in range(2_000):
        if held and source.random() < 0.5:
            pool.give_back(held.pop(source.randrange(len(held))))
        else:
            count = source.randint(0, 4)
            if count > pool.num_free:
                with pytest.raises(OutOfBlocks, match=f"{count} blocks were asked for, and {pool.num_free} are free"):
                    pool.take(count)
            else:
                held.append(pool.take(count))
        everything = [block for blocks in held for block in blocks]
        assert len(set(everything)) == len(everything) == pool.num_blocks - pool.num_free


def test_bytes_of_one_character_may_come_in_several_tokens():
    text = "aé€😀b"
    assert Bytes().decode(Bytes().encode(text)) == text
