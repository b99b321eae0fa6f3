"""Parameters that lie in stages of several ranks, such as a tied embedding: their gradients are added up."""

import torch


class TiedParameters:
    """Finds the parameters that several ranks hold. All ranks make it together.

    Args:
        stages: all stages, in which a tied parameter is one object.
        placement: for each stage its rank.
        comm: the `Communicator`.
    """

    def __init__(self, stages, placement, comm):
        holders = {}  # parameter: the ranks that hold it
        for stage, rank in zip(stages, placement, strict=True):
            for parameter in stage.parameters():
                holders.setdefault(parameter, set()).add(rank)
        self._tied = []  # of this rank: (parameter, group)
        for parameter, ranks in holders.items():
            if len(ranks) > 1 and parameter.requires_grad:
                group = comm.split(0 if comm.rank in ranks else None, name="tied")
                self._tied += [(parameter, group)] if group is not None else []
        self._before = []

    def set_aside(self):
        """Take the gradients of earlier steps away, which have been added up already."""
        self._before = [parameter.grad for parameter, _ in self._tied]
        for parameter, _ in self._tied:
            parameter.grad = None

    @torch.no_grad()
    def add_up(self):
        """Add the gradients of this step over the ranks, and those of earlier steps again."""
        for (parameter, group), before in zip(self._tied, self._before, strict=True):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            group.all_reduce(gradient)
            parameter.grad = gradient if before is None else before.add_(gradient)
