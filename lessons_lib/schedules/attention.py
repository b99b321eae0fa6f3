"""Attention over a cut sequence as a program: which chunk of queries meets which chunk of keys (lesson 17)."""

from dataclasses import dataclass

from ..errors import InvalidProgram, check_whole
from .program import Program, Step

BALANCES = ("zigzag", "straight")


def chunk_owners(num_ranks, balance="zigzag"):
    """For each chunk of the sequence the rank that holds it.

    "straight": as many chunks as ranks, one each. Of causal attention the last rank has nearly twice the mean work.
    "zigzag": twice as many chunks; rank r holds chunk r and chunk 2N - 1 - r, an early one and a late one, and all
    ranks have the same work.

    Raises:
        ValueError: `balance` is none of them.
    """
    check_whole("num_ranks", num_ranks, 1)
    if balance not in BALANCES:
        raise ValueError(f"balance={balance!r}: one of {', '.join(map(repr, BALANCES))} is needed")
    there = tuple(range(num_ranks))
    return there + there[::-1] if balance == "zigzag" else there


@dataclass(frozen=True)
class Attention(Program):
    """A program in which every query chunk meets the key chunks that it may see, each once.

    Blocks that travel are ("keys", r), keys and values of all chunks of rank r, and ("gradient", r), what has been
    added up of their gradient.

    - "attend" (query chunk, key chunk) needs the keys on the rank that holds the queries, and adds to their answer.
    - "differentiate" (query chunk, key chunk) likewise, and adds to ("part", r), for the keys of rank r.
    - "add" ("gradient", r) makes it out of this rank's part, and what has come of it from other ranks.
    - "drop" ("keys", r) lets keys go that are needed no more.

    Args:
        owners: for each chunk the rank that holds it, as `chunk_owners` gives.
        causal: whether a chunk sees itself and those before it, or all.
        backward: whether this is the backward pass.
    """

    owners: tuple = ()
    causal: bool = True
    backward: bool = False

    def __post_init__(self):
        if not self.owners or any(rank not in range(self.world_size) for rank in self.owners):
            raise ValueError(f"owners={self.owners!r}: for each chunk a rank from 0 to {self.world_size - 1} is needed")

    def sees(self, query, key):
        """Whether the queries of chunk `query` may see the keys of chunk `key`."""
        return key <= query or not self.causal

    def pairs(self, rank, source):
        """The (query chunk, key chunk) pairs that `rank` has to compute with the keys of rank `source`."""
        chunks = range(len(self.owners))
        queries = [chunk for chunk in chunks if self.owners[chunk] == rank]
        keys = [chunk for chunk in chunks if self.owners[chunk] == source]
        return [(query, key) for query in queries for key in keys if self.sees(query, key)]

    def start(self):
        return [{("keys", rank): ()} for rank in range(self.world_size)]

    def compute(self, rank, step, held):
        wanted = "differentiate" if self.backward else "attend"
        if step.op == "drop":
            if step.block not in held or step.block[0] != "keys":
                raise InvalidProgram("is dropped, but is not there")
            del held[step.block]
        elif step.op == "add" and self.backward:
            self._add(step.block, held)
        elif step.op == wanted:
            self._meet(rank, step.block, held)
        else:
            raise InvalidProgram(f"{step.op!r} is unknown: send, recv, drop, {wanted}{', add' * self.backward}")

    def _meet(self, rank, block, held):
        """A query chunk meets a key chunk."""
        last = len(self.owners) - 1
        if len(block) != 2 or any(chunk not in range(last + 1) for chunk in block):
            raise InvalidProgram(f"(query chunk, key chunk) is needed, up to ({last}, {last})")
        query, key = block
        source = self.owners[key]
        if self.owners[query] != rank:
            raise InvalidProgram(f"query chunk {query} lies on rank {self.owners[query]}")
        if ("keys", source) not in held:
            raise InvalidProgram(f"the keys of rank {source} are not there")
        if not self.sees(query, key):
            raise InvalidProgram(f"query chunk {query} may not see key chunk {key}, which comes later")
        if block in held.get("met", ()):
            raise InvalidProgram("these two have met before")
        held["met"] = (*held.get("met", ()), block)
        if self.backward:
            held["part", source] = (*held.get(("part", source), ()), block)

    def _add(self, block, held):
        """Unite a gradient that has come with what this rank has computed."""
        part = held.pop(("part", block[-1]), None)
        if part is None or block[0] != "gradient":
            raise InvalidProgram("there is nothing to add to it")
        held[block] = (*held.get(block, ()), *part)

    def num_kept(self, held):
        """How many ranks' keys this rank holds at once."""
        return sum(block[0] == "keys" for block in held)

    def check_end(self, held):
        for rank, own in enumerate(held):
            for source in range(self.world_size):
                for pair in self.pairs(rank, source):
                    if pair not in own.get("met", ()):
                        raise InvalidProgram("these two never meet", rank, None, pair)
            if self.backward:
                self._check_gradient(rank, own.get(("gradient", rank), ()))

    def _check_gradient(self, source, home):
        """All that was computed with the keys of rank `source` has come home to it."""
        for rank in range(self.world_size):
            for pair in self.pairs(rank, source):
                if pair not in home:
                    raise InvalidProgram("its part of the keys' gradient never comes home", source, None, pair)


