"""Whether tensors of several ranks hold the same numbers, found out by telling two numbers of each."""

import torch

NUM_READ = 1024  # of a larger tensor: enough to tell batches and weights apart, and read in microseconds
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, lie evenly, and never all in one column
NEARLY = 1e-6  # what other processors may round otherwise


def fingerprint(tensor):
    """Two numbers for a tensor: a weighted sum of up to 1,024 of its numbers, and the sum of their sizes."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() > NUM_READ:
        places = torch.arange(1.0, NUM_READ + 1, dtype=torch.float64) * GOLDEN % 1 * flat.numel()
        flat = flat[places.long().to(flat.device)]
    flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat
    numbers = flat.cpu().double()
    weights = torch.arange(1.0, len(numbers) + 1, dtype=torch.float64).cos()
    return (weights * numbers).sum().item(), numbers.abs().sum().item()


def are_alike(fingerprints):
    """Whether they are those of tensors that hold the same numbers, but for rounding."""
    first, size = fingerprints[0]
    for other, its_size in fingerprints[1:]:
        is_same = first == other or (first != first and other != other)
        if not is_same and not abs(first - other) <= NEARLY * max(size, its_size):
            return False
    return True
