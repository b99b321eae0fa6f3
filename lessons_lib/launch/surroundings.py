"""What a rank finds around it: the launcher's settings as they are now, and random numbers of its own."""

import os
import random
import sys
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Surroundings:
    """Settings of the launcher that hold for its ranks, which are forked from a server that started earlier.

    Attributes:
        environment: all environment variables.
        folder: the working directory.
        import_path: `sys.path`.
        dtype: torch's default.
        seeds: drawn from the generators of torch, NumPy and Python, in this order.
    """

    environment: dict
    folder: str
    import_path: list
    dtype: torch.dtype
    seeds: tuple

    @classmethod
    def here(cls):
        """Those of this process. Drawing the seeds moves its generators on: the next launch gets others."""
        try:
            folder = os.getcwd()
        except FileNotFoundError as error:
            raise FileNotFoundError("the working directory has been deleted: os.chdir to one that exists") from error
        seeds = int(torch.randint(2**62, ()).item()), int(np.random.randint(2**62)), random.getrandbits(62)
        return cls(dict(os.environ), folder, list(sys.path), torch.get_default_dtype(), seeds)

    def enter(self, rank):
        """Make this process, rank `rank`, like the launcher, but for its random numbers."""
        for name in set(os.environ) - set(self.environment):
            del os.environ[name]
        os.environ.update(self.environment)
        os.chdir(self.folder)
        sys.path[:] = self.import_path
        torch.set_default_dtype(self.dtype)
        for_torch, for_numpy, for_python = (np.random.SeedSequence([seed, rank]) for seed in self.seeds)
        torch.manual_seed(int(for_torch.generate_state(1, np.uint64)[0]))
        np.random.seed(for_numpy.generate_state(8))
        random.seed(for_python.generate_state(8).tobytes())
