"""What the ranks of a pipeline tell each other before and after a step, so that none is left alone in it."""

import struct

import torch

from ...comm.call import brief, describe
from ...errors import RankFailed
from .alike import are_alike, fingerprint

TEXT_NUMBERS = 30  # of eight characters: what a rank says of its error


class Meeting:
    """Where all ranks of a communicator meet around each call of a pipeline."""

    def __init__(self, comm):
        self._comm, self._num_calls, self._call = comm, 0, ""

    def begin(self, name, batch, numbers):
        """Find out whether all ranks are in the same call with the same batch, and hear everybody's `numbers`.

        Args:
            name: of the call.
            batch: {name: what was given as it}; {"x": tensor, "y": tensor}.
            numbers: as many floats on every rank.

        Returns:
            For each rank its numbers.

        Raises:
            CollectiveMismatch: ranks are in other calls, or with other shapes.
            ValueError: the batch has other numbers on other ranks.
        """
        self._num_calls += 1
        said = ", ".join(f"{key}: {_in_words(each)}" for key, each in batch.items())
        mode = "" if torch.is_grad_enabled() or name == "forward" else ", without gradients"
        self._call = f"PipelineParallel.{name}({said}), call {self._num_calls}{mode}"
        tensors = {key: each for key, each in batch.items() if _is_dense(each)}
        prints = [number for each in tensors.values() for number in fingerprint(each)]
        table = [_floats(row) for row in self._comm.tell(self._call, _bits([*prints, *numbers]))]
        for place, key in enumerate(tensors):
            if not are_alike([row[2 * place : 2 * place + 2] for row in table]):
                raise ValueError(f"{key} has other numbers on other ranks: the same batch is needed on all of them")
        return [row[len(prints) :] for row in table]

    def end(self, error, numbers=()):
        """Wait until all ranks have done their part, and raise on all of them if one has failed.

        Args:
            error: what was raised on this rank, or None.
            numbers: as many whole ones on every rank.

        Returns:
            For each rank its numbers.

        Raises:
            Exception: `error`, where there is one.
            RankFailed: another rank has one.
        """
        table = self._comm.tell(f"end of {self._call}", [error is not None, *numbers])
        failed = [rank for rank, row in enumerate(table) if row[0]]
        if failed:
            said = f"{type(error).__name__}: {error}".encode()[: 8 * TEXT_NUMBERS].ljust(8 * TEXT_NUMBERS)
            texts = self._comm.tell(f"failure of {self._call}", struct.unpack(f"{TEXT_NUMBERS}q", said))
            if error is not None:
                raise error
            first = failed[0]
            text = struct.pack(f"{TEXT_NUMBERS}q", *texts[first]).decode(errors="replace").strip()
            rank = self._comm.ranks[first]
            raise RankFailed(rank, f"rank {rank} raised in {self._call}: {text}")
        return [row[1:] for row in table]


def _in_words(given):
    if not isinstance(given, torch.Tensor):
        return brief(type(given).__name__, 60)
    return brief(describe(given) + ", requires_grad" * given.requires_grad, 90)


def _is_dense(given):
    return isinstance(given, torch.Tensor) and given.layout == torch.strided and not given.is_meta


def _bits(numbers):
    return struct.unpack(f"{len(numbers)}q", struct.pack(f"{len(numbers)}d", *numbers))


def _floats(bits):
    return struct.unpack(f"{len(bits)}d", struct.pack(f"{len(bits)}q", *bits))
