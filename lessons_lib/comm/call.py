"""One operation of the communicator, in the words in which ranks agree on it."""

import zlib
from functools import lru_cache


class Call:
    """What a rank says to the others before they do something together. It prints itself as a call in Python.

    Two ranks are in the same call if both print alike, so whatever they must agree on belongs in here:
    `str(Call("all_reduce", tensor, "sum", "ring"))` is "all_reduce(float32, shape (3,), sum, ring)".

    Args:
        name: of the operation.
        tensor: what it works on, or None. Its dtype and shape are part of the call, its values are not.
        details: whatever else the ranks must agree on, such as the root of a broadcast.
    """

    def __init__(self, name, tensor=None, *details):
        self.name, self.details = name, details if tensor is None else (describe(tensor), *details)

    def __str__(self):
        return f"{self.name}({', '.join(map(str, self.details))})"


def describe(tensor):
    """A tensor in words, for agreement and errors."""
    return _described(tensor.dtype, tensor.shape)


@lru_cache(maxsize=256)
def _described(dtype, shape):
    return brief(f"{str(dtype).removeprefix('torch.')}, shape {tuple(shape)}")


def brief(text, limit=100):
    """`text` on one line of at most `limit` bytes; what was cut off still counts, as a checksum."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    data = " ".join(text.split()).encode(errors="replace")
    if len(data) <= limit:
        return data.decode()
    return data[: limit - 12].decode(errors="ignore") + f"... {zlib.crc32(data):08x}"
