"""Data that needs no download, and the sampler that deals it out to ranks."""

import math
from numbers import Integral

import torch
from torch.nn import functional


def digits(dtype=torch.float32, flat=True, seed=0, test_fraction=0.2):
    """The 1,797 handwritten digits of scikit-learn, 8 × 8 pixels, shuffled and split.

    dtype: float type of the pixels, which lie in 0..1. flat: pixels as (N, 64), otherwise (N, 1, 8, 8).
    seed: of the shuffle. test_fraction: share of the samples held out, 0 ≤ test_fraction < 1.
    Returns (x_train, y_train, x_test, y_test); y: class numbers 0..9, int64 (N,). Raises ValueError.
    """
    from sklearn.datasets import load_digits

    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must be at least 0 and below 1, not {test_fraction}")
    source = load_digits()
    order = torch.randperm(len(source.target), generator=torch.Generator().manual_seed(seed))
    x = torch.from_numpy(source.images).to(dtype)[order] / 16
    y = torch.from_numpy(source.target).long()[order]
    x = x.flatten(1) if flat else x.unsqueeze(1)
    num_train = len(y) - int(len(y) * test_fraction)
    return x[:num_train], y[:num_train], x[num_train:], y[num_train:]


def digits_28(dtype=torch.float32, seed=0, test_fraction=0.2):
    """`digits` enlarged to 28 × 28 (bilinear), for models made for MNIST; the same samples, the same split.

    Arguments, returns and errors as `digits`, but x is (N, 1, 28, 28).
    """
    x_train, y_train, x_test, y_test = digits(dtype, flat=False, seed=seed, test_fraction=test_fraction)
    x_train, x_test = (
        functional.interpolate(x, size=(28, 28), mode="bilinear", align_corners=False) for x in (x_train, x_test)
    )
    return x_train, y_train, x_test, y_test


def regression(num_samples, num_features, noise=0.1, seed=0, condition=None, dtype=torch.float32):
    """A linear problem with a known answer: y = X w + noise · ε, with ε ~ N(0, 1).

    noise: standard deviation of the error, ≥ 0. seed: of everything random.
    condition: λmax/λmin of XᵀX / num_samples, with λmax = 1: how elongated the valley is (≥ 1; needs
    num_samples ≥ num_features). None: X is standard normal.
    Returns (x, y, true_w) of shapes (num_samples, num_features), (num_samples,), (num_features,).
    Raises ValueError. Lesson 01.
    """
    if num_samples < 1 or num_features < 1:
        raise ValueError(f"num_samples and num_features must be at least 1, not {num_samples} and {num_features}")
    if not noise >= 0:
        raise ValueError(f"noise must be at least 0, not {noise}")
    random = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    x = torch.randn(num_samples, num_features, **random)
    if condition is not None:
        if not condition >= 1 or num_samples < num_features:
            raise ValueError(
                f"condition must be at least 1, with num_samples ≥ num_features, not condition={condition}, "
                f"num_samples={num_samples}, num_features={num_features}"
            )
        left, _, right = torch.linalg.svd(x, full_matrices=False)
        eigenvalues = torch.logspace(0, -math.log10(condition), num_features, dtype=x.dtype)
        x = left * (eigenvalues * num_samples).sqrt() @ right
    true_w = torch.randn(num_features, **random)
    y = x @ true_w + noise * torch.randn(num_samples, **random)
    return x.to(dtype), y.to(dtype), true_w.to(dtype)


