"""Expert parallelism: every rank holds some experts, and tokens go to theirs and come home (lesson 17)."""

import torch
from torch import nn

from ..errors import CollectiveMismatch
from ..models import MixtureOfExperts
from ..schedules.schedule import chunk_bounds
from .averaged import ADDED, would_add
from .copies import lies_on
from .exchange import exchange
from .replicas import share_start
from .wrapped import check_communicator


class ExpertParallel(MixtureOfExperts):
    """A mixture of experts of which each rank holds some: `block.mlp = ExpertParallel(block.mlp, comm)`.

    Every rank routes its own tokens, which may be of any number; an all-to-all takes them to the ranks of their
    experts, another one brings the answers home. No token is dropped. At the start all ranks take over rank 0's
    numbers; then rank r keeps the experts of `chunk_bounds(E, N)[r]`, perhaps none.

    Gradients are those of the *sum* of all ranks' losses. An expert's comes from the tokens of all ranks: it is that
    sum already. The router's, as of all that lies on every rank, is this rank's term of it. `average_gradients` makes
    both those of the mean over ranks (of losses that are `share_of_mean`s where ranks have unequal numbers of tokens).
    A backward pass that would add to that mean raises `RuntimeError`.

    Args:
        layer: a `MixtureOfExperts`, of the same shapes on all ranks. It is taken apart: use this one instead.
        comm: the `Communicator` of the ranks that share the experts.

    Attributes:
        router: as the layer's.
        experts: this rank's own, {number as text: MLP}. Names in `state_dict()` are those of the whole layer, and
            `load_state_dict` of a whole layer takes what is this rank's.
        num_experts: E.
        counts: (N, E), how many tokens of each rank went to each expert in the last forward pass, on every rank: the
            hot experts are the columns of large sums.

    Raises:
        TypeError: `layer` is no `MixtureOfExperts`, or is split already; `comm` is no `Communicator`.
        CollectiveMismatch: the ranks' layers differ, or some compute gradients and others don't.

    Communication: two all-to-alls forward and two backward. With a_r the tokens of rank r that go elsewhere (one that
    goes to two experts counts twice) and b_r those that come to it, rank r sends a_r + b_r rows of D numbers forward,
    and as many backward; and forward E + 3 numbers to each rank.

    Memory: 1/N of the experts' parameters, and activations of the tokens that come: a rank with a hot expert has more.

    Source: Lepikhin et al., GShard (2020), §3.2; lesson 17.
    """

    mixes_ranks = True

    def __init__(self, layer, comm):
        nn.Module.__init__(self)
        if not isinstance(layer, MixtureOfExperts) or isinstance(layer, ExpertParallel):
            raise TypeError(f"layer is a {type(layer).__name__}: a MixtureOfExperts is needed that lies on every rank")
        check_communicator(comm)
        share_start(layer, comm, f"top_k={layer.top_k}", "ExpertParallel")
        self.comm, self.top_k, self.router, self.counts = comm, layer.top_k, layer.router, None
        self.num_experts = len(layer.experts)
        self._bounds = chunk_bounds(self.num_experts, comm.world_size)
        self.experts = nn.ModuleDict({str(n): layer.experts[n] for n in range(*self._bounds[comm.rank])})
        for parameter in self.experts.parameters():
            lies_on(parameter, comm)
        self.register_load_state_dict_pre_hook(_drop_others)

    def forward(self, x):
        tokens = x.flatten(0, -2)
        chosen, weights = self.route(tokens)
        order = chosen.flatten().argsort(stable=True)  # by expert, and so by rank
        rows = order // self.top_k
        given, taken = self._agree(chosen, x)
        came = exchange(tokens[rows], self.comm, given, taken)
        answers = exchange(self._compute(came), self.comm, taken, given)
        weighted = weights.flatten()[order].unsqueeze(1) * answers
        return torch.zeros_like(tokens).index_add(0, rows, weighted.to(tokens.dtype)).view_as(x)

    def _agree(self, chosen, x):
        """Tell all ranks how many tokens go to each expert: how many go to each rank, and come from it."""
        counts = torch.bincount(chosen.flatten(), minlength=self.num_experts)
        state = [x.shape[-1], torch.is_grad_enabled(), torch.is_grad_enabled() and x.requires_grad]
        own = torch.cat([counts, counts.new_tensor(state)])
        table = own.new_empty(self.comm.world_size, len(own))
        self.comm.all_gather(table, own)
        self.counts, states = table.cpu().split([self.num_experts, len(state)], 1)
        if len(states.unique(dim=0)) > 1:
            words = [f"width {width}, {grad=}, x.requires_grad={of_x}" for width, grad, of_x in states.tolist()]
            raise CollectiveMismatch({rank: f"ExpertParallel with {each}" for rank, each in enumerate(words)})
        by_rank = [self.counts[:, first:last].sum(1).tolist() for first, last in self._bounds]
        return [numbers[self.comm.rank] for numbers in by_rank], by_rank[self.comm.rank]

    def _compute(self, came):
        """What this rank's experts make of the tokens that came, which stand by rank and then by expert."""
        own = self.counts[:, slice(*self._bounds[self.comm.rank])]  # (N, own experts)
        numbers = torch.arange(own.shape[1]).repeat(len(own))
        order = numbers.repeat_interleave(own.flatten()).argsort(stable=True).to(came.device)
        by_expert = came[order]
        pieces = by_expert.split(own.sum(0).tolist()) if own.shape[1] else []
        with self.comm.compute(f"experts {', '.join(self.experts) or 'none'}"):
            answers = [expert(piece) for expert, piece in zip(self.experts.values(), pieces, strict=True)]
        # Without an expert, or with frozen ones, this rank has to be in the graph all the same: others wait for it.
        answers = torch.cat([by_expert[:0], *answers])[order.argsort()]
        if not torch.is_grad_enabled():
            return answers
        answers.requires_grad_().register_hook(self._check_gradients)
        return answers

    def _check_gradients(self, gradient):
        """A backward pass has come to the experts."""
        if would_add(self.experts.parameters()):
            raise RuntimeError(ADDED)

    def __reduce__(self):
        raise TypeError(
            "an ExpertParallel belongs to its own rank and cannot be copied or pickled: use state_dict(), which is the "
            "whole layer's if those of all ranks are put together"
        )


def _drop_others(module, state_dict, prefix, *_):
    """Leave out of a whole layer's state what lies on other ranks."""
    start = f"{prefix}experts."
    for name in [name for name in state_dict if name.startswith(start)]:
        number = name.removeprefix(start).partition(".")[0]
        if number.isdecimal() and int(number) < module.num_experts and number not in module.experts:
            del state_dict[name]
