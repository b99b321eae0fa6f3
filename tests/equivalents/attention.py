"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "attention_in_blocks": {
        "top = torch.full((len(q), 1), -math.inf{, dtype=q.dtype → })": "the maximum with the scores has their type",
        "total = torch.zeros(len(q), 1{, dtype=q.dtype → })": "a sum with a tensor of float64 is of float64",
        "total = torch.{zeros → ones}(len(q), 1, dtype=q.dtype)": "the first block multiplies it by exp(−∞) = 0",
        "out = torch.zeros(len(q), v.shape[1]{, dtype=q.dtype → })": "a sum with a tensor of float64 is of float64",
        "out = torch.{zeros → ones}(len(q), v.shape[1], dtype=q.dtype)": "the first block multiplies it by exp(−∞) = 0",
    },
}
