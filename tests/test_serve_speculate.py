"""Speculative decoding: the tokens are distributed as those of the large model, whatever the small one guesses."""

import itertools
import math

import pytest
import torch
from one_thread import one_thread  # noqa: F401 - it acts by being here
from scipy.stats import chi2

from lessons_lib.models import GPT
from lessons_lib.serve import Settings, Speculator, generate, judge, probabilities, speculate, tokens_per_pass

VOCABULARY, CONTEXT = 3, 12


def model(seed, vocabulary=VOCABULARY, context=CONTEXT, scale=4.0):
    torch.manual_seed(seed)
    gpt = GPT(vocabulary, 8, num_layers=1, num_heads=2, context=context)
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.mul_(scale)
    return gpt.double().eval()


UNLIKELY, IMPOSSIBLE = 1e-5, 1e-12  # p-values: of what is right, in any of some dozens of tests; of what is wrong


def p_value(counts, expected):
    """Of Pearson's test of counts {outcome: number}; outcomes expected less than five times count as one."""
    if set(counts) - {outcome for outcome, number in expected.items() if number}:
        return 0.0  # what cannot come came
    rare = {outcome for outcome, number in expected.items() if number < 5}
    pairs = [(counts.get(outcome, 0), number) for outcome, number in expected.items() if outcome not in rare]
    pairs.append((sum(counts.get(outcome, 0) for outcome in rare), sum(expected[outcome] for outcome in rare)))
    statistic = sum((seen - number) ** 2 / number for seen, number in pairs if number)
    return float(chi2.sf(statistic, max(1, len(pairs) - 1 - (not rare))))


def tables(seed, num_guesses=3, size=4):
    source = torch.Generator().manual_seed(seed)
    p, q = (torch.rand(n, size, generator=source, dtype=torch.float64) ** 3 for n in (num_guesses + 1, num_guesses))
    p[0, 1] = q[1, 2] = 0.0  # a token that one of them never draws
    return p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)


def judged(seed, judge_fn, count=200_000):
    """The least p-value of the tokens that `judge_fn` gives: the first, and each one after guesses that were kept."""
    p, q = tables(seed)
    source = torch.Generator().manual_seed(seed + 100)
    guesses = torch.multinomial(q, count, replacement=True, generator=source).T
    uniform = torch.rand(count, len(p), generator=source, dtype=torch.float64)
    kept, following = judge_fn(p.expand(count, -1, -1), q.expand(count, -1, -1), guesses, uniform)
    values = []
    for place in range(len(p)):
        here = kept >= place
        token = torch.where(kept > place, guesses[:, min(place, len(q) - 1)], following)[here]
        numbers = enumerate(torch.bincount(token, minlength=p.shape[1]).tolist())
        counts = {token: number for token, number in numbers if number}
        values.append(p_value(counts, {token: len(here[here]) * float(p[place, token]) for token in range(p.shape[1])}))
    return min(values)


def always_keep(target, draft, guesses, uniform):
    kept = torch.full((len(guesses),), guesses.shape[1])
    return kept, torch.multinomial(target[0, -1], len(guesses), replacement=True)


def replace_by_p(target, draft, guesses, uniform):
    return judge(target, draft.clone(), guesses, uniform)[0], _draw_from_p(target, draft, guesses, uniform)


def _draw_from_p(target, draft, guesses, uniform):
    kept, _ = judge(target, draft, guesses, uniform)
    return speculate.draw(target[torch.arange(len(kept)), kept], uniform[:, -1].tolist())


def keep_if_likelier(target, draft, guesses, uniform):
    return judge(target, draft, guesses, torch.cat([torch.full_like(uniform[:, :-1], 1.0), uniform[:, -1:]], dim=1))


@pytest.mark.parametrize("seed", range(5))
def test_what_follows_is_distributed_as_the_large_model(seed):
    assert judged(seed, judge) > UNLIKELY


@pytest.mark.parametrize("wrong", [always_keep, replace_by_p, keep_if_likelier])
def test_the_same_test_rejects_wrong_rules(wrong):
    assert max(judged(seed, wrong) for seed in range(5)) < IMPOSSIBLE


