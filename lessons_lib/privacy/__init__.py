"""Who may see what: training that gives nothing away, and what keeps the rest from those it is not for (lesson 25)."""

from .accountant import ORDERS, Accountant, epsilon, sampled_gaussian_rdp, sigma_for, to_epsilon
from .audit import AuditLog, Tampered
from .dp_sgd import DPSGD, poisson_batches
from .leakage import Rebuilt, input_of_linear, label_of, match_gradients, picture_distance
from .masks import expand, from_fixed_point, to_fixed_point
from .membership import Attack, epsilon_from_one_run, epsilon_lower_bound, threshold_attack
from .per_sample import clipped_sum, norms, per_sample_gradients
from .roles import ROLES, Gate, Refused, Token
from .scan import Finding, entropy_bits, scan_files, scan_text
from .sealed import NotSealed, load_key, load_sealed, new_key, save_sealed, seal, unseal
from .secret import Share, join_secret, split_secret
from .secure_aggregation import Client, PublicKeys, pairwise_masks
from .secure_sum import SecureSum, secure_sum, unmask
from .tls import Authority, Identity, client_context, peer_name, server_context

__all__ = [
    "DPSGD",
    "ORDERS",
    "ROLES",
    "Accountant",
    "Attack",
    "AuditLog",
    "Authority",
    "Client",
    "Finding",
    "Gate",
    "Identity",
    "NotSealed",
    "PublicKeys",
    "Rebuilt",
    "Refused",
    "SecureSum",
    "Share",
    "Tampered",
    "Token",
    "client_context",
    "clipped_sum",
    "entropy_bits",
    "epsilon",
    "epsilon_from_one_run",
    "epsilon_lower_bound",
    "expand",
    "from_fixed_point",
    "input_of_linear",
    "join_secret",
    "label_of",
    "load_key",
    "load_sealed",
    "match_gradients",
    "new_key",
    "norms",
    "pairwise_masks",
    "peer_name",
    "per_sample_gradients",
    "picture_distance",
    "poisson_batches",
    "sampled_gaussian_rdp",
    "save_sealed",
    "scan_files",
    "scan_text",
    "seal",
    "secure_sum",
    "server_context",
    "sigma_for",
    "split_secret",
    "threshold_attack",
    "to_epsilon",
    "to_fixed_point",
    "unmask",
    "unseal",
]
