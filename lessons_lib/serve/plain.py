"""Continuing text without an engine: the whole sequence through the model for every token, one after the other."""

import torch

from .sampling import next_tokens
from .sequence import Sequence


@torch.inference_mode()
def generate(model, prompt, settings, decode=None, number=0):
    """Continue one prompt. It is what `Engine` has to give, token for token.

    Logits of other batch sizes differ by rounding, so that a draw, or a choice between two tokens, may fall otherwise
    where it is closer than that.

    Args:
        model: tokens (1, T) -> logits (1, T, V), such as `models.GPT` in evaluation mode.
        prompt, settings, decode, number: as in `Sequence`.

    Returns:
        The `Sequence`, finished.
    """
    sequence = Sequence(prompt, settings, decode, number=number)
    device = next(model.parameters()).device
    while not sequence.finish_reason and settings.max_tokens:
        logits = model(torch.tensor([sequence.tokens], device=device))[:, -1]
        sequence.add(next_tokens(logits, [settings], [sequence.random])[0])
    sequence.finish("length")
    return sequence
