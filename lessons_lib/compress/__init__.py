"""Less of a model, and less of its gradients: fewer bits, fewer numbers, a smaller model (lesson 24).

| file | what is left out |
|---|---|
| `quantize` | bits: whole numbers from -127 to 127 and a scale |
| `int8_linear` | bits of a layer's weights and inputs, with scales from calibration |
| `prune` | weights that are small, one by one, or whole units |
| `distill` | the model: a small one learns what the large one says |
| `feedback` | what hooks of `DataParallel` that compress gradients share: what one step leaves out, the next adds |
| `int8_gradients`, `top_k`, `power_sgd` | such hooks: fewer bits, the largest numbers, a low rank |
"""

from .distill import distillation_loss
from .int8_gradients import Int8Gradients
from .int8_linear import Int8Linear, calibrate, quantize_linears
from .power_sgd import PowerSGD
from .prune import drop_units, prune, sparsity
from .quantize import Quantized, quantize
from .top_k import TopK

__all__ = [
    "Int8Gradients",
    "Int8Linear",
    "PowerSGD",
    "Quantized",
    "TopK",
    "calibrate",
    "distillation_loss",
    "drop_units",
    "prune",
    "quantize",
    "quantize_linears",
    "sparsity",
]
