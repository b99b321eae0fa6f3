"""Numbers as whole numbers of 8 bits and a scale (lesson 24)."""

from dataclasses import dataclass

import torch

LARGEST = 127  # symmetric: -128 is not used, so that -x is what x is


@dataclass(frozen=True)
class Quantized:
    """What `quantize` gives: `values` times `scale` is about the tensor.

    Attributes:
        values: int8, in the shape of the tensor.
        scale: the size of one step, float32, or float64 for such a tensor: one number, or one for each slice, in a
            shape that broadcasts.
    """

    values: torch.Tensor
    scale: torch.Tensor

    def dequantize(self):
        """The tensor again, each number off by at most half a `scale`."""
        return self.values.to(self.scale.dtype) * self.scale

    @property
    def nbytes(self):
        """Bytes of values and scales together."""
        return self.values.nbytes + self.scale.nbytes


def quantize(x, dim=None, largest=None):
    """Round `x` to int8: symmetric, scale = max |x| / 127, values = round(x / scale).

    Args:
        x: float tensor, left as it is.
        dim: None: one scale for all of `x`. A dimension: a scale for each slice along it, as for each output channel
            of a weight (out, in) with dim=0.
        largest: what 127 stands for in place of max |x|, as calibration gives it; numbers beyond are cut off. A number
            or a tensor that broadcasts.

    Returns:
        `Quantized`. Where all is 0 the scale is 1.

    Raises:
        TypeError: `x` is no float tensor.
        ValueError: `x` or `largest` holds a number that is not finite, or `largest` is below 0.

    Source: Jacob et al., Quantization and Training of Neural Networks (2018), §2.1, with zero-point 0.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise TypeError(f"x is {getattr(x, 'dtype', type(x).__name__)}: a float tensor is needed")
    x = x.float() if x.itemsize < 4 else x  # 127 steps and their size need more digits than half precision has
    if largest is None:
        others = [d for d in range(x.dim()) if dim is None or d != dim % x.dim()]
        some = x if x.numel() else x.new_zeros([1 if d in others else size for d, size in enumerate(x.shape)])
        largest = some.abs().amax(others, keepdim=dim is not None)
    largest = torch.as_tensor(largest, dtype=x.dtype, device=x.device)
    if not (torch.isfinite(largest) & (largest >= 0)).all() or not torch.isfinite(x).all():
        raise ValueError("x and largest: finite numbers are needed, and largest of at least 0")
    scale = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    # A largest so small that a 127th of it is 0 has no scale.
    scale = scale.clamp(min=torch.finfo(x.dtype).tiny)
    return Quantized((x / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale)
