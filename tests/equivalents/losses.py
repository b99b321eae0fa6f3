"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "measured_gradient": {
        "h = torch.finfo(x.dtype).eps ** (1 / {3 → 4})": "the error h² ≈ 1e-8 leaves six digits right",
        "h = torch.finfo(x.dtype).eps ** (1 / {3 → 2})": "the error eps / h ≈ 1e-8 leaves six digits right",
        "for unit in torch.eye(x.numel(){, dtype=x.dtype → }):": "a step in float32 leaves six digits right",
    },
    "cross_entropy_gradient": {
        "gradient[rows, y[rows]] {-= → = gradient[rows, y[rows]] -} 1": "with an index, -= is written back like this",
    },
}
