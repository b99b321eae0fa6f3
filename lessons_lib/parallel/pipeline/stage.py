"""One stage of a pipeline on its rank: what it keeps of each micro-batch between forward and backward."""

from contextlib import nullcontext

import torch

from .later import WeightsLater
from .wire import check_output


class Stage:
    """Computes with one module, micro-batch by micro-batch.

    Args:
        number: which stage it is.
        is_last: whether a loss follows it.
        splits: whether backward comes in two halves: then linear layers put off the gradients of their weights.
    """

    def __init__(self, number, is_last, splits):
        self._number, self._is_last, self._splits = number, is_last, splits
        self._stash, self._later = {}, {}  # part: (input, output or loss); part: `WeightsLater`

    def forward(self, module, part, x):
        """What `module` gives for one micro-batch, without a graph that leads out of this stage."""
        x = x.detach().requires_grad_(x.is_floating_point() and self._number > 0)
        if self._splits:
            self._later[part] = WeightsLater()
        with self._later.get(part, nullcontext()):
            output = module(x)
        if not self._is_last:
            check_output(output, self._number)
        self._stash[part] = x, output
        return output.detach() if isinstance(output, torch.Tensor) else output

    def end(self, part, loss_of, num_parts):
        """Put the loss in the place of the output: `loss_of(output)`, which counts 1 / num_parts."""
        x, output = self._stash[part]
        loss = _checked(loss_of(output))
        self._stash[part] = x, loss / num_parts
        return loss.detach()

    def backward(self, part, gradient):
        """Backward through one micro-batch, from the gradient of its output or from its loss.

        Args:
            part: the micro-batch.
            gradient: of the output, None where it has none; of a loss it is 1.

        Returns:
            The gradient of what came in, or None: no number in this stage depends on it.
        """
        x, output = self._stash.pop(part)
        has_gradient = self._is_last or gradient is not None
        if has_gradient and output.requires_grad:
            backward = self._later[part].backward if part in self._later else torch.autograd.backward
            backward(output, gradient)
        return x.grad

    def weight(self, part):
        """Compute the gradients of weights that `backward` has put off, if it has."""
        if part in self._later:
            self._later.pop(part).compute()

    def forget(self):
        """Let go of a step that has broken off."""
        self._stash.clear()
        self._later.clear()


def _checked(loss):
    """The loss as one number, if it is that."""
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"loss_fn returned a {type(loss).__name__}: a tensor with one number is needed")
    if loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(f"loss_fn returned {loss.dtype} of shape {tuple(loss.shape)}: one real number is needed")
    if not loss.requires_grad:
        raise ValueError("loss_fn returned a number without a graph: one that depends on the model's output is needed")
    return loss.reshape(())
