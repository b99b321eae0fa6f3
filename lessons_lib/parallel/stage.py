"""One stage of a pipeline on its rank: what it keeps of each micro-batch between forward and backward."""

from contextlib import nullcontext

import torch

from .later import WeightsLater


class Stage:
    """Computes with one module, micro-batch by micro-batch.

    Args:
        module: an `nn.Module` that maps one tensor to one tensor.
        number: which stage it is, for errors.
        splits: whether backward comes in two halves: then linear layers put off the gradients of their weights.
    """

    def __init__(self, module, number, splits):
        self.module, self._number, self._splits = module, number, splits
        self._stash, self._later = {}, {}  # part: (input, output or loss); part: `WeightsLater`

    def forward(self, part, x):
        """The output for one micro-batch, without a graph that leads out of this stage."""
        x = x.detach().requires_grad_(x.is_floating_point() and self._number > 0)
        if self._splits:
            self._later[part] = WeightsLater()
        with self._later.get(part, nullcontext()):
            output = self.module(x)
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"stage {self._number} returned a {type(output).__name__}: one tensor is needed")
        self._stash[part] = x, output
        return output.detach()

    def end(self, part, loss_of, num_parts):
        """Put the loss in the place of the output: `loss_of(output)`, which counts 1 / num_parts."""
        x, output = self._stash[part]
        loss = loss_of(output)
        self._stash[part] = x, loss / num_parts
        return loss.detach()

    def backward(self, part, gradient):
        """Backward through one micro-batch, from the gradient of its output or from its loss.

        Returns:
            The gradient of what came in.
        """
        x, output = self._stash.pop(part)
        if output.requires_grad:
            torch.autograd.backward(output, gradient)
        return torch.zeros_like(x) if x.grad is None else x.grad

    def weight(self, part):
        """Compute the gradients of weights that `backward` has put off, if it has."""
        if part in self._later:
            self._later.pop(part).compute()
