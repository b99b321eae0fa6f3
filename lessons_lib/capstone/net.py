"""A GPT cut as a plan says, and the batches that it learns from (lesson 28)."""

import torch
from torch.nn import functional as F

from ..comm import Mesh
from ..data import help_pages
from ..models import GPT
from ..parallel import (
    PipelineParallel,
    average_gradients,
    full_state_dict,
    gpt_plan,
    parallel_cross_entropy,
    parallelize,
    split_layers,
)
from ..schedules import one_f_one_b

LEARNING_RATE = 1e-2


def whole(model, seed):
    """The `models.GPT` of a `cost.Model`, as it is before the first step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(model.vocabulary, model.width, model.num_layers, model.heads, model.context)


def optimizer_of(parameters):
    return torch.optim.Adam(parameters, lr=LEARNING_RATE)


class Net:
    """What one rank holds: its stage, cut along tp, and the optimiser of that.

    Args:
        comm: `Communicator` of `plan.num_devices` ranks.
        setup, plan: a `Setup` and a plan that `can_run` knows.
    """

    def __init__(self, comm, setup, plan):
        self.setup, self.plan, model = setup, plan, whole(setup.model, setup.seed)
        self.mesh = Mesh(comm, pp=plan.pp, dp=plan.dp, tp=plan.tp)
        if plan.tp > 1:
            parallelize(model, self.mesh["tp"], gpt_plan(model))
        program = one_f_one_b(plan.pp, plan.num_micro_batches)
        lengths = [len(model.blocks) // plan.pp] * plan.pp
        lengths[0] += 1  # the tables
        lengths[-1] += 1  # the logits
        self.pipeline = PipelineParallel(split_layers(model.stages(), plan.pp, lengths), self.mesh["pp"], program)
        self.optimizer = optimizer_of(self.pipeline.parameters())

    def step(self, number):
        """Train on batch `number`; its mean loss over this rank's share."""
        x, y = (part.chunk(self.plan.dp)[self.mesh.coordinates["dp"]] for part in batch(self.setup, number))
        self.optimizer.zero_grad()
        loss = self.pipeline.step(x, y, self._loss)
        if self.plan.dp > 1:
            average_gradients(self.pipeline.parameters(), self.mesh, "dp")
        self.optimizer.step()
        return loss.item()

    def _loss(self, logits, targets):
        if self.plan.tp > 1:
            return parallel_cross_entropy(logits, targets, self.mesh["tp"], self.setup.model.vocabulary)
        return loss_of(logits, targets)

    def weights(self):
        """{name: tensor} of this rank's layers, whole, named by their numbers in `GPT.stages()`."""
        return {name.partition(".")[2]: value for name, value in full_state_dict(self.pipeline.stages).items()}


def loss_of(logits, targets):
    """The mean loss per token in nats; logits (B, T, V), targets (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch(setup, number):
    """(x, y), each (B, T): pieces of Python's help, and the same one token on; the same whenever they are asked for."""
    generator = torch.Generator().manual_seed(setup.seed * 1_000_003 + number)
    return pieces(learned(), setup.batch, setup.model.context, generator)


def learned():
    """The tokens that are learned from: all but the last tenth."""
    tokens, _ = help_pages()
    return tokens[: len(tokens) * 9 // 10]


def held_out():
    """The last tenth of the tokens."""
    tokens, _ = help_pages()
    return tokens[len(tokens) * 9 // 10 :]


def pieces(tokens, number, context, generator):
    """`number` pieces (x, y) of `context` tokens, from places that are drawn; y is one token on."""
    starts = torch.randint(len(tokens) - context, (number, 1), generator=generator)
    cut = tokens[starts + torch.arange(context + 1)]
    return cut[:, :-1], cut[:, 1:]
