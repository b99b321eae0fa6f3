"""What a gradient tells of the samples that made it: the picture itself (lesson 25)."""

from typing import NamedTuple

import torch

from ..errors import check_whole


def input_of_linear(weight_gradient, bias_gradient):
    """Read the input of a linear layer z = W x + b off the gradient of one sample's loss, exactly.

    As ∂L/∂W = (∂L/∂z) xᵀ and ∂L/∂b = ∂L/∂z, every row of the one divided by its number of the other is x. Scaling both,
    as clipping does, changes nothing. Of a batch it is a mean of the inputs, weighed by the row's ∂L/∂z.

    Args:
        weight_gradient: ∂L/∂W, (outputs, inputs).
        bias_gradient: ∂L/∂b, (outputs,).

    Returns:
        x, (inputs,), from the row with the largest ∂L/∂z.

    Raises:
        ValueError: shapes do not fit; the gradient is 0, which tells nothing.

    Source: Phong et al., Privacy-Preserving Deep Learning via Additively Homomorphic Encryption (2018), §III.
    """
    if weight_gradient.dim() != 2 or bias_gradient.shape != weight_gradient.shape[:1]:
        shapes = tuple(weight_gradient.shape), tuple(bias_gradient.shape)
        raise ValueError(f"weight_gradient, bias_gradient of shapes {shapes}: (outputs, inputs), (outputs,) are needed")
    row = int(bias_gradient.abs().argmax())
    if bias_gradient[row] == 0:
        raise ValueError("bias_gradient is 0: a sample whose loss moves the layer is needed")
    return weight_gradient[row] / bias_gradient[row]


def label_of(bias_gradient):
    """Read the class off the last layer's bias gradient of one sample: softmax(z) − onehot(y), below 0 at y alone.

    Args:
        bias_gradient: of the layer whose outputs are the logits of a cross entropy, (classes,).

    Raises:
        ValueError: not exactly one number is below 0: several samples, noise, or another loss.

    Source: Zhao et al., iDLG: Improved Deep Leakage from Gradients (2020), §3.
    """
    below = (bias_gradient < 0).nonzero().flatten()
    if len(below) != 1:
        raise ValueError(f"bias_gradient has {len(below)} numbers below 0: exactly one is needed, as of one sample")
    return int(below)


class Rebuilt(NamedTuple):
    """Inputs that were made to fit a gradient.

    Attributes:
        x: of the shape that was asked for.
        mismatch: what is left between their gradient and the one that was seen.
    """

    x: torch.Tensor
    mismatch: float


def match_gradients(module, loss, seen, y, shape, num_steps=100, num_starts=1, by="squares", generator=None):
    """Look for inputs whose gradient is the one that was seen, starting from noise: `num_steps` steps of L-BFGS.

        squares:  Σ_k ‖∇_k L(x) − g_k‖²          cosine:  1 − ⟨∇L(x), g⟩ / (‖∇L(x)‖ ‖g‖), which no scaling misleads

    Args:
        module: as it was when the gradient was made, and twice differentiable: sigmoid or tanh, not ReLU.
        loss: `loss(module(x), y)`.
        seen: the gradient g: a tensor for each parameter, in order.
        y: what is known of the targets, (B,), such as from `label_of`.
        shape: of the inputs, (B, …).
        num_steps: of at most 20 evaluations each.
        num_starts: how many times to begin, from other noise; the best is taken.
        by: "squares" or "cosine".
        generator: of torch, for the noise; None takes torch's own.

    Returns:
        `Rebuilt`.

    Raises:
        ValueError: an argument is out of range.

    Source: Zhu et al., Deep Leakage from Gradients (2019), algorithm 1; cosine: Geiping et al. (2020), equation 4.
    """
    check_whole("num_steps", num_steps, 1)
    check_whole("num_starts", num_starts, 1)
    parameters, seen = list(module.parameters()), list(seen)
    if [tuple(g.shape) for g in seen] != [tuple(p.shape) for p in parameters]:
        raise ValueError(f"seen of {len(seen)} tensors: one for each parameter and of its shape is needed")
    if by not in ("squares", "cosine"):
        raise ValueError(f'by={by!r}: "squares" or "cosine" is needed')

    def mismatch(x):
        own = torch.autograd.grad(loss(module(x), y), parameters, create_graph=True)
        a, b = (torch.cat([g.flatten() for g in gradient]) for gradient in (own, seen))
        return (a - b).square().sum() if by == "squares" else 1 - torch.cosine_similarity(a, b, dim=0)

    starts = [torch.randn(shape, generator=generator, dtype=seen[0].dtype) for _ in range(num_starts)]
    return min((_fit(mismatch, x, num_steps) for x in starts), key=lambda rebuilt: rebuilt.mismatch)


def _fit(mismatch, x, num_steps):
    x.requires_grad_(True)
    optimizer = torch.optim.LBFGS([x], history_size=50, line_search_fn="strong_wolfe", tolerance_grad=0)

    def closure():
        value = mismatch(x)
        (x.grad,) = torch.autograd.grad(value, [x])
        return value

    best = Rebuilt(x.detach().clone(), float("inf"))
    for _ in range(num_steps):
        optimizer.step(closure)
        left = mismatch(x).item()
        if not left < best.mismatch:  # nan as well: it has run away, or can go no further
            break
        best = Rebuilt(x.detach().clone(), left)
    return best


def picture_distance(rebuilt, true):
    """How far pictures are from the true ones: the root mean square over pixels, in units of brightness, per picture.

    Which picture of a batch is which is taken at its best: the pairs that make the sum of squares smallest.

    Args:
        rebuilt, true: (B, …), of one shape.

    Returns:
        (B,), for each true picture; 0 if it is there exactly. Guessing a grey picture gives about 0.3 for digits.

    Raises:
        ValueError: shapes differ.
    """
    from scipy.optimize import linear_sum_assignment  # a third of a second, for those alone who need it

    if rebuilt.shape != true.shape or not len(true):
        shapes = tuple(rebuilt.shape), tuple(true.shape)
        raise ValueError(f"rebuilt, true of shapes {shapes}: one shape is needed, of at least one picture")
    apart = (true.flatten(1)[:, None] - rebuilt.flatten(1)[None]).square().mean(2)
    rows, columns = linear_sum_assignment(apart.numpy())
    return apart[rows, columns].sqrt()
