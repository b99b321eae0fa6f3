"""Published runs that the cost model is held against, and the cluster that they ran on (lesson 22).

Source: Korthikanti et al. (2022), tables 3 and 5, figure 1; the data sheet of the A100.
"""

from ..schedules import Links
from .shapes import Cluster, Model, Plan

GiB = 2**30
A100 = Cluster(3072, 312e12, 80e9, 2039e9, Links.two_level(8, Links(2e-6, 300e9), Links(5e-6, 25e9)))
# Layers, width, heads; tp, pp, v, batch, micro-batch.
MEGATRON = {
    "22B": ((48, 6144, 64), (8, 1, 1, 4, 4)),
    "175B": ((96, 12288, 96), (8, 8, 3, 64, 1)),
    "530B": ((105, 20480, 128), (8, 35, 3, 280, 1)),
    "1T": ((128, 25600, 160), (8, 64, 1, 512, 1)),
}
# Activations, GiB per device: tensor parallel alone, and with sequence parallelism and selective recomputation.
ACTIVATIONS_GIB = {
    "22B": (59.25, 9.5625),
    "175B": (66.84375, 12.3515625),
    "530B": (114.0234375, 23.076171875),
    "1T": (131.25, 26.5625),
}
# Seconds of a step: full recomputation, and with sequence parallelism and selective recomputation.
SECONDS = {"22B": (1.42, 1.10), "175B": (18.13, 13.75), "530B": (49.05, 37.83), "1T": (94.42, 71.49)}
FULL = {"recompute": "full"}
BOTH = {"sequence": True, "recompute": "selective"}


def megatron(name, **how):
    """(model, plan) of a row of table 3. how: `sequence`, `recompute` and the like, as for `Plan`."""
    (num_layers, width, heads), (tp, pp, v, batch, micro_batch) = MEGATRON[name]
    plan = Plan(batch, micro_batch, tp=tp, pp=pp, v=v, **how)
    return Model(num_layers, width, heads, vocabulary=51200, context=2048), plan


def measured(*names):
    """(model, plan, seconds) of table 5 for `fit`: each model in both ways."""
    ways = [(name, *way) for name in names for way in zip((FULL, BOTH), SECONDS[name], strict=True)]
    return [(*megatron(name, **how), took_s) for name, how, took_s in ways]
