"""Parameters that lie in stages of several ranks, such as a tied embedding: their gradients are added up."""

import torch

from .alike import are_alike, fingerprint


class TiedParameters:
    """Finds the parameters that several ranks hold. All ranks make it together.

    They are known by their places in the stages: what lies there later, on all ranks alike, is tied as well.

    Args:
        stages: all stages, in which a tied parameter is one object.
        placement: for each stage its rank.
        comm: the `Communicator`.
    """

    def __init__(self, stages, placement, comm):
        places, groups = {}, {}  # parameter: [(stage, name)]; ranks: their group
        for number, stage in enumerate(stages):
            for name, parameter in stage.named_parameters(remove_duplicate=False):
                places.setdefault(parameter, []).append((number, name))
        self._rank, self._placement, self._tied = comm.rank, placement, []
        for own in places.values():
            ranks = frozenset(placement[number] for number, _ in own)
            if len(ranks) > 1:
                if ranks not in groups:
                    groups[ranks] = comm.split(0 if comm.rank in ranks else None, name="tied")
                self._tied.append((own, groups[ranks]))

    def num_holders(self, stage, name):
        """On how many ranks the parameter `name` of a stage lies."""
        for places, _ in self._tied:
            if (stage, name) in places:
                return len({self._placement[number] for number, _ in places})
        return 1

    def state(self, modules):
        """Three numbers for each tied parameter, which ranks tell each other; see `check`.

        Args:
            modules: {number of the stage: its module}, this rank's.
        """
        state = []
        for parameter in self._now(modules):
            is_whole = isinstance(parameter, torch.Tensor)
            state += [float(parameter.requires_grad), *fingerprint(parameter)] if is_whole else [-1.0, 0.0, 0.0]
        return state

    def check(self, states):
        """Refuse parameters that are tied no longer.

        Args:
            states: of every rank.

        Raises:
            ValueError: ranks that hold one parameter hold other numbers, or some of them alone train it.
        """
        for number, (places, _) in enumerate(self._tied):
            holders = sorted({self._placement[stage] for stage, _ in places})
            rows = [states[rank][3 * number : 3 * number + 3] for rank in holders]
            where = " and ".join(f"{name} of stage {stage}" for stage, name in places)
            if any(row[0] < 0 for row in rows):
                raise ValueError(f"{where} were one parameter, and are not now: a new PipelineParallel is needed")
            if len({row[0] for row in rows}) > 1:
                frozen = ", ".join(str(rank) for rank, row in zip(holders, rows, strict=True) if not row[0])
                raise ValueError(f"{where} are one parameter, frozen on rank {frozen} alone: the same is needed on all")
            if not are_alike([row[1:] for row in rows]):
                raise ValueError(
                    f"{where} are one parameter, which has other numbers on other ranks: they must change alike, as "
                    "with lessons_lib.parallel.clip_grad_norm_, which knows the norm over all ranks"
                )

    def has_gradient(self, modules):
        """For each tied parameter 1 if this rank has a gradient for it, else 0."""
        return [int(getattr(parameter, "grad", None) is not None) for parameter in self._now(modules)]

    @torch.no_grad()
    def add_up(self, modules, has_gradient):
        """Add the gradients of this step over the ranks.

        Args:
            modules: as for `state`.
            has_gradient: of every rank, what the method of this name says. Where none has one, it stays None.
        """
        for number, (parameter, (_, group)) in enumerate(zip(self._now(modules), self._tied, strict=True)):
            if parameter is not None and any(row[number] for row in has_gradient):
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
                gradient = gradient.contiguous()
                group.all_reduce(gradient)
                parameter.grad = gradient

    def _now(self, modules):
        """For each tied parameter what lies in its places on this rank: a tensor, None for nothing, "other" things."""
        named = {number: dict(module.named_parameters(remove_duplicate=False)) for number, module in modules.items()}
        for places, _ in self._tied:
            own = [named[stage].get(name) for stage, name in places if stage in named]
            if not own:
                yield None
            else:
                yield own[0] if all(each is own[0] is not None for each in own) else "other things"
