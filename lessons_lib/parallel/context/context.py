"""A model whose sequences are cut over ranks: its attention and its positions are put right (lesson 17)."""

from ...models.gpt import Attention, Embed, causal_attention
from ...schedules.attention import chunk_owners
from ..wrapped import check_communicator
from .ring_attention import ring_attention
from .sequence import check_lengths, sequence_positions


def context_parallel(module, comm, attention=ring_attention, balance="zigzag"):
    """Let each rank run a model on its own part of every sequence: `model(split_sequence(tokens, comm))`.

    Every attention asks the other ranks, and tokens get the rows of their own positions. All else in a model works on
    each position alone. Weights lie on all ranks: their gradients are to be averaged over `comm`, as over ranks that
    have other samples, by `DataParallel(module, comm)` or `average_gradients`. With mean losses over n_k tokens, which
    differ between ranks where the cut is uneven or some tokens are padding, `DataParallel` counts the tokens given, or
    takes `weight=n_k`; without it, `share_of_mean` makes losses that can be averaged plainly.

    Args:
        module: a `GPT`, or any module with its `Attention`s, whole or to be cut afterwards; changed in place.
        comm: the `Communicator` of the ranks that share a sequence.
        attention: `ring_attention` or `all_to_all_attention`.
        balance: how sequences are cut: as `split_sequence` was told.

    Returns:
        The module. Its copies and pickles are for one process again.

    Raises:
        TypeError: `comm` is no `Communicator`.
        ValueError: there is no `Attention` in the module, or `balance` is unknown.

    Communication: that of `attention` per layer.

    Source: lesson 17.
    """
    check_communicator(comm)
    chunk_owners(comm.world_size, balance)
    layers = [layer for layer in module.modules() if isinstance(layer, Attention)]
    if not layers:
        raise ValueError(f"module is a {type(module).__name__} without an Attention of lessons_lib.models.gpt")
    for layer in layers:
        layer.attend, layer.mixes_ranks = _Attend(comm, attention, balance), True
    for layer in module.modules():
        if isinstance(layer, Embed):
            for number in [n for n, hook in layer._forward_pre_hooks.items() if isinstance(hook, _Positions)]:
                del layer._forward_pre_hooks[number]
            layer.register_forward_pre_hook(_Positions(comm, balance), with_kwargs=True)
    return module


class _Attend:
    """Attention with the other ranks."""

    def __init__(self, comm, attention, balance):
        self._comm, self._attention, self._balance = comm, attention, balance

    def __call__(self, q, k, v):
        return self._attention(q, k, v, self._comm, causal=True, balance=self._balance)

    def __reduce__(self):
        return _plain, ()


def _plain():
    return causal_attention


class _Positions:
    """Gives `Embed` the positions of this rank's tokens."""

    def __init__(self, comm, balance):
        self._comm, self._balance = comm, balance

    def __call__(self, embed, args, kwargs):
        tokens, positions = _arguments(*args, **kwargs)
        if positions is not None:
            return None
        if (cut_as := getattr(tokens, "cut_as", self._balance)) != self._balance:
            raise ValueError(
                f"tokens were cut with balance={cut_as!r}, the model with {self._balance!r}: one is needed"
            )
        lengths = [length for (length,) in self._comm.tell("positions of context_parallel", [tokens.shape[1]])]
        check_lengths("tokens", lengths, self._balance)
        if sum(lengths) > (most := embed.positions.num_embeddings):
            raise ValueError(
                f"tokens has {sum(lengths)} positions in all: at most {most} are possible, the model's context"
            )
        return (tokens,), {"positions": sequence_positions(sum(lengths), self._comm, self._balance)}

    def __reduce__(self):
        return _Whole, ()


def _arguments(tokens, positions=None):
    return tokens, positions


class _Whole:
    """What is left of `_Positions` in a copy."""

    def __call__(self, *args):
        return None
