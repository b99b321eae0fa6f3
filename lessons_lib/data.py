"""Data that needs no download, and the sampler that deals it out to ranks."""

import functools
import importlib.util
import math
import os
import sys
from numbers import Real

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import default_collate

from .errors import check_whole


def digits(dtype=torch.float32, flat=True, seed=0, test_fraction=0.2):
    """Load the 1,797 handwritten digits of scikit-learn, 8 × 8 pixels, shuffled and split.

    Args:
        dtype: float type of the pixels, which lie in 0..1.
        flat: give pixels as (N, 64), otherwise as (N, 1, 8, 8).
        seed: of the shuffle.
        test_fraction: share of the samples that is held out, at least 0 and below 1.

    Returns:
        (x_train, y_train, x_test, y_test); y are class numbers 0..9, int64 (N,).

    Raises:
        ValueError: an argument is outside what is said above.
    """
    _check_is_float(dtype)
    check_whole("seed", seed, 0)
    if not isinstance(test_fraction, Real) or not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction!r}: a number of at least 0 and below 1 is needed")
    table = _table_of_digits()
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    x, y = table[order, :-1].to(dtype) / 16, table[order, -1].long()
    x = x if flat else x.unflatten(1, (1, 8, 8))
    num_train = len(y) - int(len(y) * test_fraction)
    return x[:num_train], y[:num_train], x[num_train:], y[num_train:]


def _table_of_digits():
    """Pixels, 0 to 16, and class of all digits, (1797, 65), from the file: scikit-learn takes a second to import."""
    (folder,) = importlib.util.find_spec("sklearn").submodule_search_locations
    return torch.from_numpy(np.loadtxt(os.path.join(folder, "datasets", "data", "digits.csv.gz"), delimiter=","))


def digits_28(dtype=torch.float32, seed=0, test_fraction=0.2):
    """Load `digits` enlarged to 28 × 28 (bilinear), for models made for MNIST; the same samples, the same split.

    Args:
        dtype, seed, test_fraction: as in `digits`.

    Returns:
        As `digits`, but x is (N, 1, 28, 28).

    Raises:
        ValueError: as `digits`.
    """
    x_train, y_train, x_test, y_test = digits(dtype, flat=False, seed=seed, test_fraction=test_fraction)
    x_train, x_test = (
        functional.interpolate(x, size=(28, 28), mode="bilinear", align_corners=False) for x in (x_train, x_test)
    )
    return x_train, y_train, x_test, y_test


@functools.cache
def help_pages():
    """The pages behind Python's own `help("LOOPING")` and its like, one after the other, a token for each character.

    Returns:
        (tokens, alphabet): int64 (N,), 464,551; and a text of 96 characters, of which token i is the i-th: the
        line end and what ASCII can print. Other characters are left out.
    """
    from pydoc_data.topics import topics

    alphabet = "\n" + "".join(map(chr, range(32, 127)))
    numbers = {character: number for number, character in enumerate(alphabet)}
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return torch.tensor([numbers[character] for character in text if character in numbers]), alphabet


def regression(num_samples, num_features, noise=0.1, seed=0, condition=None, dtype=torch.float32):
    """Make a linear problem with a known answer: y = X w + noise · ε, with ε ~ N(0, 1). Lesson 01.

    Args:
        num_samples, num_features: the shape of X.
        noise: standard deviation of the error, at least 0.
        seed: of everything random.
        condition: λmax/λmin of XᵀX / num_samples, with λmax = 1: how elongated the valley is. It is at least 1 and
            needs num_samples ≥ num_features. With None, X is standard normal.
        dtype: float type of what is returned; all is computed in float64.

    Returns:
        (x, y, true_w) of shapes (num_samples, num_features), (num_samples,), (num_features,).

    Raises:
        ValueError: an argument is outside what is said above.
    """
    for name, value, least in (("num_samples", num_samples, 1), ("num_features", num_features, 1), ("seed", seed, 0)):
        check_whole(name, value, least)
    for name, value, least in (("noise", noise, 0), ("condition", 1 if condition is None else condition, 1)):
        if not isinstance(value, Real) or not least <= value < math.inf:
            raise ValueError(f"{name}={value!r}: a finite number of at least {least} is needed")
    _check_is_float(dtype)
    random = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    x = torch.randn(num_samples, num_features, **random)
    if condition is not None:
        if num_samples < num_features:
            raise ValueError(f"num_samples={num_samples}: with a condition, num_features={num_features} are needed")
        left, _, right = torch.linalg.svd(x, full_matrices=False)
        eigenvalues = torch.logspace(0, -math.log10(condition), num_features, dtype=x.dtype)
        x = left * (eigenvalues * num_samples).sqrt() @ right
    true_w = torch.randn(num_features, **random)
    y = x @ true_w + noise * torch.randn(num_samples, **random)
    return x.to(dtype), y.to(dtype), true_w.to(dtype)


