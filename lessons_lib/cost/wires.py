"""What one device sends in a step on each axis of a plan, and how long that takes."""

from typing import NamedTuple

from ..memory import RECIPES
from .space import tokens_of, weights_of


class Rings(NamedTuple):
    """`num_rings` turns through a ring of `num_ranks` neighbours, each of which sends all but one part of `size_bytes`.

    An all-gather, a reduce-scatter and an all-to-all are one turn, an all-reduce two. `span`: among how many
    neighbouring devices all ranks of a ring lie.
    """

    num_rings: float
    num_ranks: int
    size_bytes: float
    span: int

    @property
    def sent_bytes(self):
        return self.num_rings * self.size_bytes * (self.num_ranks - 1) / self.num_ranks

    def time_s(self, links, num_devices):
        """2 (N-1)(α + M/(Nβ)) for two turns. One slow wire in any of the rings on `num_devices` slows them all."""
        inside = num_devices <= links.group_size or links.group_size % self.span == 0
        latency_s, bandwidth_Bps = links.between(0, 0 if inside else links.group_size)
        return self.num_rings * (self.num_ranks - 1) * (latency_s + self.size_bytes / self.num_ranks / bandwidth_Bps)


def traffic(model, plan):
    """{axis: `Rings`} of a whole step, for a device in the middle of the pipeline.

    Communication:
        tp: two all-reduces of a micro-batch's activations in each pass of a block. With `sequence` as many bytes in
            all-gathers and reduce-scatters; and two all-gathers more, of what a backward pass needs whole.
        cp: keys and values go round. ep: tokens go to their experts and back.
        dp: gradients are added up, over cp too, those of experts as well. With zero=1 or 2 they are
            reduce-scattered, and parameters gathered; with zero=3 parameters are gathered before each pass.
        pp: activations and their gradients go to the next stage; each device of tp sends its part.
    """
    m, stage, again = plan.num_micro_batches, model.num_layers / plan.pp, plan.recompute == "full"
    stream, inner = tokens_of(model, plan) * model.width * model.itemsize, plan.tp * plan.cp
    keys = 2 * stream * model.kv_width / model.width / plan.tp * plan.cp
    numbers, recipe = weights_of(model, plan), RECIPES[model.recipe]
    gradients, parameters = numbers * recipe["gradients"], numbers * recipe["parameters"]
    turns = 2 if plan.zero == 0 else 1 + parameters / gradients * (2 * m if plan.zero == 3 else 1)
    experts = stream * model.active if model.num_experts else 0
    return {
        "tp": Rings(m * stage * (4 * (2 + again) + 2 * plan.sequence), plan.tp, stream, plan.tp),
        "cp": Rings(m * stage * (3 + (plan.recompute != "none")), plan.cp, keys, inner),
        "ep": Rings(2 * m * stage * (2 + again), plan.ep, experts / plan.tp, inner * plan.ep),
        "dp": Rings(turns, plan.dp * plan.cp, gradients, inner * plan.dp),
        "pp": Rings(2 * plan.v * m * (plan.pp > 1), 2, 2 * stream / plan.tp, plan.num_devices),
    }
