"""Linear layers whose weight gradient is put off until somebody has time for it (lesson 16)."""

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class WeightsLater(TorchFunctionMode):
    """Within it, backward of `F.linear` computes the gradient of the input alone; `compute` then does the weights'.

    With y = x Wᵀ + b and the gradient g of y, the input gets g W at once, and W gets gᵀ x later. All else, biases too,
    gets its gradient at once: that is a small part of the work.

    Where somebody looks at what autograd does with the weight, nothing is put off: hooks on it, on saved tensors (as
    `torch.utils.checkpoint` has them), autocast, transforms of `torch.func`, and any backward but `backward` here.

    Source: Qi et al., Zero Bubble Pipeline Parallelism (2023), §2.
    """

    def __init__(self):
        super().__init__()
        self._put_off = []  # (weight, x, gradient of the output), and how often each had been changed in place
        self._may_put_off = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and not _is_watched():
            x, weight, bias = _arguments(*args, **(kwargs or {}))
            if _is_plain(x, weight, bias):
                return _Linear.apply(x, weight, bias, self)
        return func(*args, **(kwargs or {}))

    def backward(self, output, gradient):
        """Do the backward pass whose weight gradients may come later."""
        self._may_put_off = True
        try:
            torch.autograd.backward(output, gradient)
        finally:
            self._may_put_off = False

    def puts_off(self, weight):
        """Whether, in the backward pass under way, the gradient of `weight` can wait."""
        hooks = weight._backward_hooks or weight._post_accumulate_grad_hooks
        return self._may_put_off and not hooks and not torch.is_grad_enabled()

    def keep(self, *tensors):
        self._put_off.append((tensors, [tensor._version for tensor in tensors]))

    def compute(self):
        """Add all that was put off to the weights' gradients, as autograd would."""
        gradients = {}
        with torch.no_grad():
            for tensors, versions in self._put_off:
                if versions != [tensor._version for tensor in tensors]:
                    raise RuntimeError(
                        "one of the variables needed for gradient computation has been modified by an inplace "
                        f"operation: a weight of shape {tuple(tensors[0].shape)}, or what came into its layer, between "
                        "the steps input and weight"
                    )
                weight, own = tensors[0], _of_weight(*tensors[1:])
                gradients[weight] = gradients[weight].add_(own) if weight in gradients else own
        self._put_off.clear()
        gradients = {weight: own for weight, own in gradients.items() if weight.requires_grad}
        if gradients:
            torch.autograd.backward(list(gradients), list(gradients.values()))


def _is_watched():
    """Whether somebody else looks at what autograd keeps, or at what this layer computes."""
    # Torch has no public way to ask for hooks on saved tensors, and for transforms under way.
    return (
        torch.compiler.is_compiling()  # first: a compiler cannot follow the others
        or not torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled(_accelerator())
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def _accelerator():
    found = torch.accelerator.current_accelerator()
    return "cuda" if found is None else found.type


def _is_plain(x, weight, bias):
    """Whether it is a linear layer as most are: a trained matrix, dense real numbers of one dtype."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    return (
        weight.requires_grad
        and weight.is_leaf
        and weight.dim() == 2
        and (bias is None or bias.shape == weight.shape[:1])
        and all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)
        and all(tensor.layout == torch.strided and tensor.dtype == weight.dtype for tensor in tensors)
        and weight.is_floating_point()
    )


def _arguments(input, weight, bias=None):
    return input, weight, bias


def _of_weight(x, gradient):
    return gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, later):
        ctx.save_for_backward(x, weight)
        ctx.later = later
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        of_input = gradient @ weight if ctx.needs_input_grad[0] else None
        of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
        if ctx.later.puts_off(weight):
            ctx.later.keep(weight, x.detach(), gradient)
            return of_input, None, of_bias, None
        return of_input, _of_weight(x, gradient), of_bias, None
