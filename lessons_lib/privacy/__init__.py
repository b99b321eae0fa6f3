"""Who may see what: training that gives nothing away, and what keeps the rest from those it is not for (lesson 25)."""

from .accountant import ORDERS, Accountant, epsilon, sampled_gaussian_rdp, sigma_for, to_epsilon
from .dp_sgd import DPSGD, poisson_batches
from .per_sample import clipped_sum, norms, per_sample_gradients

__all__ = [
    "DPSGD",
    "ORDERS",
    "Accountant",
    "clipped_sum",
    "epsilon",
    "norms",
    "per_sample_gradients",
    "poisson_batches",
    "sampled_gaussian_rdp",
    "sigma_for",
    "to_epsilon",
]
