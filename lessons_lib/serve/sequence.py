"""One sequence on its way through the engine: its tokens, its blocks, its draws and its text."""

import random
import time

from .text import TextStream


class Sequence:
    """What is known of one prompt and its continuation.

    Args:
        prompt: tokens, at least one.
        settings: `Settings`.
        decode: tokens -> text; None where no text is asked for.
        on_event: called as on_event(piece, finish_reason) with each piece of text that is not empty, and at the end
            with the last piece, perhaps empty, and the reason; until then the reason is None.
        number: which of several choices for one prompt it is; they draw differently from one seed.

    Attributes:
        tokens: the prompt and what has been added.
        table: the blocks that hold its keys and values.
        num_cached: of how many positions they are.
        finish_reason: None, or "length", "stop", "cancelled" or "error".
        text: `TextStream` of what has been added, or None.
        first_at_s, last_at_s: when its first and its last token came, by `time.monotonic`; None before.
    """

    def __init__(self, prompt, settings, decode=None, on_event=None, number=0):
        self.tokens, self.num_prompt, self.settings = list(prompt), len(prompt), settings
        self.table, self.num_cached = [], 0
        self.random = random.Random(None if settings.seed is None else f"{settings.seed}/{number}")
        self.text = None if decode is None else TextStream(decode, settings.stop)
        self.on_event, self.finish_reason = on_event, None
        self.first_at_s = self.last_at_s = None

    @property
    def added(self):
        """The tokens after the prompt."""
        return self.tokens[self.num_prompt :]

    @property
    def num_added(self):
        return len(self.tokens) - self.num_prompt

    def add(self, token):
        """Take the next token: tell its text, and finish where a stop string or max_tokens says so."""
        self.tokens.append(token)
        self.last_at_s = time.monotonic()
        self.first_at_s = self.first_at_s or self.last_at_s
        piece = self.text.push(token) if self.text else ""
        if self.text and self.text.stopped:
            self.finish("stop", piece)
        elif self.num_added >= self.settings.max_tokens:
            self.finish("length", piece)
        elif piece and self.on_event:
            self.on_event(piece, None)

    def finish(self, reason, piece=""):
        """End it, once, for `reason`."""
        if self.finish_reason is None:
            if self.text and reason in ("length", "stop"):
                piece += self.text.end()
                reason = "stop" if self.text.stopped and reason == "length" else reason
            self.finish_reason = reason
            if self.on_event:
                self.on_event(piece, reason)
