"""The state of an optimiser that steps pieces of parameters: put together as one process has it, and cut again."""

import copy

import torch

from ..objects import share_objects


def gather_states(layout, pieces, states, comm):
    """The state of each whole tensor, {key: value}, on every rank; {} for a tensor that was never stepped.

    Args:
        layout: `Layout` of the tensors.
        pieces: this rank's piece of each of them, or None where it has none.
        states: {piece: {key: value}}. A tensor of the piece's own shape has a number for each of its numbers; all else
            is the same for the whole tensor, such as the number of steps.
        comm: `Communicator`.

    Communication: for each key one all-gather of its P numbers; the other values, as objects.
    """
    own = [
        states.get(piece, {}) if piece is not None and piece.numel() >= min(numel, 1) else {}
        for piece, numel in zip(pieces, layout.numels, strict=True)
    ]
    notes = [
        {key: value.dtype if _is_cut(value, piece) else _Same(value) for key, value in state.items()}
        for piece, state in zip(pieces, own, strict=True)
    ]
    notes = [_first(of_ranks) for of_ranks in zip(*share_objects(comm, notes), strict=True)]
    keys = dict.fromkeys((key, kind) for note in notes for key, kind in note.items() if not isinstance(kind, _Same))
    whole = {key: layout.views(_gathered(layout, pieces, own, *key, comm)) for key in keys}
    return [
        {key: kind.value if isinstance(kind, _Same) else whole[key, kind][number].clone() for key, kind in note.items()}
        for number, note in enumerate(notes)
    ]


def cut_state(state, shape, part):
    """What a rank keeps of the state of a whole tensor of that shape, of which it has the numbers `part`."""
    start, stop = part
    return {
        key: value.reshape(-1)[start:stop].clone()
        if isinstance(value, torch.Tensor) and tuple(value.shape) == tuple(shape) != ()
        else copy.deepcopy(value)
        for key, value in state.items()
    }


class _Same:
    """A value that is the same for all numbers of a tensor."""

    def __init__(self, value):
        self.value = value


def _is_cut(value, piece):
    return isinstance(value, torch.Tensor) and piece.dim() > 0 and value.shape == piece.shape


def _first(notes):
    """Of the notes of all ranks about one tensor, those of the first that has any."""
    return next((note for note in notes if note), {})


def _gathered(layout, pieces, own, key, dtype, comm):
    """The flat tensor of all numbers of one key."""
    chunk = torch.zeros(layout.chunk, dtype=dtype)
    for piece, state, target in zip(pieces, own, layout.pieces(chunk, comm.rank), strict=True):
        if key in state and _is_cut(state[key], piece) and state[key].dtype == dtype:
            target.copy_(state[key])
    whole = torch.empty(layout.chunk * comm.world_size, dtype=dtype)
    comm.all_gather(whole, chunk)
    return whole
