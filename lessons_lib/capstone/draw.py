"""A set-up from a seed: how much memory and time there is follows from what plans are predicted to need (lesson 28)."""

import random
from dataclasses import replace

from ..cost import Cluster, Model, Plan, predict
from ..cost.clock import model_flops
from ..schedules import Links
from .estimate import run_time_s
from .plans import MEMORY_MARGIN, runnable
from .setup import Setup

VOCABULARY = 96  # line ends and the printable characters of ASCII
FAST = Links(latency_s=1e-4, bandwidth_Bps=1e9)
UNLIMITED, NUM_STEPS = 1e18, 16


def draw(seed, num_devices=4):
    """Draw the `Setup` of a seed: one that some plans can meet, and others mostly cannot.

    Args:
        seed: any whole number.
        num_devices: of the cluster; divisible by 2.
    """
    drawn = random.Random(f"capstone {seed}")
    shapes = {"num_layers": drawn.choice((4, 8)), "width": drawn.choice((32, 64)), "context": drawn.choice((32, 64))}
    model = Model(
        **shapes, heads=4, vocabulary=VOCABULARY, fused=True, dropout=False, itemsize=4, recipe="float32 adam"
    )
    batch, alone_s = drawn.choice((8, 16)), drawn.choice((0.8, 1.2))
    flops = model_flops(model, Plan(batch, batch)) / alone_s
    # To add up all gradients takes such a share of the time in which all devices together compute a step.
    share, latency_s = drawn.choice((0.1, 0.5, 2.0)), drawn.choice((5e-4, 2e-3, 5e-3))
    slow = Links(latency_s, 1.5 * 4 * model.weights / (share * alone_s / num_devices))
    links = drawn.choice((slow, Links.two_level(num_devices // 2, FAST, slow)))
    cluster = Cluster(num_devices, flops, UNLIMITED, 1e12, links, half_flops=drawn.choice((5e4, 2e5)))
    failing = {"mean_between": drawn.choice((8, 16, 32)), "save_s": drawn.choice((0.2, 0.5)), "restart_s": 1.0}
    setup = Setup(seed, model, cluster, batch, num_steps=NUM_STEPS, **failing)
    return _narrowed(setup, drawn.choice((0.5, 0.8, 1.0)), drawn.choice((1.6, 2.2, 3.5)))


def _narrowed(setup, share, patience):
    """Leave memory for a share of all plans, and so many times the time that the fastest of them needs."""
    ran = [predict(setup.model, setup.cluster, plan) for plan in runnable(setup)]
    sizes = sorted(each.memory_bytes for each in ran)
    memory_bytes = MEMORY_MARGIN * sizes[round(share * (len(sizes) - 1))]
    fastest_s = min(each.time_s for each in ran if MEMORY_MARGIN * each.memory_bytes <= memory_bytes)
    cluster = replace(setup.cluster, memory_bytes=memory_bytes)
    return replace(setup, cluster=cluster, deadline_s=patience * run_time_s(setup, fastest_s))
