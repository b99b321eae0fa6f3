"""How many tokens a second come out: sequences that share every pass, beside one after the other."""

import time
from functools import partial

import torch

from ..models import GPT
from ..serve import Engine, Settings, generate
from .tokens import Size
from .turns import compared

SERVED = Size(vocabulary=96, width=256, num_layers=4, num_heads=4, context=256, batch=16)


def concurrent_requests(size, num_tokens, repeats):
    """`size.batch` requests at once beside one after the other in the same engine, and beside a loop without a cache.

    What bounds the ratio: a pass of one sequence reads all weights for one row, and pays for every call of an
    operation; a pass of 16 does the same once. Attention alone reads the keys and values of each.
    """
    torch.manual_seed(0)
    model = GPT(size.vocabulary, size.width, size.num_layers, size.num_heads, size.context).eval()
    prompts = torch.randint(size.vocabulary, (size.batch, 16)).tolist()
    settings = [Settings(max_tokens=num_tokens, temperature=0.8, seed=number) for number in range(size.batch)]

    def run(engine):
        for prompt, chosen in zip(prompts, settings, strict=True):
            engine.add(engine.sequence(prompt, chosen))
        while not engine.idle:
            engine.step()

    engines = [Engine(model, max_batch=most) for most in (size.batch, 1)]

    def plain():  # one of them is enough to know it
        generate(model, prompts[0], settings[0])

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sides = [*(partial(run, engine) for engine in engines), plain]
        together_s, alone_s, plain_s = _turns(repeats + 1, *sides)
    finally:
        torch.set_num_threads(threads)
    plain_s = [size.batch * took_s for took_s in plain_s]
    rates = [size.batch * num_tokens / min(times) for times in (together_s, alone_s, plain_s)]
    work = f"{size.batch} requests at once: {rates[0]:,.0f} tokens a second"
    peers = (f"one by one: {rates[1]:,.0f}", alone_s, ">= 5"), (f"no cache: {rates[2]:,.0f}", plain_s, "told")
    return [compared(work, peer, together_s, theirs_s, goal) for peer, theirs_s, goal in peers]


def _turns(repeats, *sides):
    """Times (s) of `sides`, called in turns: a list for each. `take_turns` is for ranks, and here is none."""
    times = [[] for _ in sides]
    for _ in range(repeats):
        for side, took_s in zip(sides, times, strict=True):
            start_s = time.perf_counter()
            side()
            took_s.append(time.perf_counter() - start_s)
    return times
