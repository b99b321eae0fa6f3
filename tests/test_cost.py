"""The cost model beside published tables, beside schedules, and beside what our own strategies take."""

import pytest

from lessons_lib.cost import Model, Plan, memory_of
from lessons_lib.cost.space import most_kept
from lessons_lib.schedules import count, interleaved, one_f_one_b

GiB = 2**30
# Korthikanti et al. (2022), table 3: layers, width, heads; tp, pp, v, batch, micro-batch.
MEGATRON = {
    "22B": ((48, 6144, 64), (8, 1, 1, 4, 4)),
    "175B": ((96, 12288, 96), (8, 8, 3, 64, 1)),
    "530B": ((105, 20480, 128), (8, 35, 3, 280, 1)),
    "1T": ((128, 25600, 160), (8, 64, 1, 512, 1)),
}
STATES = {"22B": 45.5625, "175B": 45.5625, "530B": 31.640625, "1T": 32.958984375}  # figure 1, GiB per device
ACTIVATIONS = {  # figure 1, GiB per device: tensor parallel, and with sequence parallel and selective recomputation
    "22B": (59.25, 9.5625),
    "175B": (66.84375, 12.3515625),
    "530B": (114.0234375, 23.076171875),
    "1T": (131.25, 26.5625),
}
PERCENT = {  # figure 7, read from the drawing: sequence, selective, both, full
    "22B": (66.84, 49.42, 16.18, 7.64),
    "175B": (62.04, 56.53, 18.49, 8.71),
    "530B": (58.31, 62.04, 20.27, 9.42),
    "1T": (58.31, 62.04, 20.27, 9.42),
}
BOTH = {"sequence": True, "recompute": "selective"}


def megatron(name, **how):
    """The model and the plan of one row of table 3."""
    (num_layers, width, heads), (tp, pp, v, batch, micro_batch) = MEGATRON[name]
    plan = Plan(batch, micro_batch, tp=tp, pp=pp, v=v, **how)
    return Model(num_layers, width, heads, vocabulary=51200, context=2048), plan


@pytest.mark.parametrize("name", MEGATRON)
def test_the_published_bytes_to_every_digit(name):
    for how, published in zip(({}, BOTH), ACTIVATIONS[name], strict=True):
        sizes = memory_of(*megatron(name, **how))
        assert sizes["activations"] == published * GiB
        assert sizes["parameters"] + sizes["gradients"] + sizes["optimizer"] == STATES[name] * GiB


@pytest.mark.parametrize("name", MEGATRON)
def test_the_published_shares_as_far_as_they_can_be_read(name):
    whole = memory_of(*megatron(name))["activations"]
    ways = ({"sequence": True}, {"recompute": "selective"}, BOTH, {"recompute": "full"})
    for how, percent in zip(ways, PERCENT[name], strict=True):
        assert 100 * memory_of(*megatron(name, **how))["activations"] / whole == pytest.approx(percent, abs=0.15)


@pytest.mark.parametrize("pp, v, num_micro_batches", [(1, 1, 4), (4, 1, 8), (4, 1, 2), (4, 2, 8), (3, 3, 6), (2, 4, 2)])
def test_as_many_stashes_as_the_schedule_keeps(pp, v, num_micro_batches):
    program = one_f_one_b(pp, num_micro_batches) if v == 1 else interleaved(pp, num_micro_batches, v)
    assert most_kept(Plan(num_micro_batches, pp=pp, v=v)) == count(program).most_kept[0]
