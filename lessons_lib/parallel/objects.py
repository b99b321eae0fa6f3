"""Python objects that ranks tell each other: rarely, as in state dicts, and never in a training step."""

import pickle

import torch


def share_objects(comm, value):
    """Everybody's `value`, in order of rank. All ranks call it together; what they give can be pickled.

    Communication: two all-gathers, of one number and of N times the longest pickle.
    """
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    sizes = torch.zeros(comm.world_size, dtype=torch.int64)
    comm.all_gather(sizes, torch.tensor([len(data)]))
    padded = torch.zeros(int(sizes.max()), dtype=torch.uint8)
    padded[: len(data)] = data
    everyone = torch.zeros(comm.world_size, len(padded), dtype=torch.uint8)
    comm.all_gather(everyone, padded)
    return [pickle.loads(bytes(row[:size].numpy())) for row, size in zip(everyone, sizes.tolist(), strict=True)]