def augmented(records, size=28, degrees=15.0, generator=None):
    """Make training pictures of records: decode, rotate each by an angle of its own, shrink. A loader's work.

    records: uint8 (N, 1 + S·S), a byte for the class and a square grey picture, as an array or tensor.
    size: side of the pictures that come out; it divides S. degrees: angles are uniform in ±degrees.
    generator: of torch, for the angles; None takes torch's own.
    Returns (x, y): x float32 (N, 1, size, size) in 0..1; y class numbers, int64 (N,). Raises ValueError. Lesson 09.
    """
    records = torch.as_tensor(records)
    side = math.isqrt(max(0, records.shape[-1] - 1))
    if records.dtype != torch.uint8 or records.ndim != 2 or side * side + 1 != records.shape[1] or not side:
        raise ValueError(f"records must be uint8 (N, 1 + S·S), not {records.dtype} {tuple(records.shape)}")
    if size < 1 or side % size:
        raise ValueError(f"size must divide the side of the pictures, {side}, not be {size}")
    if not len(records):
        return torch.zeros(0, 1, size, size), records[:, 0].long()
    x = records[:, 1:].float().div_(255).view(-1, 1, side, side)
    angle = (2 * torch.rand(len(x), generator=generator) - 1) * math.radians(degrees)
    turn = torch.stack([angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle], dim=1)
    grid = functional.affine_grid(turn.view(-1, 2, 3), x.shape, align_corners=False)
    x = functional.grid_sample(x, grid, align_corners=False)
    return functional.avg_pool2d(x, side // size), records[:, 0].long()


class RankSampler:
    """Deals the indices of a data set to ranks, so that all ranks together take the steps of one process.

        global batch b = order[b·B : (b+1)·B],  rank r takes every world_size-th of it, from the r-th

    Iterating gives a list of indices a step: the same number of steps on every rank, and every index exactly
    once over all ranks. The last global batch may be short: then shares differ by one, or are empty.

    num_samples: size of the data set. rank, world_size: who asks, of how many.
    batch_size: B, the samples of one step of *all ranks together*.
    shuffle: `order` is a permutation drawn from (seed, epoch), the same on every rank; otherwise 0, 1, 2, ...
    Communication: none; each rank computes the whole order.
    Raises ValueError, TypeError.
    Differs from torch's DistributedSampler: no index is repeated or dropped to even out the ranks, and
    batch_size is global. Passes as `batch_sampler` to a DataLoader. Lesson 12.
    """

    def __init__(self, num_samples, rank, world_size, batch_size, shuffle=True, seed=0):
        for name, value, low in (
            ("num_samples", num_samples, 0),
            ("world_size", world_size, 1),
            ("rank", rank, 0),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if not isinstance(value, Integral):
                raise TypeError(f"{name} must be an int, not {value!r}")
            if value < low:
                raise ValueError(f"{name} must be at least {low}, not {value}")
        if rank >= world_size:
            raise ValueError(f"rank must be below world_size={world_size}, not {rank}")
        self.num_samples, self.rank, self.world_size = num_samples, rank, world_size
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.epoch = self.step = self._resume_at = 0

    def __len__(self):
        """Steps in an epoch, the same on every rank."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self):
        order = torch.arange(self.num_samples)
        if self.shuffle:
            epoch_seed = (self.seed * 1_000_003 + self.epoch) % 2**63
            order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(epoch_seed))
        start, self._resume_at = self._resume_at, 0
        for step in range(start, len(self)):
            self.step = step + 1
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield batch[self.rank :: self.world_size].tolist()

    def set_epoch(self, epoch):
        """Choose the epoch whose order comes next. After `load_state_dict`, the saved epoch goes on."""
        if not isinstance(epoch, Integral) or epoch < 0:
            raise ValueError(f"epoch must be an int of at least 0, not {epoch!r}")
        if epoch != self.epoch:
            self.epoch, self.step, self._resume_at = epoch, 0, 0

    def state_dict(self):
        """Where this sampler stands: the steps handed out, and what decides the order. Equal on all ranks."""
        names = ("epoch", "step", "seed", "shuffle", "num_samples", "batch_size")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state):
        """Go on where `state` was taken, also with another world_size: the next iteration skips those steps.

        Raises ValueError when `state` is of another data set or batch size, since steps would not line up.
        """
        for name in ("num_samples", "batch_size"):
            if state[name] != getattr(self, name):
                raise ValueError(f"state has {name}={state[name]}, this sampler {getattr(self, name)}")
        self.seed, self.shuffle, self.epoch = state["seed"], state["shuffle"], state["epoch"]
        self.step = self._resume_at = state["step"]


def batches(sampler, *tensors):
    """Iterate over `(x[indices], y[indices], ...)`, one tuple a step of `sampler`.

    sampler: gives lists of indices, such as `RankSampler`. tensors: at least one, all of the same length.
    Raises ValueError.
    """
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) != 1:
        raise ValueError(f"tensors must be at least one, and of the same length, not of lengths {lengths}")
    for indices in sampler:
        index = torch.tensor(indices, dtype=torch.long, device=tensors[0].device)
        yield tuple(tensor[index] for tensor in tensors)
