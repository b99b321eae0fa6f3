"""The memory of buffers: it goes when nobody looks at it any more, and never before."""

import ctypes
import gc
import os
import sys

import cloudpickle
import psutil
import pytest
import torch

from lessons_lib import launch
from lessons_lib.parallel import DataParallel

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ("shared_memory", "torch")
MB = 1_000_000


def num_maps():
    """How many blocks of shared memory this process sees."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:lessons_lib" in line for line in maps)


def resident_bytes():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but scattered over the heap would look like memory in use
    return psutil.Process().memory_info().rss


def use_and_drop_buffers(comm):
    buffer = comm.buffer(10 * MB // 4)
    comm.all_reduce(buffer.fill_(comm.rank + 1))
    assert buffer.unique().tolist() == [3]


def wrap_and_drop_a_model(comm):
    net = DataParallel(torch.nn.Linear(1600, 1562), comm)
    net(torch.ones(2, 1600)).sum().backward()


def memory_before_and_after(comm, make_and_drop, times, in_group):
    comm = comm.split(0) if in_group else comm
    kept = comm.buffer(1003)
    for _ in range(3):  # working memory, which stays, and what the allocator keeps for the next time
        make_and_drop(comm)
    comm.all_reduce(torch.ones(4 * MB))
    before = num_maps(), resident_bytes()
    for _ in range(times):
        make_and_drop(comm)
        comm.all_reduce(kept.fill_(comm.rank))
        assert kept.unique().tolist() == [1]
    return before, (num_maps(), resident_bytes())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's table of memory")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("in_group", [False, True])
@pytest.mark.parametrize("make_and_drop, times", [(use_and_drop_buffers, 50), (wrap_and_drop_a_model, 20)])
def test_memory_of_dropped_buffers_is_given_back(transport, in_group, make_and_drop, times):
    results = launch(memory_before_and_after, make_and_drop, times, in_group, world_size=2, transport=transport)
    for (maps_before, bytes_before), (maps_after, bytes_after) in results:
        assert maps_after == maps_before
        assert bytes_after < bytes_before + 2 * 10 * MB


def look_at_a_part(comm):
    buffer = comm.buffer(1003)
    comm.all_reduce(buffer.fill_(1))
    part = buffer[3:6].numpy()
    del buffer
    gc.collect()
    comm.close()
    return part.tolist()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_whoever_looks_at_a_part_keeps_all_of_it(transport):
    assert launch(look_at_a_part, world_size=2, transport=transport) == [[2.0] * 3] * 2


def drop_earlier_than_others(comm):
    """Rank 0 drops its buffer, the others go on with theirs; then these drop too, and a new one is made."""
    buffer = comm.buffer(12)
    x = torch.zeros(12) if comm.rank == 0 else buffer
    del buffer
    results = []
    for _ in range(3):  # more than once: nothing of the call before may be left
        x.fill_(comm.rank + 1)
        comm.all_reduce(x)
        results.append(x.tolist())
        x.copy_(torch.arange(12) + 100 * comm.rank)
        output = torch.zeros(4)
        comm.reduce_scatter(output, x)
        results.append(output.tolist())
        gathered = torch.zeros(36)
        comm.all_gather(gathered, x)
        results.append(gathered.tolist())
        swapped = torch.zeros(12)
        comm.all_to_all(swapped, x)
        results.append(swapped.tolist())
    del x
    new = comm.buffer(12)
    comm.all_reduce(new.fill_(1))
    return [*results, new.tolist()]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_rank_may_drop_a_buffer_before_the_others(transport):
    inputs = [torch.arange(12.0) + 100 * rank for rank in range(3)]
    for rank, result in enumerate(launch(drop_earlier_than_others, world_size=3, transport=transport)):
        expected = [
            [6.0] * 12,
            sum(inputs)[4 * rank : 4 * rank + 4].tolist(),
            torch.cat(inputs).tolist(),
            torch.cat([x[4 * rank : 4 * rank + 4] for x in inputs]).tolist(),
        ]
        assert result == [*expected * 3, [3.0] * 12]


def use_an_empty_one(comm):
    buffer = comm.buffer(0)
    comm.all_reduce(buffer)
    return tuple(buffer.shape)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_buffer_may_be_empty(transport):
    assert launch(use_an_empty_one, world_size=2, transport=transport) == [(0,)] * 2


def named_maps():
    """The shared memory with a name that this process sees, and how large each piece is."""
    maps = psutil.Process().memory_maps(grouped=False)
    return {line.path: line.size for line in maps if line.path.startswith("/dev/shm/psm_")}


def use_named_memory(comm):
    def refuse(name):
        raise PermissionError("memfd_create")

    os.memfd_create = refuse
    for comm_or_group in (comm, comm.split(0)):
        kept = comm_or_group.buffer(1003)
        comm_or_group.all_reduce(kept.fill_(1))
        assert kept.unique().tolist() == [2]
        use_and_drop_buffers(comm_or_group)
    comm.barrier()
    return {path: (size, os.path.exists(path)) for path, size in named_maps().items()}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's table of memory")
def test_named_memory_goes_too_and_leaves_no_name():
    for maps in launch(use_named_memory, world_size=2):
        assert maps
        for path, (size_bytes, has_name) in maps.items():
            assert not has_name, path
            assert size_bytes < 10 * MB, path
