"""Attention over a sequence that is cut over ranks: keys and values go round a ring (lesson 17)."""

from functools import lru_cache

import torch
from torch.autograd.function import once_differentiable

from ...schedules.attention import ring_of_keys
from ...schedules.schedule import chunk_bounds
from .attention_inputs import check_attention
from .online_softmax import attend, differentiate, merge


def ring_attention(q, k, v, comm, causal=True, balance="zigzag"):
    """This rank's part of softmax(q kᵀ / √d) v over the whole sequence, exact, with exact gradients.

    A rank computes with one rank's keys after the other, while they go round, and merges the answers (online softmax).
    It never has more than two ranks' keys, nor the scores of more than one pair of chunks.

    Args:
        q: (B, heads, T_r, d), the queries of this rank's positions, as `split_sequence` cuts them.
        k, v: (B, key heads, S_r, d), likewise; key heads divide heads, and each serves as many neighbouring heads.
        comm: the `Communicator` of the ranks that share the sequence.
        causal: whether a position sees itself and those before it, or all.
        balance: how the sequence is cut: see `sequence_positions`. With "zigzag" all ranks have equal causal work.

    Returns:
        (B, heads, T_r, d). Gradients are those of the *sum* of all ranks' losses: a rank's loss is its part of the
        whole, as `DataParallel` and `share_of_mean` make it.

    Raises:
        TypeError: q, k or v is no floating-point tensor.
        ValueError: shapes, dtypes or lengths do not fit, or differ between ranks where they must not. On every rank.

    Communication: with K bytes of k and v of a rank: forward N - 1 messages of K, backward N - 1 of K and N - 1 of the
    gradient, K (or twice that for half precision, which is added up in float32). A straight causal cut leaves out what
    nobody sees: the keys of rank r go on N - 1 - r times. What ranks tell each other to be checked is no payload.

    Memory: with S bytes of q, as many of k and of v, and A bytes of the scores of one pair of chunks (for zigzag those
    of B heads (T / 2N)² numbers): 4S are kept for the backward pass. With what goes in and comes out, at most
    8S + max(2S, A + S/2) forward and 16S + max(2S, 2A + S/2) backward; S is 1/N of the whole, A at most 1/N².
    What a busy neighbour has not taken yet stays too: at most 2S more forward and 4S backward.

    Source: Liu et al., Ring Attention with Blockwise Transformers (2023), §3; lesson 17.
    """
    lengths, key_lengths = check_attention("ring_attention", q, k, v, comm, causal, balance)
    num_groups = k.shape[1]
    ring = _Ring(comm, causal, balance, sum(lengths), sum(key_lengths))
    grouped = q.unflatten(1, (num_groups, -1))  # (B, key heads, heads that share one, T_r, d)
    return _RingAttention.apply(grouped, k.unsqueeze(2), v.unsqueeze(2), ring).flatten(1, 2)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, ring):
        with torch.autocast(q.device.type, enabled=False):
            answer, lse = ring.forward(q, k, v)
        ctx.ring = ring
        ctx.save_for_backward(q, k, v, answer, lse)
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        with torch.autocast(gradient.device.type, enabled=False):
            return *ctx.ring.backward(gradient, *ctx.saved_tensors), None