def ring_of_keys(num_ranks, causal=True, balance="zigzag", backward=False):
    """Keys go round the ring: each rank computes with those that have come, while it passes them on to the next rank.

    In the backward pass their gradient follows them, one rank behind, and comes home at the end. Where a straight cut
    leaves the ranks before the keys with nothing to see, keys end at the last rank, and the gradient goes home from
    there.

    Args:
        num_ranks: N.
        causal: whether a position sees itself and those before it, or all.
        balance: how the sequence is cut: see `chunk_owners`.
        backward: whether to make the program of the backward pass.

    Communication: forward at most N - 1 blocks of keys sent per rank, backward at most N - 1 of keys and of gradients.

    Source: Liu et al., Ring Attention with Blockwise Transformers (2023), §3; Brandon et al., Striped Attention (2023),
    §3, for the balance of causal work; lesson 17.
    """
    blank = Attention([[] for _ in range(num_ranks)], "blank", chunk_owners(num_ranks, balance), causal, backward)
    steps = [_turns(blank, rank) for rank in range(num_ranks)]
    name = f"{balance} ring attention{', backward' * backward}"
    return Attention(steps, name, blank.owners, causal, backward)


def _turns(program, rank):
    """The steps of one rank: in turn t with the keys of the rank that is t places before it on the ring."""
    size, steps = program.world_size, []
    before, after = (rank - 1) % size, (rank + 1) % size
    for source in ((rank - turn) % size for turn in range(size)):
        keys, gradient, pairs = ("keys", source), ("gradient", source), program.pairs(rank, source)
        if not pairs:
            continue  # the keys never come here
        goes_on = after != source and bool(program.pairs(after, source))
        steps += [Step("recv", keys, before)] if source != rank else []
        steps += [Step("send", keys, after)] if goes_on else []
        steps += [Step("differentiate" if program.backward else "attend", pair) for pair in pairs]
        steps.append(Step("drop", keys))
        if program.backward and source != rank:
            steps += [Step("recv", gradient, before)] if before != source else []
            steps += [Step("add", gradient), Step("send", gradient, after if goes_on else source)]
    if program.backward:
        visitors = [other for other in range(size) if other != rank and program.pairs(other, rank)]
        last = max(visitors, key=lambda other: (other - rank) % size, default=None)
        steps += [] if last is None else [Step("recv", ("gradient", rank), last)]
        steps.append(Step("add", ("gradient", rank)))
    return steps
