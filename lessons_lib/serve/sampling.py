"""From logits to the next token: what a request may choose, and one draw per sequence, all at once."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch

HOTTEST = 100  # beyond, all tokens are as likely as one another


@dataclass(frozen=True)
class Settings:
    """How one sequence is continued.

    Attributes:
        max_tokens: the most tokens that are added.
        temperature: divides the logits, at most 100; 0 takes the likeliest token each time.
        top_k: how many of the likeliest tokens are drawn from; 0 for all.
        top_p: only the likeliest tokens whose probabilities before them sum to less than this.
        seed: of its draws; None draws other tokens each time.
        stop: strings at which the text ends, which are no part of it.

    Raises:
        ValueError: an attribute is outside what is said above.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple = ()

    def __post_init__(self):
        whole = {"max_tokens": self.max_tokens, "top_k": self.top_k}
        for name, value in whole.items():
            if not _is(value, Integral) or value < 0:
                raise ValueError(f"{name}={value!r}: a whole number of at least 0 is needed")
        if not _is(self.temperature, Real) or not 0 <= self.temperature <= HOTTEST:
            raise ValueError(f"temperature={self.temperature!r}: a number from 0 to {HOTTEST} is needed")
        if not _is(self.top_p, Real) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p!r}: a number above 0 and at most 1 is needed")
        if self.seed is not None and not _is(self.seed, Integral):
            raise ValueError(f"seed={self.seed!r}: a whole number or None is needed")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop={self.stop!r}: a tuple of strings that are not empty is needed")


def _is(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool)


def probabilities(logits, settings):
    """What each row is drawn from, after temperature, top_k and top_p.

    Args:
        logits: (B, V).
        settings: a `Settings` for each row.

    Returns:
        float64 (B, V); each row sums to 1, and has a single 1 where the temperature is 0.

    Raises:
        FloatingPointError: a row has a NaN, or no finite largest logit.
    """
    logits = logits.double()
    highest, likeliest = logits.max(dim=1, keepdim=True)
    if not highest.isfinite().all():
        raise FloatingPointError(f"logits of row {int((~highest.isfinite()).nonzero()[0, 0])}: they are not finite")
    greedy = torch.zeros_like(logits).scatter_(1, likeliest, 1.0)
    if not any(s.temperature for s in settings):
        return greedy
    temperature = _column([s.temperature or 1.0 for s in settings], logits)
    probability = ((logits - highest) / temperature).softmax(dim=1)
    if any(s.top_k or s.top_p < 1 for s in settings):
        probability = _only_likely(probability, settings)
    return torch.where(_column([s.temperature for s in settings], logits) > 0, probability, greedy)


def _only_likely(probability, settings):
    """Those among the top_k of their row and within its top_p, scaled to sum to 1 again."""
    ordered, order = probability.sort(dim=1, descending=True, stable=True)
    size = probability.shape[1]
    kept = torch.arange(size, device=order.device) < _column([min(s.top_k or size, size) for s in settings], ordered)
    kept &= ordered.cumsum(1) - ordered < _column([s.top_p if s.top_p < 1 else math.inf for s in settings], ordered)
    ordered = torch.where(kept, ordered, 0.0)
    return torch.zeros_like(probability).scatter_(1, order, ordered / ordered.sum(1, keepdim=True))


def _column(numbers, like):
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).unsqueeze(1)


def draw(probability, uniform):
    """One index per row of `probability` (B, V): the first at which the row's sums exceed `uniform` (B), in 0..1."""
    sums = probability.cumsum(dim=1)
    targets = _column(uniform, sums) * sums[:, -1:]
    return torch.searchsorted(sums, targets, right=True).clamp_(max=probability.shape[1] - 1).squeeze(1)


def next_tokens(logits, settings, sources):
    """The next token of each row: a list. Row b takes one number of `sources[b]`, a `random.Random`, for each call."""
    if not any(s.temperature for s in settings) and logits.isfinite().all():
        return logits.argmax(dim=1).tolist()
    uniform = [source.random() if s.temperature else 0.0 for s, source in zip(settings, sources, strict=True)]
    return draw(probabilities(logits, settings), uniform).tolist()
