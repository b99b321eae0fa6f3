"""Speculative decoding: a small model guesses some tokens, and one pass of the large one judges all of them.

A guess x that was drawn from q is kept with probability min(1, p(x) / q(x)), p being what the large model would draw
from. The first that is refused is replaced by a draw from what p has more than q, max(0, p - q) scaled to sum to 1; if
none is refused, the pass gives one more token from p. Whatever the guesses are, the tokens are distributed as p.

Source: Leviathan, Kalman and Matias, Fast Inference from Transformers via Speculative Decoding (2023), §2.3 and A.1.
"""

import torch

from ..errors import check_whole
from .paged import Chunk, PagedGPT
from .sampling import draw, probabilities
from .sequence import Sequence


def judge(target, draft, guesses, uniform):
    """Say which guesses are kept, and the token that follows them.

    Args:
        target: p, float64 (B, g + 1, V): what the large model draws from at each guess, and after all of them.
        draft: q, float64 (B, g, V): what the guesses were drawn from.
        guesses: (B, g), tokens drawn from q.
        uniform: (B, g + 1), independent numbers in 0..1; the last is for the token that follows.

    Returns:
        (kept, tokens): how many guesses are kept in each row, (B), and the token after those, (B).
    """
    rows, count = torch.arange(len(guesses), device=guesses.device), guesses.shape[1]
    p, q = (part[:, :count].gather(2, guesses.unsqueeze(2)).squeeze(2) for part in (target, draft))
    accepted = uniform[:, :count] * q < p
    kept = accepted.long().cumprod(dim=1).sum(dim=1)
    refused = torch.cat([draft, torch.zeros_like(target[:, :1])], dim=1)  # after all of them, nothing is taken from p
    rest = (target - refused).clamp(min=0)[rows, kept]
    # Where rounding leaves nothing, p and q are alike, and p itself is right.
    rest = torch.where(rest.sum(dim=1, keepdim=True) > 0, rest, target[rows, kept])
    return kept, draw(rest, uniform[:, -1].tolist())


def tokens_per_pass(kept_share, num_guesses):
    """How many tokens one pass of the large model gives on average: (1 - a^(g + 1)) / (1 - a).

    Args:
        kept_share: a, the probability that a guess is kept, independent of the others; 0 to 1.
        num_guesses: g.

    Raises:
        ValueError: an argument is outside what is said above.
    """
    check_whole("num_guesses", num_guesses, 0)
    if not 0 <= kept_share <= 1:
        raise ValueError(f"kept_share={kept_share!r}: a number from 0 to 1 is needed")
    return float(sum(kept_share**i for i in range(num_guesses + 1)))


class Speculator:
    """Continues one prompt at a time with two models, each with its own keys and values.

    Args:
        model: `models.GPT`, whose tokens are wanted.
        draft: a smaller `models.GPT` with the same vocabulary and no smaller context.
        num_guesses: g, the tokens that it guesses for each pass of `model`.
        block_size: positions per block of keys and values.

    Attributes:
        num_passes: passes of `model` so far.
        num_guessed, num_kept: guesses that were judged, and those that were kept.

    Raises:
        ValueError: vocabulary or context of the draft do not fit, or a size is below 1.
    """

    def __init__(self, model, draft, num_guesses=4, block_size=16):
        check_whole("num_guesses", num_guesses, 1)
        blocks = -(-model.embed.positions.num_embeddings // block_size)
        self.target, self.draft = (PagedGPT(net, blocks, block_size) for net in (model, draft))
        if self.draft.vocabulary != self.target.vocabulary or self.draft.context < self.target.context:
            sizes = [f"a vocabulary of {net.vocabulary} and a context of {net.context}" for net in self._nets]
            raise ValueError(f"draft has {sizes[1]}: those of model are needed, {sizes[0]}")
        self.num_guesses = num_guesses
        self.table = list(range(blocks))  # one sequence at a time has all blocks, of either model
        self.num_passes = self.num_guessed = self.num_kept = 0

    @property
    def _nets(self):
        return self.target, self.draft

    def generate(self, prompt, settings, decode=None):
        """Continue one prompt, with the distribution of `plain.generate`, and its very tokens at temperature 0.

        Args:
            prompt, settings, decode: as in `Sequence`.

        Returns:
            The `Sequence`, finished.

        Raises:
            ValueError: the prompt is empty, or has no room for `max_tokens`.
        """
        room = self.target.context - len(prompt)
        if not prompt or settings.max_tokens > room:
            raise ValueError(f"max_tokens={settings.max_tokens}: 1 to {room} are possible after {len(prompt)} tokens")
        sequence, computed = Sequence(prompt, settings, decode), [0, 0]
        while not sequence.finish_reason and settings.max_tokens:
            for token in self._pass(sequence, computed):
                if not sequence.finish_reason:
                    sequence.add(token)
        sequence.finish("length")
        return sequence

    def _pass(self, sequence, computed):
        """The tokens of one pass; `computed` is of how many positions each model has the keys and values."""
        tokens, settings, source = sequence.tokens, sequence.settings, sequence.random
        count = min(self.num_guesses, settings.max_tokens - sequence.num_added - 1)
        guesses, drafts = [], []
        for _ in range(count):
            logits = self._logits(1, tokens + guesses, computed)
            drafts.append(probabilities(logits[0], [settings]))
            guesses += draw(drafts[-1], [source.random()]).tolist()
        target = probabilities(self._logits(0, tokens + guesses, computed, count + 1)[0], [settings] * (count + 1))
        draft = torch.stack(drafts, 1) if drafts else target[:0].unsqueeze(0)
        uniform = target.new_tensor([[source.random() for _ in range(count + 1)]])
        guessed = torch.tensor([guesses], dtype=torch.long, device=target.device)
        kept, following = judge(target.unsqueeze(0), draft, guessed, uniform)
        kept = int(kept)
        computed[:] = [
            min(n, len(tokens) + kept) for n in computed
        ]  # the keys and values of the others are written over
        self.num_passes += 1
        self.num_guessed, self.num_kept = self.num_guessed + min(kept + 1, count), self.num_kept + kept
        return [*guesses[:kept], int(following)]

    def _logits(self, which, tokens, computed, num_last=1):
        start = computed[which]
        computed[which] = len(tokens)
        return self._nets[which].logits([Chunk(tokens[start:], start, self.table)], num_last)
