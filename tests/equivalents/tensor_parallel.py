"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "vocabulary_loss": {
        "gradient = shifted.{exp → exp_}() / sums[0][:, None]": "the shifted logits are not needed any more",
        "gradient[rows, columns] {-= → = gradient[rows, columns] -} 1": "a tensor at an index is changed either way",
    },
}
