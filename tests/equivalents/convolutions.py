"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "max_pool_backward": {
        "return parts.{transpose → transpose_}(1, 2).reshape(x.shape)": "nobody else holds parts",
    },
}
