"""A slower device, emulated product by product: what is timed on it no longer depends on this machine's cores."""

import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACK = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_SHORTEST_S = 1e-3  # shorter sleeps last longer than they should


class EmulatedDevice(TorchDispatchMode):
    """Inside `with EmulatedDevice(flops, half_flops):` a product takes at least (F + half_flops) / flops seconds.

    F are its operations, 2 per multiplication and addition; causal attention counts half of its scores.

    What this thread computes is real; it sleeps for what the device would need beyond that. What lies between two
    products counts towards the next one, so that it takes no time of its own unless it takes longer than the products.
    A trace shows the sleeping as part of what computes.

    Args:
        flops: operations per second of the device in large products.
        half_flops: a product of so many operations reaches half of them.

    Raises:
        ValueError: `flops` is not above 0, or `half_flops` is below.
    """

    def __init__(self, flops, half_flops=0.0):
        if not flops > 0:
            raise ValueError(f"flops={flops!r}: a number above 0 is needed")
        if not half_flops >= 0:
            raise ValueError(f"half_flops={half_flops!r}: a number of at least 0 is needed")
        super().__init__()
        self.flops, self.half_flops, self._owed_s = flops, half_flops, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        start_s = time.perf_counter()
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        number = operations(func, args, kwargs, out)
        least_s = (number + self.half_flops) / self.flops if number else 0.0
        self._owed_s += least_s - (time.perf_counter() - start_s)
        if self._owed_s > _SHORTEST_S:
            slept_s = time.perf_counter()
            time.sleep(self._owed_s)
            self._owed_s -= time.perf_counter() - slept_s
        return out


def operations(func, args, kwargs, out):
    """How many operations the products of one operator of torch take; 0 where it has none."""
    packet = func._overloadpacket
    if packet is _ATTENTION:
        (q, k, v), (_, is_causal) = args[:3], (*args[3:], 0.0, False)[:2]
        return sdpa_flop_count(q.shape, k.shape, v.shape) * (0.5 if is_causal else 1)
    if packet is _ATTENTION_BACK:  # computes the scores once more
        _, q, k, v, *_, is_causal = args
        return 2.5 * sdpa_flop_count(q.shape, k.shape, v.shape) * (0.5 if is_causal else 1)
    count = flop_registry.get(packet)
    return count(*args, **kwargs, out_val=out) if count else 0
