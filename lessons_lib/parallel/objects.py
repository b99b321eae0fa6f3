"""Python objects that ranks tell each other: rarely, as in state dicts, and never in a training step."""

import cloudpickle
import torch


def share_objects(comm, value):
    """Everybody's `value`, in order of rank. All ranks call it together; what they give can be pickled.

    Communication: two all-gathers, of one number and of N times the longest pickle.
    """
    data = _as_tensor(value)
    sizes = torch.zeros(comm.world_size, dtype=torch.int64)
    comm.all_gather(sizes, torch.tensor([len(data)]))
    padded = torch.zeros(int(sizes.max()), dtype=torch.uint8)
    padded[: len(data)] = data
    everyone = torch.zeros(comm.world_size, len(padded), dtype=torch.uint8)
    comm.all_gather(everyone, padded)
    return [_as_object(row[:size]) for row, size in zip(everyone, sizes.tolist(), strict=True)]


def send_object(comm, value, dst):
    """Give `value` to rank `dst`, which calls `recv_object`.

    Communication: two messages, of one number and of the pickle.
    """
    data = _as_tensor(value)
    comm.send(torch.tensor([len(data)]), dst)
    comm.send(data, dst)


def recv_object(comm, src=None):
    """What rank `src`, or whoever comes first, gives by `send_object`, and the rank that has given it."""
    size = torch.zeros(1, dtype=torch.int64)
    src = comm.recv(size, src)
    data = torch.zeros(int(size), dtype=torch.uint8)
    comm.recv(data, src)
    return _as_object(data), src


def _as_tensor(value):
    # Not pickle: a class or a function of a notebook is known to no other process by its name.
    return torch.frombuffer(bytearray(cloudpickle.dumps(value)), dtype=torch.uint8)


def _as_object(data):
    return cloudpickle.loads(data.numpy().tobytes())
