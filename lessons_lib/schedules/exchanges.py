"""Work that moves to the rank that can do it, and comes home: heads of attention, and experts (lesson 17)."""

from dataclasses import dataclass

from ..errors import InvalidProgram, check_whole
from .program import Program, Step
from .schedule import chunk_bounds


@dataclass(frozen=True)
class Exchange(Program):
    """A program in which every piece of work is done once, on the rank that it belongs to, and its result comes home.

    A piece of work is (r, p): what rank r has for place p. The blocks that travel are ("work", r, p) and
    ("result", r, p). "do" (r, p) makes the one out of the other.

    Args:
        placement: for each place (a group of heads, an expert) the rank that it lies on.
        work: for each rank {place: what it has for it}, such as the tokens of the rank that go to an expert.
        is_joint: whether a place needs the work of all ranks before it can do any of it, as attention does.
    """

    placement: tuple = ()
    work: tuple = ()
    is_joint: bool = False

    def __post_init__(self):
        for place, rank in enumerate(self.placement):
            if rank not in range(self.world_size):
                raise ValueError(f"placement[{place}]={rank!r}: a rank from 0 to {self.world_size - 1} is needed")
        if len(self.work) != self.world_size:
            raise ValueError(f"work has {len(self.work)} parts: one for each of {self.world_size} ranks is needed")

    def start(self):
        return [{("work", rank, place): what for place, what in own.items()} for rank, own in enumerate(self.work)]

    def compute(self, rank, step, held):
        if step.op != "do":
            raise InvalidProgram(f"{step.op!r} is unknown: send, recv, do")
        if len(step.block) != 2 or step.block[1] not in range(len(self.placement)):
            raise InvalidProgram(f"(rank, place) is needed, with places up to {len(self.placement) - 1}")
        source, place = step.block
        if self.placement[place] != rank:
            raise InvalidProgram(f"place {place} lies on rank {self.placement[place]}")
        if ("result", *step.block) in held:
            raise InvalidProgram("is done a second time")
        needed = [other for other, own in enumerate(self.work) if place in own] if self.is_joint else []
        for other in (source, *needed):
            if ("work", other, place) not in held:
                raise InvalidProgram("is needed, but is not there", block=("work", other, place))
        held["result", source, place] = held["work", source, place]

    def check_end(self, held):
        for rank, own in enumerate(self.work):
            for place in own:
                if ("result", rank, place) not in held[rank]:
                    raise InvalidProgram("never comes home", rank, None, ("result", rank, place))


def exchange_of_heads(num_ranks):
    """Every rank gives each other one its queries, keys and values for the heads of that rank, and gets answers.

    In between a rank has all positions of 1/N of the heads. Places are groups of heads.

    Communication: 2(N - 1) blocks sent per rank: queries, keys and values one way, and the answers back.

    Source: Jacobs et al., DeepSpeed Ulysses (2023), §3; lesson 17.
    """
    check_whole("num_ranks", num_ranks, 1)
    work = tuple(dict.fromkeys(range(num_ranks), (rank,)) for rank in range(num_ranks))
    return _exchange(range(num_ranks), work, True, "all-to-all attention")


def expert_routing(chosen, num_experts):
    """Every token goes to the experts that its router has chosen, wherever they lie, and comes home. None is dropped.

    Args:
        chosen: for each rank, for each of its tokens, the experts that it goes to.
        num_experts: E; rank r holds the experts of `chunk_bounds(E, N)[r]`. Places are experts.

    Communication: two blocks for each pair of a rank and an expert elsewhere that it has tokens for.

    Source: Lepikhin et al., GShard (2020), §3.2; lesson 17.
    """
    check_whole("num_experts", num_experts, 1)
    bounds = chunk_bounds(num_experts, len(chosen))
    placement = [rank for rank, (first, last) in enumerate(bounds) for _ in range(first, last)]
    work = tuple({} for _ in chosen)
    for own, tokens in zip(work, chosen, strict=True):
        for token, experts in enumerate(tokens):
            for expert in experts:
                if expert not in range(num_experts):
                    raise ValueError(f"chosen has expert {expert!r}: one from 0 to {num_experts - 1} is needed")
                own[expert] = (*own.get(expert, ()), token)
    return _exchange(placement, work, False, "expert routing")


def _exchange(placement, work, is_joint, name):
    """All work leaves, is done where it has come to, and its results leave."""
    placement, size = tuple(placement), len(work)
    pieces = [(rank, place) for rank, own in enumerate(work) for place in sorted(own)]
    moves = [(rank, placement[place], (rank, place)) for rank, place in pieces]
    steps = [[] for _ in range(size)]
    for src, dst, piece in moves:
        steps[src] += [Step("send", ("work", *piece), dst)] if src != dst else []
    for src, dst, piece in moves:
        steps[dst] += [Step("recv", ("work", *piece), src)] if src != dst else []
    for src, dst, piece in moves:
        steps[dst] += [Step("do", piece)]
        steps[dst] += [Step("send", ("result", *piece), src)] if src != dst else []
    for src, dst, piece in moves:
        steps[src] += [Step("recv", ("result", *piece), dst)] if src != dst else []
    return Exchange(steps, name, placement, work, is_joint)
