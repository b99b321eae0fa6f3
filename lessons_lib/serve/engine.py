"""Continuous batching: after every token, sequences that are done leave the batch and others join it.

Source: Yu et al., Orca (2022), §3.1; Kwon et al. (2023), §4.5, for what happens when blocks run out.
"""

from collections import deque

from ..errors import check_sizes
from .paged import Chunk, PagedGPT
from .sampling import next_tokens
from .sequence import Sequence


class Engine:
    """Continues many sequences at once; one forward pass is one `step`. It belongs to one thread.

    A sequence waits until there are blocks for all of its tokens. Where a running one needs one more block and none is
    free, the one that joined last gives its blocks back and waits again, at the head of the queue, to be computed anew
    with all of its tokens: what it draws does not change.

    Args:
        model: `models.GPT`.
        decode: tokens -> text, for stop strings and pieces of text; None gives tokens alone.
        num_blocks: memory for keys and values; None takes what `max_batch` sequences of full length need.
        block_size: positions per block.
        max_batch: the most sequences that run at once.
        step_tokens: the most positions that are computed in one step; a longer prompt takes several.

    Attributes:
        waiting, running: the sequences, in order.
        pool: the `BlockPool`.
        num_preempted: how often a sequence lost its blocks.

    Raises:
        ValueError: a size is below 1, or `step_tokens` is below `max_batch`.
    """

    def __init__(self, model, decode=None, num_blocks=None, block_size=16, max_batch=16, step_tokens=512):
        check_sizes(block_size=block_size, max_batch=max_batch, step_tokens=step_tokens)
        if step_tokens < max_batch:
            raise ValueError(f"step_tokens={step_tokens}: at least max_batch={max_batch} is needed")
        if num_blocks is None:
            num_blocks = max_batch * -(-model.embed.positions.num_embeddings // block_size)
        self.paged, self.decode = PagedGPT(model, num_blocks, block_size), decode
        self.pool, self.max_batch, self.step_tokens = self.paged.pool, max_batch, step_tokens
        self.waiting, self.running, self.num_preempted = deque(), [], 0

    def sequence(self, prompt, settings, on_event=None, number=0):
        """Make a sequence that this engine can finish, for `add`.

        Args:
            prompt: tokens.
            settings, on_event, number: as in `Sequence`.

        Raises:
            ValueError: the prompt is empty, has a token that the model does not have, is too long for the context or
                for all blocks together; or a stop string is asked for, and there is no `decode`.
        """
        self.check(prompt, settings)
        return Sequence(prompt, settings, self.decode, on_event, number)

    def check(self, prompt, settings):
        """Refuse what `sequence` refuses."""
        if not prompt:
            raise ValueError("prompt is empty: at least one token is needed")
        for token in prompt:
            if not 0 <= token < self.paged.vocabulary:
                raise ValueError(f"prompt has token {token}: 0 to {self.paged.vocabulary - 1} are possible")
        length, context = len(prompt) + settings.max_tokens, self.paged.context
        if length > context:
            raise ValueError(
                f"max_tokens={settings.max_tokens}: with {len(prompt)} tokens of the prompt that is {length}, and "
                f"{context} are possible, the model's context"
            )
        if self.pool.needed(length) > self.pool.num_blocks:
            blocks = f"{self.pool.num_blocks} blocks of {self.pool.block_size}"
            raise ValueError(f"max_tokens={settings.max_tokens}: {length} positions do not fit into {blocks}")
        if settings.stop and self.decode is None:
            raise ValueError(f"stop={settings.stop!r}: an engine with `decode` is needed")

    def add(self, sequence):
        """Let `sequence` wait for its turn; one with max_tokens=0 is done at once."""
        if sequence.settings.max_tokens == 0:
            sequence.finish("length")
        else:
            self.waiting.append(sequence)

    def cancel(self, sequence, reason="cancelled"):
        """End `sequence`, wherever it is, and free its blocks; one that is done stays as it is."""
        if sequence in self.running:
            self._leave(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.finish(reason)

    @property
    def idle(self):
        return not (self.running or self.waiting)

    def step(self):
        """Let sequences join, compute one forward pass, and add a token to each whose positions are all computed."""
        self._let_join()
        chunks = self._chunks()
        if not chunks:
            return
        logits = self.paged.logits([chunk for _, chunk in chunks])[:, 0]
        for sequence, chunk in chunks:
            sequence.num_cached += len(chunk.tokens)
        ready = [i for i, (sequence, _) in enumerate(chunks) if sequence.num_cached == len(sequence.tokens)]
        mine = [chunks[i][0] for i in ready]
        if mine:
            tokens = next_tokens(logits[ready], [s.settings for s in mine], [s.random for s in mine])
            for sequence, token in zip(mine, tokens, strict=True):
                sequence.add(token)
                if sequence.finish_reason:
                    self._leave(sequence)

    def _let_join(self):
        while self.waiting and len(self.running) < self.max_batch:
            needed = self.pool.needed(len(self.waiting[0].tokens))
            if needed > self.pool.num_free:
                return
            sequence = self.waiting.popleft()
            sequence.table = self.pool.take(needed)
            self.running.append(sequence)

    def _chunks(self):
        """(sequence, chunk) for each that is computed in this step, those whose prompt is done first."""
        chunks, left = [], self.step_tokens
        for sequence in sorted(self.running, key=lambda s: len(s.tokens) - s.num_cached > 1):
            if sequence in self.running and left and self._has_room(sequence):
                start = sequence.num_cached
                tokens = sequence.tokens[start : start + left]
                left -= len(tokens)
                chunks.append((sequence, Chunk(tokens, start, sequence.table)))
        return chunks

    def _has_room(self, sequence):
        """Take the block that its last token needs, from the sequence that joined last if need be."""
        while self.pool.needed(len(sequence.tokens)) > len(sequence.table):
            if self.pool.num_free:
                sequence.table += self.pool.take(1)
            else:
                last = self.running[-1]
                self._leave(last)
                self.waiting.appendleft(last)
                self.num_preempted += 1
                if last is sequence:
                    return False
        return True

    def _leave(self, sequence):
        self.running.remove(sequence)
        self.pool.give_back(sequence.table)
        sequence.table, sequence.num_cached = [], 0
