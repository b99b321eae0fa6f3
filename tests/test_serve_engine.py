"""The engine: whatever runs beside a sequence, it gets the tokens that it would get alone, and no block is lost."""

import itertools
import random

import pytest
import torch
from one_thread import one_thread  # noqa: F401 - it acts by being here

from lessons_lib.models import GPT
from lessons_lib.serve import BlockPool, Chunk, Engine, OutOfBlocks, PagedGPT, Settings, generate

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


def test_a_block_that_is_not_taken_cannot_be_given_back():
    pool = BlockPool(4, 2)
    blocks = pool.take(3)
    for wrong in ([blocks[0], blocks[0]], [*blocks, pool.num_blocks - 1 if 3 not in blocks else 0][-1:] * 2, [99]):
        with pytest.raises(ValueError, match="is not taken, or is named twice"):
            pool.give_back(wrong)
    pool.give_back(blocks)
    assert (pool.num_free, pool.needed(0), pool.needed(1), pool.needed(2), pool.needed(3)) == (4, 0, 1, 1, 2)


@pytest.mark.parametrize("num_blocks", [8, 30])
def test_no_block_is_lost_when_sequences_are_cancelled_at_any_time(num_blocks):
    engine, source, alive = Engine(model(), block_size=3, num_blocks=num_blocks, max_batch=6, step_tokens=7), None, []
    source = random.Random(num_blocks)
    for prompt, settings in requests(60, seed=1):
        alive.append(engine.sequence(prompt, settings))
        engine.add(alive[-1])
        engine.step()
        if source.random() < 0.5:
            engine.cancel(source.choice(alive))
        held = [block for sequence in engine.running for block in sequence.table]
        assert len(held) == len(set(held)) == num_blocks - engine.pool.num_free
        assert not any(sequence.table for sequence in alive if sequence.finish_reason)
    while not engine.idle:
        engine.step()
    assert engine.pool.num_free == num_blocks
    assert {sequence.finish_reason for sequence in alive} == {"length", "cancelled"}


def test_what_can_never_be_finished_is_refused():
    engine = Engine(model(), block_size=4, num_blocks=3)
    for prompt, settings, message in [
        ([], {}, "prompt is empty: at least one token"),
        ([VOCABULARY], {}, "prompt has token 11: 0 to 10 are possible"),
        ([0] * 20, {"max_tokens": 5}, "max_tokens=5: with 20 tokens of the prompt that is 25, and 24 are possible"),
        ([0] * 8, {"max_tokens": 5}, "max_tokens=5: 13 positions do not fit into 3 blocks of 4"),
        ([0], {"max_tokens": 1, "stop": ("a",)}, "an engine with `decode` is needed"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.sequence(prompt, Settings(**settings))
    with pytest.raises(ValueError, match="step_tokens=3: at least max_batch=16"):
        Engine(model(), step_tokens=3)


def test_a_sequence_without_a_token_to_add_takes_no_block():
    engine = Engine(model())
    sequence = engine.sequence([1, 2], Settings(max_tokens=0))
    engine.add(sequence)
    assert (sequence.finish_reason, sequence.added, engine.idle) == ("length", [], True)


def test_a_sequence_that_lost_its_blocks_goes_on_where_it_was():
    net = model()
    engine = Engine(net, block_size=2, num_blocks=9, max_batch=3)
    settings = [Settings(max_tokens=14, seed=seed) for seed in range(3)]
    sequences = [engine.sequence([seed, 1], settings[seed]) for seed in range(3)]
    pieces = []
    for sequence in sequences:
        engine.add(sequence)
    while not engine.idle:
        engine.step()
        pieces.append([sequence.num_added for sequence in sequences])
    assert engine.num_preempted >= 2
    assert all(a <= b for before, after in itertools.pairwise(pieces) for a, b in zip(before, after, strict=True))
    assert [s.added for s in sequences] == [generate(net, [i, 1], settings[i]).added for i in range(3)]
    assert pieces[13][0] == 14  # the one that came first never stood still


def test_who_lost_its_blocks_is_the_first_to_get_some_again():
    engine = Engine(model(), block_size=2, num_blocks=9, max_batch=3)
    sequences = [engine.sequence([seed, 1], Settings(max_tokens=14, seed=seed)) for seed in range(4)]
    for sequence in sequences:
        engine.add(sequence)
    while not engine.num_preempted:
        engine.step()
    assert list(engine.waiting) == sequences[2:]


def test_a_long_prompt_takes_several_steps_and_holds_up_nobody():
    engine = Engine(model(), step_tokens=5, max_batch=2)
    long, short = engine.sequence([1] * 19, Settings(max_tokens=1)), engine.sequence([2], Settings(max_tokens=4))
    engine.add(long)
    engine.add(short)
    added = []
    while not engine.idle:
        engine.step()
        added.append((long.num_added, short.num_added))
    assert added == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 4)]  # 4 new positions of the prompt beside 1 of the other


def test_what_lies_in_the_blocks_of_others_has_no_effect():
    paged = PagedGPT(model(), num_blocks=8, block_size=2)
    blocks = paged.pool.take(8)
    paged.store.keys[:, blocks[0]] = paged.store.values[:, blocks[0]] = float("nan")
    chunks = [Chunk([3], 0, blocks[1:2]), Chunk([1, 2, 3, 4, 5], 0, blocks[2:5]), Chunk([2], 0, blocks[5:6])]
    beside = paged.logits(chunks)
    paged.logits([Chunk([1, 2, 3, 4], 0, blocks[6:8])])
    mixed = paged.logits([Chunk([5], 4, blocks[2:5]), Chunk([2], 0, blocks[1:2])])  # one long, one short table
    assert mixed.isfinite().all()
    torch.testing.assert_close(mixed[0], beside[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixed[1], beside[2], rtol=1e-9, atol=1e-9)


def test_memory_is_what_the_formula_says():
    store = Engine(model(), num_blocks=5, block_size=4).paged.store
    assert (
        store.size_bytes == 2 * 2 * (5 + 1) * 4 * 16 * 8
    )  # keys and values, layers, blocks, positions, width, float64


def test_logits_that_are_no_numbers_are_told():
    net = model()
    net.head.norm.bias.data.fill_(float("nan"))
    engine = Engine(net)
    engine.add(engine.sequence([1], Settings(temperature=0)))
    with pytest.raises(FloatingPointError, match="logits of row 0"):
        engine.step()