def _check_is_float(dtype):
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype!r}: a float type, such as torch.float32, is needed")


def augmented(records, size=28, degrees=15.0, generator=None):
    """Make training pictures of records, the work of a loader: decode, rotate each by its own angle, shrink. Lesson 09.

    Args:
        records: uint8 (N, 1 + S·S), a byte for the class and a square grey picture, as an array or tensor.
        size: side of the pictures that come out; it divides S.
        degrees: angles are uniform in ±degrees.
        generator: of torch, for the angles; None takes torch's own.

    Returns:
        (x, y): x float32 (N, 1, size, size) in 0..1; y class numbers, int64 (N,).

    Raises:
        ValueError: an argument is outside what is said above.
    """
    records = torch.as_tensor(records)
    side = math.isqrt(max(0, records.shape[-1] - 1)) if records.ndim == 2 else 0
    if records.dtype != torch.uint8 or not side or side * side + 1 != records.shape[1]:
        shape = tuple(records.shape)
        raise ValueError(f"records={records.dtype} of shape {shape}: uint8 of shape (N, 1 + S·S) is needed")
    check_whole("size", size, 1)
    if side % size:
        raise ValueError(f"size={size}: a divisor of {side}, the side of the pictures, is needed")
    if not isinstance(degrees, Real) or not math.isfinite(degrees):
        raise ValueError(f"degrees={degrees!r}: a finite number is needed")
    if not len(records):
        return torch.zeros(0, 1, size, size), records[:, 0].long()
    x = records[:, 1:].float().div_(255).view(-1, 1, side, side)
    angle = (2 * torch.rand(len(x), generator=generator) - 1) * math.radians(degrees)
    turn = torch.stack([angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle], dim=1)
    grid = functional.affine_grid(turn.view(-1, 2, 3), x.shape, align_corners=False)
    x = functional.grid_sample(x, grid, align_corners=False)
    return functional.avg_pool2d(x, side // size), records[:, 0].long()


class RankSampler:
    """Deal the indices of a data set to ranks, so that all ranks together take the steps of one process. Lesson 12.

        global batch b = order[b·B : (b+1)·B],  rank r takes every world_size-th of it, from the r-th

    Iterating gives a list of indices per step: the same number of steps on every rank, and every index exactly
    once over all ranks. The last global batch may be short: then shares differ by one, or are empty.

    It passes to a DataLoader as `batch_sampler`, or as `sampler` with batch_size=None where the data set takes lists.
    `batches` needs no loader. Differs from torch's DistributedSampler: no index is repeated or dropped to even out
    the ranks, and batch_size is global.

    Args:
        num_samples: size of the data set.
        rank, world_size: who asks, of how many.
        batch_size: B, the samples of one step of *all ranks together*.
        shuffle: draw `order` from (seed, epoch), the same on every rank; otherwise it is 0, 1, 2, ...
        seed: of the shuffle.

    Raises:
        ValueError: an argument is no whole number, or too small or large; or, when a DataLoader begins to iterate,
            it would make wrong batches of the shares.

    Communication: none; each rank computes the whole order.
    """

    STATE = ("epoch", "step", "seed", "shuffle", "num_samples", "batch_size")

    def __init__(self, num_samples, rank, world_size, batch_size, shuffle=True, seed=0):
        least = {"num_samples": (num_samples, 0), "world_size": (world_size, 1), "rank": (rank, 0)}
        least |= {"batch_size": (batch_size, 1), "seed": (seed, 0)}
        for name, (value, low) in least.items():
            check_whole(name, value, low)
        if rank >= world_size:
            raise ValueError(f"rank={rank}: a rank from 0 to {world_size - 1} is needed")
        self.num_samples, self.rank, self.world_size = num_samples, rank, world_size
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.epoch = self.step = self._resume_at = 0

    def __len__(self):
        """Steps in an epoch, the same on every rank."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self):
        # A loader does not tell its sampler who it is: only the stack says who asked for this iterator.
        self._refuse_wrong_use(sys._getframe(1))
        return self._shares()

    def _refuse_wrong_use(self, caller):
        module, loader = caller.f_globals.get("__name__"), caller.f_locals.get("loader")
        if module == "torch.utils.data.sampler":  # a BatchSampler, which would put lists into a list
            raise ValueError(
                "sampler=RankSampler: single indices are needed there, and these are lists; pass it as batch_sampler, "
                "or set batch_size=None for a data set that takes a list of indices"
            )
        smallest = self.num_samples - (len(self) - 1) * self.batch_size  # samples in the last global batch
        collates = module == "torch.utils.data.dataloader" and getattr(loader, "batch_sampler", None) is self
        if collates and loader.collate_fn is default_collate and smallest < self.world_size:
            raise ValueError(
                f"batch_sampler=RankSampler: in the last step {smallest} samples are dealt to {self.world_size} ranks, "
                "and a DataLoader cannot make a batch of no sample; use lessons_lib.data.batches, which can, or a "
                "collate_fn that takes an empty list"
            )

    def _shares(self):
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
        """Choose the epoch whose order comes next. After `load_state_dict`, the saved epoch goes on.

        Raises:
            ValueError: `epoch` is no whole number of at least 0.
        """
        check_whole("epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch, self.step, self._resume_at = epoch, 0, 0

    def state_dict(self, step):
        """Say where training stands when `step` steps of this epoch have been made; equal on all ranks.

            for step, batch in enumerate(loader, start=sampler.step): ...; state = sampler.state_dict(step + 1)

        Only the loop knows that number: a DataLoader with workers takes shares long before they are used, so the
        steps that were handed out, `self.step`, would skip what no step has seen.

        Args:
            step: the steps of this epoch that were made, those before a resume included.

        Returns:
            What decides the order, and how much of it is used: numbers, for `load_state_dict`.

        Raises:
            ValueError: so many steps were not handed out yet in this epoch.
        """
        check_whole("step", step, 0)
        if step > self.step:
            raise ValueError(f"step={step}: at most {self.step} is needed, the steps handed out in epoch {self.epoch}")
        return {name: getattr(self, name) for name in self.STATE} | {"step": step}

    def load_state_dict(self, state):
        """Go on where `state` was taken, also with another world_size: the next iteration skips those steps.

        Args:
            state: what `state_dict` gave.

        Raises:
            ValueError: `state` is of another data set or batch size, since steps would not line up, or is no state.
        """
        if not isinstance(state, dict) or not set(self.STATE) <= set(state):
            raise ValueError(f"state={state!r}: what RankSampler.state_dict gave is needed")
        for name in ("num_samples", "batch_size"):
            if state[name] != getattr(self, name):
                raise ValueError(f"state[{name!r}]={state[name]!r}: {getattr(self, name)} is needed, as here")
        for name in ("epoch", "seed", "step"):
            check_whole(f"state[{name!r}]", state[name], 0)
        self.seed, self.shuffle, self.epoch = state["seed"], state["shuffle"], state["epoch"]
        self.step = self._resume_at = state["step"]


def batches(sampler, *tensors):
    """Iterate over `(x[indices], y[indices], ...)`, one tuple per step of `sampler`; empty for an empty share.

    Args:
        sampler: gives lists of indices, such as `RankSampler`.
        tensors: at least one, all of the same length.

    Raises:
        TypeError: something is no tensor.
        ValueError: lengths differ.
    """
    for k, tensor in enumerate(tensors):
        if not isinstance(tensor, torch.Tensor) or not tensor.dim():
            raise TypeError(f"tensors[{k}] is a {type(tensor).__name__}: a torch.Tensor of samples is needed")
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) != 1:
        raise ValueError(f"tensors of lengths {lengths}: at least one, and all of the same length, are needed")
    for indices in sampler:
        index = torch.tensor(indices, dtype=torch.long, device=tensors[0].device)
        yield tuple(tensor[index] for tensor in tensors)
