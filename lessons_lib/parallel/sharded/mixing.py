"""Whether an optimiser can step a part of a tensor alone: tried out, so that it holds for optimisers of anybody."""

import torch


def check_steps_alone(optimizer_class, group_options, options):
    """Raise unless three steps of a tensor in one piece are those of the same numbers in two pieces.

    Adam treats every number by itself. Muon, Adafactor, LARS or LBFGS do not: their step of a number depends on others.

    Args:
        optimizer_class: of `torch.optim.Optimizer`.
        group_options: of one parameter group, without its parameters.
        options: the arguments of the optimiser.

    Raises:
        ValueError: the steps differ, or cannot be done in pieces.
    """
    start = torch.linspace(-1, 1, 24, dtype=torch.float64)
    whole, first, second = start.view(4, 6).clone(), start[:7].clone(), start[7:].clone()
    problem = "its step of one number depends on other numbers"
    try:
        for tensors in ([whole], [first, second]):
            _train(optimizer_class([{**group_options, "params": tensors}], **options), tensors)
        is_same = torch.allclose(whole.view(-1), torch.cat([first, second]), rtol=1e-9, atol=0)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        is_same, problem = False, f"it cannot step a part of a tensor ({error})"
    if not is_same:
        raise ValueError(
            f"optimizer_class={optimizer_class.__name__}: {problem}. One that treats each number by itself is needed, "
            "such as SGD or Adam"
        )


def _train(optimizer, tensors):
    """Three steps along gradients that are given, and of which some are large."""
    for number in range(3):
        gradient = torch.linspace(0.5, 9.0, 24, dtype=torch.float64).mul(number + 1).sin().exp()
        parts = gradient.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.grad = part.view(tensor.shape).clone()
        optimizer.step()
