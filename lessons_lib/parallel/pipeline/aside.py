"""Gradients of earlier steps, kept apart from those of the step under way."""

import torch


class SetAside:
    """Takes the gradients of parameters away. Later they come back alone, or with what was added meanwhile.

    Args:
        parameters: tensors, whose `.grad` is None from now on.
    """

    def __init__(self, parameters):
        self._before = [(parameter, parameter.grad) for parameter in parameters]
        for parameter, _ in self._before:
            parameter.grad = None

    def restore(self):
        """Put them back as they were: what came meanwhile is gone."""
        for parameter, before in self._before:
            parameter.grad = before

    @torch.no_grad()
    def merge(self):
        """Add what came meanwhile."""
        for parameter, before in self._before:
            if before is not None:
                own = parameter.grad
                parameter.grad = before if own is None else _sum(before, own)


def _sum(before, own):
    """In place where it can be: others may look at the tensor."""
    return before + own if before.is_sparse or before.dtype != own.dtype else before.add_(own)
