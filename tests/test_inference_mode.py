"""Every operation on tensors made in `inference_mode`, within that mode and out of it, beside ordinary tensors."""

import sys

import cloudpickle
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401

from lessons_lib import launch
from lessons_lib.schedules import ring

cloudpickle.register_pickle_by_value(sys.modules[__name__])
SIZE = 3
LARGE = 100_000  # elements: more than what is left to torch as a whole


def all_reduce(comm, new):
    x = new(5)
    comm.all_reduce(x)
    return [x]


def large_all_reduce(comm, new):
    x = new(LARGE)
    comm.all_reduce(x)
    return [x]


def all_reduce_later(comm, new):
    x, y, z = new(5), new(LARGE), new(4)
    works = [comm.all_reduce(x, async_op=True), comm.all_reduce(y, "max", async_op=True)]
    works.append(comm.all_reduce(z, async_op=True, is_agreed=True))
    for work in works:
        work.wait()
    return [x, y, z]


def mean_of_columns(comm, new):
    x = new(6).view(2, 3).t()
    comm.all_reduce(x, "mean")
    return [x]


def own_schedule(comm, new):
    x = new(5)
    comm.run(ring(SIZE), x)
    return [x]


def broadcast(comm, new):
    x, y = new(5), new(LARGE)
    comm.broadcast(x, src=1)
    comm.broadcast(y, src=2)
    return [x, y]


def send_and_recv(comm, new):
    x, y = new(5), new(5)
    if comm.rank == 0:
        comm.send(x, 1)
        comm.isend(x, 1).wait()
    if comm.rank == 1:
        comm.recv(x)
        comm.irecv(y, 0).wait()
    return [x, y]


def reduce_scatter_and_all_gather(comm, new):
    x, mine, part, whole = new(6), new(2), new(1), new(3)
    comm.reduce_scatter(mine, x)
    comm.all_gather(whole, part)
    return [mine, whole]


def gather_and_scatter(comm, new):
    x, y, there, here = new(2), new(2), [new(2) for _ in range(SIZE)], [new(2) for _ in range(SIZE)]
    comm.gather(x, here if comm.rank == 0 else None)
    comm.scatter(y, there if comm.rank == 1 else None, src=1)
    return [x, y, *here]


def all_to_all(comm, new):
    x, y, xs, ys = new(3), new(3), [new(2) for _ in range(SIZE)], [new(2) for _ in range(SIZE)]
    comm.all_to_all(y, x)
    comm.all_to_all(ys, xs)
    z, w = new(6), new(SIZE * (comm.rank + 1))
    comm.all_to_all(w, z, [comm.rank + 1] * SIZE, [1, 2, 3])
    return [y, *ys, w]


def in_buffer(comm, new):
    x = comm.buffer(5)
    x.add_(new(5))
    comm.all_reduce(x)
    return [x]


OPERATIONS = [
    all_reduce,
    large_all_reduce,
    all_reduce_later,
    mean_of_columns,
    own_schedule,
    broadcast,
    send_and_recv,
    reduce_scatter_and_all_gather,
    gather_and_scatter,
    all_to_all,
    in_buffer,
]


def in_all_modes(comm):
    """Which operations, in which mix of modes, raise or give something else than on ordinary tensors."""
    wrong = []

    def results(operation, is_made_inside, is_called_inside):
        drawn = torch.Generator().manual_seed(comm.rank)

        def new(numel):
            with torch.inference_mode(is_made_inside):
                return torch.randint(0, 9, (numel,), generator=drawn).float()

        with torch.inference_mode(is_called_inside):
            return operation(comm, new)

    for operation in OPERATIONS:
        expected = results(operation, False, False)
        for made, called in [(True, False), (False, True), (True, True), (False, False)]:
            where = f"{operation.__name__}, made inside: {made}, called inside: {called}"
            try:
                outputs = results(operation, made, called)
            except RuntimeError as error:
                wrong.append(f"{where}: {error}")
                continue
            if not all(map(torch.equal, outputs, expected)):
                wrong.append(f"{where}: another value")
    return wrong


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
@pytest.mark.parametrize("algorithm", ["auto", "ring", "torch"])
def test_tensors_made_in_inference_mode_are_tensors(transport, algorithm):
    if (transport, algorithm) == ("shared_memory", "torch"):
        pytest.skip("shared memory has no collectives of torch")
    results = launch(in_all_modes, world_size=SIZE, transport=transport, algorithm=algorithm, timeout_s=30)
    assert results == [[]] * SIZE
