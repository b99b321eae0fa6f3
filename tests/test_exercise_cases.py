"""Pieces for the cases of exercises are the same every time."""

import pytest
import torch

from lessons_lib.exercises.cases import DTYPES, SIZES, drawn, shuffled, spread


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_drawn_numbers_depend_on_the_seed_alone(size, dtype):
    first = drawn(size, 3, seed=4, dtype=dtype)
    torch.manual_seed(1)
    assert torch.equal(first, drawn(size, 3, seed=4, dtype=dtype))
    assert first.shape == (size, 3) and first.dtype == dtype
    assert size == 0 or not torch.equal(first, drawn(size, 3, seed=5, dtype=dtype))


def test_a_spread_tensor_has_the_same_numbers_in_other_memory():
    tensor = drawn(3, 4)
    assert torch.equal(spread(tensor), tensor)
    assert tensor.is_contiguous() and not spread(tensor).is_contiguous()


def test_items_are_shuffled_the_same_way_every_time():
    assert shuffled(range(7), seed=1) == shuffled(range(7), seed=1) != list(range(7))
    assert sorted(shuffled(range(7))) == list(range(7))
