"""What a rank of a pipeline holds at most is what its program says, in bytes."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lessons_lib import launch
from lessons_lib.memory import Meter
from lessons_lib.models import mlp
from lessons_lib.parallel import PipelineParallel, split_layers
from lessons_lib.schedules import count, gpipe, one_f_one_b, zb_h1

WIDTH, ROWS = 256, 128


def peaks(comm, make, sizes):
    """The peak of a step on this rank, in bytes, for each number of micro-batches."""
    found = []
    for num_micro_batches in sizes:
        stages = split_layers(mlp([2, *[WIDTH] * 7, 10]), comm.world_size)
        net = PipelineParallel(stages, comm, make(comm.world_size, num_micro_batches))
        x = torch.ones(ROWS * num_micro_batches, 2)
        y = torch.zeros(len(x), dtype=torch.int64)
        net.step(x, y, cross_entropy)
        with Meter() as meter:
            net.step(x, y, cross_entropy)
        found.append(meter.peak - x.nbytes - y.nbytes)
    return found


def test_bytes_follow_the_stashes_of_the_program():
    """Beside the stashes lie a few blocks on their way, however many micro-batches there are. Two ranks, over gloo: in
    shared memory the boards of messages count as tensors too."""
    sizes, block, measured = [1, 2, 6, 12], ROWS * WIDTH * 4, {}
    for make in (gpipe, one_f_one_b, zb_h1):
        measured[make] = launch(peaks, make, sizes, world_size=2, transport="torch")
    for rank, (one, two, six, twelve) in enumerate(measured[gpipe]):
        stash = two - one
        assert six == pytest.approx(one + 5 * stash, rel=0.02) and twelve == pytest.approx(one + 11 * stash, rel=0.02)
        for make in (one_f_one_b, zb_h1):
            most = count(make(2, 12)).most_kept[rank]
            first, _, before, last = measured[make][rank]
            assert last <= first + 2 * most * stash
            assert last - before <= 3 * block, "level: what its receiver has taken is let go"
