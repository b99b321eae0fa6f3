"""What test_two_machines.py starts by torchrun on two machines, in words: python two_machines_job.py KIND ..."""

import os
import signal
import sys

import torch
from torch import nn

from lessons_lib import Mesh, connect
from lessons_lib.checkpoint import Checkpoints
from lessons_lib.models import GPT
from lessons_lib.parallel import DataParallel, PipelineParallel, average_gradients, split_layers
from lessons_lib.schedules import hierarchical, one_f_one_b, ring

NUM_STEPS, VOCABULARY, CONTEXT = 5, 13, 6
SCHEDULES = {"ring": ring(4), "hierarchical": hierarchical(4, 2)}


def say(words):
    """Print a line whole: where the ranks of a machine share its output, a line and its end may else be parted."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def gpt():
    torch.manual_seed(0)
    return GPT(VOCABULARY, 8, num_layers=4, num_heads=2, context=CONTEXT, tied=False).double()


def data(step):
    """Sequences of a batch of 8, and what they should give."""
    return torch.randint(VOCABULARY, (2, 8, CONTEXT), generator=torch.Generator().manual_seed(step))


def loss_of(logits, targets):
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def all_reduce(schedule, numel):
    with connect(algorithm=SCHEDULES[schedule]) as comm:
        total = torch.full((int(numel),), comm.rank + 1.0)
        comm.all_reduce(total)
        assert torch.equal(total, torch.full_like(total, 10.0))
        say(f"rank {comm.rank} sent {comm.ledger.bytes_sent} bytes")


def train(folder, dies):
    """A pipeline whose stages are on different machines, with two copies; rank `dies` ends before step 3, once."""
    with connect() as comm:
        mesh = Mesh(comm, pp=2, dp=2)
        net = PipelineParallel(split_layers(gpt().stages(), 2), mesh["pp"], one_f_one_b(2, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        state, checkpoints = {"net": net, "optimizer": optimizer}, Checkpoints(folder, comm)
        first = checkpoints.load(state) or 0
        for step in range(first, NUM_STEPS):
            if dies == str(comm.rank) and step == 3 and comm.restart_count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            x, y = (part.chunk(2)[mesh.coordinates["dp"]] for part in data(step))
            optimizer.zero_grad()
            net.step(x, y, loss_of)
            average_gradients(net.parameters(), mesh, "dp")
            optimizer.step()
            checkpoints.save(step + 1, state)
        weights = {name: p for stage in net.stages.values() for name, p in stage.named_parameters()}
        torch.save(weights, f"{folder}/end-{comm.rank}.pt")
        say(f"rank {comm.rank} began at {first}, start {comm.restart_count}")


def train_copies(folder):
    """Copies on as many ranks as there are; in the first start, the last machine's stop at step 3."""
    with connect(timeout_s=20) as comm:
        net = DataParallel(gpt(), comm)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        state, checkpoints = {"net": net, "optimizer": optimizer}, Checkpoints(folder, comm)
        first = checkpoints.load(state) or 0
        for step in range(first, NUM_STEPS):
            if step == 3 and comm.restart_count == 0 and comm.rank >= 2:
                say("step 3")
                signal.pause()
            x, y = (part.chunk(comm.world_size)[comm.rank] for part in data(step))
            optimizer.zero_grad()
            loss_of(net(x), y).backward()
            optimizer.step()
            checkpoints.save(step + 1, state)
        torch.save(net.module.state_dict(), f"{folder}/end-{comm.rank}.pt")
        say(f"rank {comm.rank} of {comm.world_size} began at {first}")


if __name__ == "__main__":
    {"all_reduce": all_reduce, "train": train, "train_copies": train_copies}[sys.argv[1]](*sys.argv[2:])
