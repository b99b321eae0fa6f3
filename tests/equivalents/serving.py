"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "kv_cache": {
        "return (weights.{unsqueeze → unsqueeze_}(1) @ values).squeeze(1), keys, values": "nobody sees weights again",
    },
    "next_batch": {
        "num_free {-= → = num_free -} needed": "a number is never changed in place",
    },
}
