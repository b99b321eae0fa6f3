"""The random number generators of a rank as tensors and plain values (lesson 21)."""

import random

import numpy as np
import torch


def random_state():
    """The state of the generators of torch (CPU), NumPy and Python, for `pack`."""
    kind, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": {"kind": kind, "keys": torch.from_numpy(keys.astype(np.int64)), "rest": rest},
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
    }


def set_random_state(state):
    """Let the generators go on from where `random_state` was called."""
    torch.set_rng_state(state["torch"])
    numpy, python = state["numpy"], state["python"]
    np.random.set_state((numpy["kind"], numpy["keys"].numpy().astype(np.uint32), *numpy["rest"]))
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