class _Ring:
    """Runs this rank's steps of the two programs. It knows nothing of their order."""

    def __init__(self, comm, causal, balance, length, key_length):
        self._comm, self._causal = comm, causal
        self._forward, self._backward = (_program(comm.world_size, causal, balance, late) for late in (False, True))
        self._owners = self._forward.owners
        self._rows = _rows_of(length, self._owners)
        self._columns = _rows_of(key_length, self._owners)
        self._lengths = [0] * comm.world_size  # of each rank's keys
        for owner, (start, stop) in zip(self._owners, self._columns, strict=True):
            self._lengths[owner] += stop - start

    def forward(self, q, k, v):
        answer = torch.zeros_like(q, dtype=_exact(q), memory_format=torch.contiguous_format)
        lse = torch.full_like(answer[..., :1], -torch.inf)

        def compute(step, held):
            query, key = step.block
            rows, pair = slice(*self._rows[query]), self._pair(q, held["keys", self._owners[key]], query, key)
            if pair is not None:
                both = merge(answer[..., rows, :], lse[..., rows, :], *attend(*pair, self._is_diagonal(query, key)))
                answer[..., rows, :], lse[..., rows, :] = both

        self._play(self._forward, k, v, compute)
        return answer.to(q.dtype), lse

    def backward(self, gradient, q, k, v, answer, lse):
        of_q = torch.zeros_like(q, dtype=lse.dtype, memory_format=torch.contiguous_format)
        gradient = gradient.to(lse.dtype)
        delta = (gradient * answer).sum(-1, keepdim=True)

        def compute(step, held):
            if step.op == "add":
                self._add(step.block, held, k)
                return
            query, key = step.block
            source = self._owners[key]
            rows, columns = slice(*self._rows[query]), slice(*self._columns[key])
            if ("part", source) not in held:
                held["part", source] = self._blank(source, k, lse.dtype)
            pair = self._pair(q, held["keys", source], query, key)
            if pair is not None:
                of_rows = [each[..., rows, :] for each in (lse, gradient, delta)]
                parts = differentiate(*pair, *of_rows, self._is_diagonal(query, key))
                of_q[..., rows, :] += parts[0]
                for whole, each in zip(held["part", source], parts[1:], strict=True):
                    whole[..., columns, :] += each.sum(2, keepdim=True)

        held = self._play(self._backward, k, v, compute)
        of_k, of_v = held["gradient", self._comm.rank].to(k.dtype)
        return of_q.to(q.dtype), of_k, of_v

    def _play(self, program, k, v, compute):
        """Do this rank's steps; what is held at the end. A kind of block leaves when the one before has been taken."""
        comm, leaving = self._comm, {}
        held = {("keys", comm.rank): torch.stack([k, v])}
        for step in program.steps[comm.rank]:
            kind = step.block[0]
            if step.op == "send":
                if kind in leaving:
                    leaving[kind].wait()
                leaving[kind] = comm.isend(held[step.block], step.peer)
                if kind == "gradient":
                    del held[step.block]
            elif step.op == "recv":
                held[step.block] = self._blank(step.block[1], k, k.dtype if kind == "keys" else _exact(k))
                comm.recv(held[step.block], step.peer)
            elif step.op == "drop":
                del held[step.block]
            else:
                with comm.compute(step.label):
                    compute(step, held)
        for message in leaving.values():
            message.wait()
        return held

    def _pair(self, q, keys, query, key):
        """Queries of one chunk, keys and values of another, in the dtype of the sums; None where there are none."""
        rows, columns = slice(*self._rows[query]), slice(*self._columns[key])
        pair = [q[..., rows, :], keys[0][..., columns, :], keys[1][..., columns, :]]
        return [each.to(_exact(q)) for each in pair] if pair[0].numel() and pair[1].numel() else None

    def _is_diagonal(self, query, key):
        return self._causal and query == key

    def _add(self, block, held, k):
        """Add what this rank has of a gradient to what has come of it."""
        part = held.pop(("part", block[1]))
        held[block] = held[block].add_(part) if block in held else part

    def _blank(self, source, k, dtype):
        """Zeros for the keys and values of rank `source`."""
        return k.new_zeros((2, *k.shape[:-2], self._lengths[source], k.shape[-1]), dtype=dtype)


def _exact(tensor):
    """The dtype of sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=64)
def _program(num_ranks, causal, balance, backward):
    return ring_of_keys(num_ranks, causal, balance, backward)


def _rows_of(length, owners):
    """For each chunk its (start, stop) within what its owner holds."""
    held, rows = {}, []
    for owner, (start, stop) in zip(owners, chunk_bounds(length, len(owners)), strict=True):
        first = held.get(owner, 0)
        held[owner] = first + stop - start
        rows.append((first, held[owner]))
    return rows
