"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "measured_gradient": {
        "for unit in torch.eye(x.numel(){, dtype=x.dtype → }):": "a step in float32 leaves six digits right",
    },
    "cross_entropy_gradient": {
        "gradient[rows, y[rows]] {-= → = gradient[rows, y[rows]] -} 1": "with an index, -= is written back like this",
    },
}