def exact(net, prompt, length, settings):
    """{tokens: probability} of all continuations of `length` tokens."""
    with torch.inference_mode():
        found = {}
        for tokens in itertools.product(range(VOCABULARY), repeat=length):
            logits = net(torch.tensor([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1]
            p = probabilities(logits, [settings] * length)
            found[tokens] = float(p.gather(1, torch.tensor(tokens).unsqueeze(1)).prod())
    return found


@pytest.mark.parametrize("rule", ["judge", "always_keep"])
def test_whole_continuations_have_the_probabilities_of_the_large_model(rule, monkeypatch):
    if rule == "always_keep":
        monkeypatch.setattr(speculate, "judge", always_keep)
    net, count, counts = model(1), 800, {}
    speculator = Speculator(net, model(2), num_guesses=2)
    for seed in range(count):
        tokens = tuple(speculator.generate([0, 2], Settings(max_tokens=3, temperature=0.9, seed=seed)).added)
        counts[tokens] = counts.get(tokens, 0) + 1
    expected = {key: count * p for key, p in exact(net, [0, 2], 3, Settings(temperature=0.9)).items()}
    value = p_value(counts, expected)
    assert value > UNLIKELY if rule == "judge" else value < IMPOSSIBLE


@pytest.mark.parametrize("num_guesses", [1, 3, 20])
def test_at_temperature_0_the_tokens_are_those_of_the_large_model(num_guesses):
    net = model(3, vocabulary=9)
    speculator = Speculator(net, model(4, vocabulary=9, context=CONTEXT + 3), num_guesses, block_size=5)
    for length in range(1, CONTEXT):
        settings = Settings(max_tokens=CONTEXT - length, temperature=0)
        prompt = [(7 * i) % 9 for i in range(length)]
        assert speculator.generate(prompt, settings).added == generate(net, prompt, settings).added
    assert 0 <= speculator.num_kept <= speculator.num_guessed


def test_a_draft_that_is_the_model_itself_is_always_right():
    net = model(5)
    speculator = Speculator(net, net, num_guesses=3)
    sequence = speculator.generate([1], Settings(max_tokens=8, temperature=0.8, top_k=2, seed=1))
    assert (sequence.num_added, speculator.num_passes) == (8, 2)
    assert speculator.num_kept == speculator.num_guessed == 6


def test_tokens_per_pass_are_those_of_the_formula():
    p, q = tables(0)
    p, q = p[1:2].expand(5, -1), q[:1].expand(4, -1)  # the same at each place: guesses are kept independently
    share, count = float(torch.minimum(p[0], q[0]).sum()), 100_000
    source = torch.Generator().manual_seed(0)
    guesses = torch.multinomial(q, count, replacement=True, generator=source).T
    uniform = torch.rand(count, 5, generator=source, dtype=torch.float64)
    tokens = judge(p.expand(count, -1, -1), q.expand(count, -1, -1), guesses, uniform)[0].double() + 1
    expected = (1 - share**5) / (1 - share)
    assert tokens_per_pass(share, 4) == pytest.approx(expected)
    assert abs(float(tokens.mean()) - expected) < 5 * float(tokens.std()) / math.sqrt(count)
    assert (tokens_per_pass(1, 4), tokens_per_pass(0, 4), tokens_per_pass(0.5, 0)) == (5, 1, 1)


def test_a_draft_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="draft has a vocabulary of 4 and a context of 12: those of model"):
        Speculator(model(0), model(0, vocabulary=4))
    with pytest.raises(ValueError, match="a context of 11"):
        Speculator(model(0), model(0, context=11))
    with pytest.raises(ValueError, match="kept_share=2: a number from 0 to 1"):
        tokens_per_pass(2, 4)
    with pytest.raises(ValueError, match="max_tokens=3: 1 to 2 are possible after 10 tokens"):
        Speculator(model(0), model(1)).generate([0] * 10, Settings(max_tokens=3))
