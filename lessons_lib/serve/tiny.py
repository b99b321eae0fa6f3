"""A model to serve where there is none: a small GPT that reads Python's own help for some seconds."""

import torch
from torch.nn import functional as F

from ..data import help_pages
from ..models import GPT
from .text import Characters


def tiny_model(steps=150, width=64, num_layers=2, num_heads=4, context=128, seed=0):
    """Train a character model on the pages behind `help("LOOPING")` and its like, as in lesson 06b.

    Args:
        steps: of Adam, each on 16 pieces of `context` characters; 0 leaves the model as it was drawn.
        width, num_layers, num_heads, context: of the `models.GPT`.
        seed: of its weights and of the pieces.

    Returns:
        (model, tokenizer), the model in evaluation mode.
    """
    tokens, alphabet = help_pages()
    tokenizer = Characters(alphabet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(tokenizer.vocabulary, width, num_layers, num_heads, context)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(steps):
            starts = torch.randint(len(tokens) - context, (16, 1))
            pieces = tokens[starts + torch.arange(context + 1)]
            optimizer.zero_grad()
            F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten()).backward()
            optimizer.step()
    return model.eval(), tokenizer
