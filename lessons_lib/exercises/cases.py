"""What the cases of an exercise are made of, beside those by hand: sizes, world sizes, and tensors of a fixed seed."""

import torch

SIZES = 0, 1, 7, 12  # nothing, one, a prime, and one that many numbers divide
WORLD_SIZES = 1, 2, 3, 6, 7
DTYPES = torch.float32, torch.float64, torch.bfloat16


def drawn(*shape, seed=0, dtype=torch.float32):
    """Draw normal numbers that depend on the seed alone, not on what was drawn before; a tensor of shape `shape`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def full_range(*shape, seed=0, dtype=torch.float32):
    """Draw a tensor that survives no detour over another dtype or a filter: all bits of integers; nan or ±inf among
    more than three real numbers, the others as large as `dtype` allows."""
    if not dtype.is_floating_point:
        low, high = (0, 2) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    numbers = drawn(*shape, seed=seed, dtype=dtype).clamp(-4, 4) * (torch.finfo(dtype).max / 4)
    if numbers.numel() > 3:
        numbers.view(-1)[seed % numbers.numel()] = float(("nan", "inf", "-inf")[seed % 3])
    return numbers


def spread(tensor):
    """Copy a tensor so that its numbers do not lie next to one another in memory: shape and values stay."""
    wide = tensor.new_zeros(*tensor.shape, 2)
    wide[..., 0] = tensor
    return wide[..., 0]


def shuffled(items, seed=0):
    """The items as a list in an order that depends on the seed alone."""
    items = list(items)
    return [items[i] for i in torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))]
