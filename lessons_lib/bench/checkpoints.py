"""How long training stands still for a checkpoint that is written beside it."""

import tempfile

import torch

from ..checkpoint import Checkpoints
from ..launch import launch
from ..models import GPT
from ..parallel import DataParallel
from .turns import compared, slowest, take_turns


def stall(world_size, repeats):
    """Of a GPT of ten million parameters and its Adam: `save(wait=False)` beside `save()`, which writes all of it."""

    def fn(comm, folder):
        torch.set_num_threads(1)
        net = DataParallel(GPT(256, 384, num_layers=6, num_heads=6, context=64), comm)
        optimizer = torch.optim.Adam(net.parameters())
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        checkpoints, state = Checkpoints(folder, comm, keep=1), {"net": net, "optimizer": optimizer}

        def beside():
            checkpoints.save(1, state, wait=False)

        def blocking():  # `save` waits for what is under way before it begins
            checkpoints.save(2, state)

        return take_turns(comm, repeats, beside, checkpoints.wait, blocking)

    with tempfile.TemporaryDirectory() as folder:
        beside_s, _, blocking_s = slowest(launch(fn, folder, world_size=world_size))
    work = f"stall of a checkpoint of a GPT, {world_size} ranks"
    return [compared(work, "a save that waits", beside_s, blocking_s, "<= 0.1", inverse=True)]
