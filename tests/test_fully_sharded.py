"""Weights, gradients and state in shares: equal to one process at every step, in bytes and memory as promised."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lessons_lib import launch
from lessons_lib.models import GPT
from lessons_lib.parallel import FullySharded, clip_grad_norm_

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
OPTIMISERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def gpt(seed, **options):
    torch.manual_seed(seed)
    return GPT(31, 16, num_layers=3, num_heads=2, context=8, **options).double()


def loss_of(logits, targets):
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch(step, rows=12):
    return torch.randint(31, (2, rows, 8), generator=torch.Generator().manual_seed(step))


class Pair:
    """The same training in one process and on this rank."""

    def __init__(self, comm, make=gpt, optimiser="adam", before=lambda model: None, **options):
        self.comm, self.alone, model = comm, make(0), make(comm.rank)
        before(self.alone)
        before(model)
        self.net = FullySharded(model, comm, **options)
        self.optimizers = [OPTIMISERS[optimiser](each.parameters()) for each in (self.alone, self.net)]

    def share(self, tensor):
        return tensor.tensor_split(self.comm.world_size)[self.comm.rank]

    def backward(self, step, rows=12):
        x, y = batch(step, rows)
        loss = loss_of(self.alone(x), y)
        loss.backward()
        loss_of(self.net(self.share(x)), self.share(y)).backward()

    def step(self, clip=None):
        if clip:
            norm = nn.utils.clip_grad_norm_(self.alone.parameters(), clip)
            torch.testing.assert_close(clip_grad_norm_(self.net.parameters(), clip, self.comm), norm, **TIGHT)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def compare(self):
        ours, alone = self.net.state_dict(), self.alone.state_dict()
        assert ours.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(ours[name], value, **TIGHT, msg=lambda text, name=name: f"{name}: {text}")

    def compare_gradients(self):
        """Of each parameter this rank's piece."""
        for (name, piece), other in zip(self.net.named_parameters(), self.alone.parameters(), strict=True):
            assert (piece.grad is None) == (other.grad is None), name
        norms = [clip_grad_norm_(self.net.parameters(), 1e9, self.comm)]
        norms += [nn.utils.clip_grad_norm_(self.alone.parameters(), 1e9)]
        torch.testing.assert_close(*norms, **TIGHT)


def six_steps(comm, optimiser, **options):
    pair = Pair(
        comm, optimiser=optimiser, before=lambda model: model.blocks[1].attention.requires_grad_(False), **options
    )
    for step in range(6):
        if step % 2:  # every second step adds up two batches, one of them without a reduction
            with pair.net.no_sync() if step > 2 else torch.enable_grad():
                pair.backward(100 + step)
        pair.backward(step, rows=12 if step % 2 else 12 - step)
        pair.compare_gradients()
        pair.step(clip=0.5)
        pair.compare()


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_every_step_equals_one_process(world_size):
    optimiser = ["adam", "sgd"][world_size % 2]
    launch(six_steps, optimiser, reshard_after_forward=world_size != 4, prefetch=world_size != 2, world_size=world_size)


def test_every_step_equals_one_process_over_torch():
    launch(six_steps, "adam", world_size=3, transport="torch")


def moved(comm, **options):
    """What a second step sends, by the ledger and by the docstring's formula."""
    net = FullySharded(gpt(0).float(), comm, **options)
    x, y = batch(0)
    for _ in range(2):
        before = comm.ledger.bytes_sent
        loss_of(net(x), y).backward()
    sent_bytes = comm.ledger.bytes_sent - before
    num_gathers = 2 if options.get("reshard_after_forward", True) else 1
    gathered_bytes = 2 if "dtype" in options else 4
    promised = 0
    for unit in net._passes.units:
        for flat in unit.flats:
            chunk = -(-sum(flat.layout.numels) // comm.world_size)
            promised += num_gathers * chunk * gathered_bytes + (chunk + len(flat.parameters) + 4) * 4
    return sent_bytes, (comm.world_size - 1) * promised


@pytest.mark.parametrize(
    "options", [{}, {"reshard_after_forward": False}, {"dtype": torch.bfloat16}, {"prefetch": True}], ids=str
)
def test_bytes_are_what_the_docstring_says(options):
    for world_size in (2, 3):
        for sent_bytes, promised in launch(moved, **options, world_size=world_size):
            assert sent_bytes == promised
    for sent_bytes, promised in launch(moved, **options, world_size=2, transport="torch"):
        assert sent_bytes == promised
