"""Who may see what: training that gives nothing away, and what keeps the rest from those it is not for (lesson 25)."""

from .accountant import ORDERS, Accountant, epsilon, sampled_gaussian_rdp, sigma_for, to_epsilon
from .dp_sgd import DPSGD, poisson_batches
from .leakage import Rebuilt, input_of_linear, label_of, match_gradients, picture_distance
from .masks import expand, from_fixed_point, to_fixed_point
from .membership import Attack, epsilon_from_one_run, epsilon_lower_bound, threshold_attack
from .per_sample import clipped_sum, norms, per_sample_gradients
from .secret import Share, join_secret, split_secret
from .secure_aggregation import Client, PublicKeys, pairwise_masks
from .secure_sum import SecureSum, secure_sum, unmask

__all__ = [
    "DPSGD",
    "ORDERS",
    "Accountant",
    "Attack",
    "Client",
    "PublicKeys",
    "Rebuilt",
    "SecureSum",
    "Share",
    "clipped_sum",
    "epsilon",
    "epsilon_from_one_run",
    "epsilon_lower_bound",
    "expand",
    "from_fixed_point",
    "input_of_linear",
    "join_secret",
    "label_of",
    "match_gradients",
    "norms",
    "pairwise_masks",
    "per_sample_gradients",
    "picture_distance",
    "poisson_batches",
    "sampled_gaussian_rdp",
    "secure_sum",
    "sigma_for",
    "split_secret",
    "threshold_attack",
    "to_epsilon",
    "to_fixed_point",
    "unmask",
]
