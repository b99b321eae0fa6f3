"""DP-SGD: training that shows the world no sample, but a clipped sum with noise on it (lesson 25)."""

import math

import torch

from ..errors import check_whole
from .per_sample import check_keeps_samples_apart, clipped_sum, per_sample_gradients


class DPSGD:
    """Gives a module's optimiser gradients from which no single sample can be told.

    In every step, of the samples i that Poisson sampling has drawn, with B the number that it draws on average,

        g = ( Σ_i g_i · min(1, C / ‖g_i‖) + σ C · z ) / B,        z ~ N(0, I), once for the sum over all ranks

    It divides by B, not by how many were drawn: that number itself tells of a sample. An empty draw is a step too, of
    noise alone. On N ranks, which start with equal weights, each draws from samples of its own, adds noise of
    σ C / √N, and the sums are added.

        private = DPSGD(module, optimizer, cross_entropy, max_norm=1.0, noise_multiplier=1.1, expected_batch_size=256)
        for batch in poisson_batches(len(x), 256 / len(x), num_steps):
            private.step(x[batch], y[batch])

    Args:
        module: without batch norm; its gradients are overwritten.
        optimizer: any of torch's, of parameters of `module`.
        loss: of a batch of one, `loss(module(x), y)`.
        max_norm: C, above 0.
        noise_multiplier: σ, at least 0; `accountant.sigma_for` finds it.
        expected_batch_size: B, over all ranks; above 0.
        generator: of torch, for the noise; None takes torch's own. Each rank needs other noise: another seed. These
            generators can be foretold from enough of their numbers; what guards real secrets needs one that cannot.
        num_ranks: N.
        all_reduce: adds a tensor over all ranks in place, such as `comm.all_reduce`; needed if N > 1.
        chunk_size: how many samples have their gradients in memory at once; None for all.

    Attributes:
        num_steps: how many steps were taken: what the accountant has to count.

    Raises:
        ValueError: an argument is out of range; the module has batch norm.
        RuntimeError: a sample's gradient is not finite.

    Communication: per step one all-reduce of all gradients that are trained.

    Source: Abadi et al., Deep Learning with Differential Privacy (2016), algorithm 1; lesson 25.
    """

    def __init__(
        self,
        module,
        optimizer,
        loss,
        *,
        max_norm,
        noise_multiplier,
        expected_batch_size,
        generator=None,
        num_ranks=1,
        all_reduce=None,
        chunk_size=None,
    ):
        check_keeps_samples_apart(module)
        check_whole("num_ranks", num_ranks, 1)
        check_whole("chunk_size", 1 if chunk_size is None else chunk_size, 1)
        _check_number("max_norm", max_norm, above=True)
        _check_number("noise_multiplier", noise_multiplier, above=False)
        _check_number("expected_batch_size", expected_batch_size, above=True)
        if num_ranks > 1 and all_reduce is None:
            raise ValueError(f"num_ranks={num_ranks}, all_reduce=None: what adds over the ranks is needed")
        self.module, self.optimizer, self.loss = module, optimizer, loss
        self.max_norm, self.noise_multiplier = max_norm, noise_multiplier
        self.expected_batch_size, self.generator = expected_batch_size, generator
        self.num_ranks, self.all_reduce, self.chunk_size = num_ranks, all_reduce, chunk_size
        self.num_steps = 0

    def step(self, x, y):
        """Take a step of the optimiser with this rank's samples x (B, …) and y (B, …), which may be none."""
        total = self.clipped_sum(x, y)
        flat = torch.cat([part.flatten() for part in total.values()])
        flat += self.noise(flat)
        if self.num_ranks > 1:
            self.all_reduce(flat)
        flat /= self.expected_batch_size
        self.optimizer.zero_grad(set_to_none=True)
        for name, parameter in self.module.named_parameters():
            if name in total:
                own, flat = flat[: parameter.numel()], flat[parameter.numel() :]
                parameter.grad = own.view_as(parameter).to(parameter.dtype)
        self.optimizer.step()
        self.num_steps += 1

    def clipped_sum(self, x, y):
        """{name: Σ of this rank's gradients, each clipped}; `chunk_size` samples at a time, as sums can be added."""
        chunks = zip(*(tensor.split(self.chunk_size or max(1, len(x))) for tensor in (x, y)), strict=True)
        total = None
        for some_x, some_y in chunks:
            part = clipped_sum(per_sample_gradients(self.module, self.loss, some_x, some_y), self.max_norm)
            total = part if total is None else {name: total[name] + part[name] for name in part}
        return total

    def noise(self, like):
        """This rank's part of the noise, shaped as `like`: N parts of variance (σ C)² / N have (σ C)² together."""
        scale = self.noise_multiplier * self.max_norm / math.sqrt(self.num_ranks)
        return scale * torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=self.generator)


def poisson_batches(num_samples, sample_rate, num_steps, generator=None):
    """Draw the samples of each step: every one is in with probability q, whatever was drawn before and beside it.

    The accountant's theorem is for this drawing. Shuffled batches of one size are another mechanism.

    Args:
        num_samples: n, from which to draw.
        sample_rate: q, from 0 to 1; a step has q · n samples on average.
        num_steps: how many.
        generator: of torch; None takes torch's own.

    Yields:
        Indices, int64, from none to n of them, in order.

    Raises:
        ValueError: an argument is out of range.
    """
    check_whole("num_samples", num_samples, 1)
    check_whole("num_steps", num_steps, 0)
    if not 0 <= sample_rate <= 1:
        raise ValueError(f"sample_rate={sample_rate!r}: a probability from 0 to 1 is needed")

    def draw():
        for _ in range(num_steps):
            # float64: of float32's draws one in 2²⁴ is 0, which would be in for every q above 0
            drawn = torch.rand(num_samples, dtype=torch.float64, generator=generator) < sample_rate
            yield drawn.nonzero().flatten()

    return draw()


def _check_number(name, value, above):
    if not 0 <= value < math.inf or (above and value == 0):
        raise ValueError(f"{name}={value!r}: a finite number {'above' if above else 'of at least'} 0 is needed")
