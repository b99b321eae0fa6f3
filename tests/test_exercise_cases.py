"""Pieces for the cases of exercises are the same every time."""

import pytest
import torch

from lessons_lib.exercises.cases import DTYPES, SIZES, drawn, full_range, shuffled, spread


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_drawn_numbers_depend_on_the_seed_alone(size, dtype):
    first = drawn(size, 3, seed=4, dtype=dtype)
    torch.manual_seed(1)
    assert torch.equal(first, drawn(size, 3, seed=4, dtype=dtype))
    assert first.shape == (size, 3) and first.dtype == dtype
    assert size == 0 or not torch.equal(first, drawn(size, 3, seed=5, dtype=dtype))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64])
def test_the_full_range_needs_its_own_dtype(dtype):
    tensor = full_range(2, 50, seed=3, dtype=dtype)
    assert (tensor.shape, tensor.dtype) == ((2, 50), dtype)
    other = torch.float32 if dtype.itemsize == 8 else torch.int8
    assert not torch.equal(tensor.to(other).to(dtype).nan_to_num(), tensor.nan_to_num())
    assert full_range(9, dtype=torch.bool).unique().tolist() == [False, True]


@pytest.mark.parametrize(("seed", "odd"), [(0, "nan"), (1, "inf"), (2, "-inf")])
def test_one_real_number_of_the_full_range_is_none(seed, odd):
    tensor = full_range(5, seed=seed)
    assert [str(number) for number in tensor.tolist() if not -torch.inf < number < torch.inf] == [odd]


def test_a_spread_tensor_has_the_same_numbers_in_other_memory():
    tensor = drawn(3, 4)
    assert torch.equal(spread(tensor), tensor)
    assert tensor.is_contiguous() and not spread(tensor).is_contiguous()


def test_items_are_shuffled_the_same_way_every_time():
    assert shuffled(range(7), seed=1) == shuffled(range(7), seed=1) != list(range(7))
    assert sorted(shuffled(range(7))) == list(range(7))
