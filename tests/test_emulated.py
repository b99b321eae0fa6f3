"""A device that is emulated product by product: operations are counted, and take at least their time."""

import time

import pytest
import torch
from torch.nn import functional as F

from lessons_lib.devices.emulated import EmulatedDevice, operations


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.total += operations(func, args, kwargs or {}, out)
        return out


def counted(run):
    with Counted() as mode:
        run()
    return mode.total


def attended(is_causal, backward):
    q, k, v = (torch.randn(2, 4, 16, 8, requires_grad=True) for _ in range(3))

    def both():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        if backward:
            out.sum().backward()

    return counted(both)


def test_products_count_two_operations_for_each_pair():
    a, b, bias = torch.randn(5, 7), torch.randn(7, 3), torch.randn(3)
    assert counted(lambda: a @ b) == 2 * 5 * 7 * 3
    assert counted(lambda: F.linear(a, b.T, bias)) == 2 * 5 * 7 * 3
    assert counted(lambda: torch.randn(4, 5, 7) @ torch.randn(4, 7, 3)) == 4 * 2 * 5 * 7 * 3
    assert counted(lambda: (a + 1).relu().sum()) == 0
    weight = torch.randn(3, 7, requires_grad=True)
    assert counted(lambda: F.linear(a, weight).sum().backward()) == 2 * (2 * 5 * 7 * 3)


def test_attention_counts_its_two_products_and_five_backward_and_half_where_it_is_causal():
    product = 2 * 2 * 4 * 16 * 16 * 8
    assert attended(False, backward=False) == 2 * product and attended(True, backward=False) == product
    assert attended(False, backward=True) == 7 * product and attended(True, backward=True) == 3.5 * product


def test_it_takes_at_least_as_long_as_the_device_would_and_computes_the_same():
    a = torch.randn(32, 32)
    start_s = time.perf_counter()
    with EmulatedDevice(flops=2e6, half_flops=1e4):
        found = a @ a @ a
    assert time.perf_counter() - start_s >= 2 * (2 * 32**3 + 1e4) / 2e6 - 1e-3  # shorter sleeps are left to the next
    assert torch.equal(found, a @ a @ a)


@pytest.mark.parametrize("numbers", [(0,), (-1e9,), (float("nan"),), (1e9, -1.0)])
def test_a_device_that_cannot_be_is_refused(numbers):
    with pytest.raises(ValueError, match="is needed"):
        EmulatedDevice(*numbers)
