"""The gradient of each sample by itself, in one pass over the batch (lesson 25)."""

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


def per_sample_gradients(module, loss, x, y):
    """Compute ∇ loss(module(x_i), y_i) for every sample i: the numbers of B backward passes, at about the cost of one.

    `torch.func.grad` makes of the loss of one sample a function that gives its gradient, and `vmap` runs that for all
    samples at once. The module sees each sample as a batch of one, so that no sample can reach another's gradient.

    Args:
        module: without batch norm. It is not changed, `.grad` neither.
        loss: of a batch of one, `loss(module(x), y)`, such as `torch.nn.functional.cross_entropy`.
        x, y: inputs (B, …) and targets (B, …), tensors.

    Returns:
        {name of a parameter: (B, *its shape)}, for those that need a gradient, as `named_parameters` orders them.

    Raises:
        ValueError: the module has batch norm; x and y are not of one length; no parameter needs a gradient.

    Memory: B gradients where an ordinary backward pass keeps one.

    Source: lesson 25; `torch.func`, per-sample gradients.
    """
    check_keeps_samples_apart(module)
    if len(x) != len(y):
        raise ValueError(f"x of {len(x)} samples, y of {len(y)}: equally many are needed")
    moving = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    if not moving:
        raise ValueError("module: at least one parameter that needs a gradient is needed")
    if not len(x):  # Poisson sampling draws empty batches, which vmap refuses
        return {name: value.new_zeros(0, *value.shape) for name, value in moving.items()}
    fixed = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    fixed |= {name: buffer.detach() for name, buffer in module.named_buffers()}

    def loss_of_one(parameters, x_i, y_i):
        return loss(functional_call(module, (parameters, fixed), (x_i.unsqueeze(0),)), y_i.unsqueeze(0))

    each = vmap(grad(loss_of_one), in_dims=(None, 0, 0), randomness="different")
    return each(moving, x, y)


def check_keeps_samples_apart(module):
    """Refuse a module in which samples meet: what is clipped would not bound what one of them can do.

    Raises:
        ValueError: it has batch norm, or instance norm that keeps statistics of the samples.
    """
    for name, layer in module.named_modules():
        mixes = isinstance(layer, _BatchNorm) or (isinstance(layer, _InstanceNorm) and layer.track_running_stats)
        if mixes:
            raise ValueError(
                f"module{name and '.' + name} is a {type(layer).__name__}, in which samples share statistics: a norm "
                "within a sample is needed, such as GroupNorm or LayerNorm"
            )


def norms(gradients):
    """The norm of each sample's whole gradient: ‖g_i‖ over all parameters together, (B,)."""
    flat = [torch.linalg.vector_norm(g.flatten(1), dim=1) if g.dim() > 1 else g.abs() for g in gradients.values()]
    return torch.linalg.vector_norm(torch.stack(flat), dim=0)


def clipped_sum(gradients, max_norm):
    """Σ_i g_i · min(1, C / ‖g_i‖): each sample is scaled to norm C at most, and only then are they added.

    Args:
        gradients: {name: (B, *shape)}, as `per_sample_gradients` gives them.
        max_norm: C, above 0 and finite.

    Returns:
        {name: (*shape)}. With one sample more or less, it moves by at most C.

    Raises:
        ValueError: `max_norm` is out of range, or a gradient has fewer bits than float32: its sum is rounded too much.
        RuntimeError: a sample's gradient is not finite: scaling cannot bound it.

    Source: Abadi et al., Deep Learning with Differential Privacy (2016), algorithm 1.
    """
    if not 0 < max_norm < float("inf"):
        raise ValueError(f"max_norm={max_norm!r}: a finite number above 0 is needed")
    for name, g in gradients.items():
        if g.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"gradients[{name!r}] is {g.dtype}: float32 or float64 is needed")
    size = norms(gradients)
    if not size.isfinite().all():
        bad = int((~size.isfinite()).nonzero()[0])
        raise RuntimeError(f"the gradient of sample {bad} has norm {size[bad].item()}: it cannot be clipped")
    factor = (max_norm / size).clamp(max=1.0)  # of a gradient of 0: infinity, thus 1
    return {name: torch.tensordot(factor.to(g.dtype), g, dims=1) for name, g in gradients.items()}
