"""What it takes to give every rank its part: the exchange under all-to-all attention and experts."""

import torch
import torch.distributed as dist

from ..launch import launch
from .turns import GLOO, MB, compared, in_words, shared_memory, slowest, take_turns


def all_to_all(world_size, size_bytes, repeats):
    """Each rank has `size_bytes` and keeps its own part of it; ours reads them from a buffer of the communicator.

    What bounds ours: each byte is copied once, as a memcpy of the same size does, and a small call is Python's time.
    """

    def fn(comm):
        inner, numel = shared_memory(comm), size_bytes // 4 // world_size * world_size
        shared, own, target = inner.buffer(numel), torch.zeros(numel), torch.zeros(numel)
        sides = (
            lambda: inner.all_to_all(target, shared),
            lambda: dist.all_to_all_single(target, own),
            lambda: target.copy_(own),
        )
        return take_turns(inner, repeats, *sides, calls=max(1, min(50, 16 * MB // size_bytes)))

    ours_s, gloo_s, copy_s = slowest(launch(fn, world_size=world_size, transport="torch"))
    goal = ">= 5" if size_bytes <= MB else ">= 3"
    work = f"all-to-all, {in_words(size_bytes)}, {world_size} ranks"
    rows = [compared(work, GLOO, ours_s, gloo_s, goal)]
    if size_bytes > MB:
        rows.append(compared(work, "one memcpy by each rank", ours_s, copy_s, "told", inverse=True))
    return rows
