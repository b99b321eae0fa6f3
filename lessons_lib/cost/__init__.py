"""What a training step costs before it has run: time, bytes, memory, money and energy, at a desk or on 10,000 devices.

`predict` is one model for both ends: only the constants of the `Cluster` change (lesson 22).
"""

from .clock import Prediction, fit, model_flops, predict, timeline
from .here import measure_here
from .money import break_even_h
from .search import Budget, Candidate, search
from .shapes import Cluster, Model, Plan
from .space import memory_of
from .wires import traffic

__all__ = [
    "Budget",
    "Candidate",
    "Cluster",
    "Model",
    "Plan",
    "Prediction",
    "break_even_h",
    "fit",
    "measure_here",
    "memory_of",
    "model_flops",
    "predict",
    "search",
    "timeline",
    "traffic",
]
