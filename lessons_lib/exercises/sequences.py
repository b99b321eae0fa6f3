"""Exercises of lesson 06: clipping by the global norm, and the GRU of 2014."""

import math

import torch

from lessons_lib.exercises.cases import drawn, spread
from lessons_lib.exercises.core import Exercise, Outcome, edit


def clip_gradients(gradients, max_norm):
    """Shorten the gradients of a model to a total length of at most `max_norm`, in place.

    gradients: list of tensors of any shapes, changed in place, together one long vector. max_norm: > 0.
    Their direction stays, and so do gradients that are short enough, and the list itself.
    Returns the length that the vector had before, a number.
    """
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    if norm > max_norm:
        for g in gradients:
            g *= max_norm / norm
    return norm


def _clip(fn, gradients, max_norm):
    """What is returned, and what lies afterwards in the list, and in the memory that the model looks at."""
    given, memory = list(gradients), [g.detach() for g in gradients]
    returned = fn(given, max_norm)
    others = len(given) != len(gradients) or any(g is not old for g, old in zip(given, gradients, strict=False))
    faults = ["puts other tensors into the list: change those that were given"] * others
    faults += ["makes a gradient require gradients itself"] * any(g.requires_grad for g in gradients)
    return Outcome({"returned": returned, "gradients": memory}, faults=faults)


def _gradient_lists():
    """3-4-12 and its length 13; a short one; a matrix, a vector and a number; zeros, and an empty tensor; no entry too
    long, but all together; lengths and limits on either side of 1; numbers far apart in memory."""
    return [
        ([torch.tensor([3.0, 4.0]), torch.tensor([12.0])], 6.5),
        ([torch.tensor([0.3, -0.4]), torch.tensor([[0.0]])], 2.0),
        ([5 * drawn(*shape, seed=seed) for seed, shape in enumerate([(4, 3), (5,), ()])], 2.0),
        ([torch.zeros(3), torch.zeros(0, 2)], 0.5),
        ([torch.tensor([3.0, 4.0]), torch.tensor([12.0])], 12.5),
        ([torch.tensor([0.9, 1.2])], 1.75),
        ([torch.tensor([0.48]), torch.tensor([0.64])], 0.5),
        ([spread(drawn(3, 4)), drawn(4, 3, seed=1).T], 1),
        ([drawn(2, 3, dtype=torch.float64)], 0.25),
    ]


_LENGTH = "math.sqrt(sum(g.square().sum().item()"

clip_gradients = Exercise(
    clip_gradients,
    _gradient_lists,
    [
        edit(
            *("if norm > max_norm:", "if norm > 0:"),
            *("max_norm / norm", "min(1.0, max_norm / max(g.norm().item(), 1e-12))"),
            "Each tensor is clipped by its own norm, which turns the direction of the whole. One norm, one factor.",
        ),
        edit(
            "if norm > max_norm:", "if norm > 0:", "This also *lengthens* short gradients: they must stay as they are."
        ),
        edit(
            *("if norm > max_norm:", "if True:"),
            "This also *lengthens* short gradients, and divides by the 0 of zeros. Below max_norm nothing changes.",
        ),
        edit("math.sqrt(", "float(", "A sum of squares is the square of a length: take its root."),
        edit(
            *(_LENGTH, "float(sum(g.norm().item()"),
            "Lengths of parts do not add up: 3 and 4 at right angles give 5. Add their squares.",
        ),
        edit(
            *(_LENGTH, "float(max(g.norm().item()"),
            "That is the length of the longest tensor. All of them together are one vector.",
        ),
        edit(
            *("g *= max_norm / norm", "g.clamp_(-max_norm, max_norm)"),
            "Clamping entries bends the direction. One factor for all entries keeps it.",
        ),
        edit(
            *("return norm", "return min(norm, max_norm)"),
            "Return the length *before* clipping: after it, one cannot see that it was needed.",
        ),
        edit(
            *("g *= max_norm / norm", "g = g * max_norm / norm"),
            "The tensors handed in are unchanged: `g *= …` works in place; `g = g * …` or `gradients[k] = …` does not.",
        ),
        edit("return norm", "return gradients", "The gradients are changed in place: return the length that they had."),
    ],
    [
        "Think of all tensors laid end to end: one vector, one length.",
        "norm = the root of the sum of all squares; the factor is max_norm / norm, when that is below 1.",
        "Change the tensors in place: `for g in gradients: g *= factor`. Zero gradients must not become nan.",
    ],
    outcome=_clip,
)


def gru_2014(x, h, W, U, b):
    """One step of the GRU as first published: the reset gate acts on h *before* U does.

    r = σ(W_r x + U_r h + b_r),  z = σ(W_z x + U_z h + b_z),
    n = tanh(W_n x + U_n (r ⊙ h) + b_n),  h' = z ⊙ h + (1 − z) ⊙ n

    x: (B, I). h: (B, H). W: (3H, I), U: (3H, H), b: (3H,), each with its parts in the order r, z, n.
    Returns h', (B, H), through which gradients flow back to all five.
    """
    W_r, W_z, W_n = W.chunk(3)
    U_r, U_z, U_n = U.chunk(3)
    b_r, b_z, b_n = b.chunk(3)
    r = torch.sigmoid(x @ W_r.T + h @ U_r.T + b_r)
    z = torch.sigmoid(x @ W_z.T + h @ U_z.T + b_z)
    n = torch.tanh(x @ W_n.T + (r * h) @ U_n.T + b_n)
    return z * h + (1 - z) * n


def _step(fn, x, h, W, U, b):
    """The new state, and the gradients that a combination of its numbers sends back to all that was given."""
    tensors = [tensor.requires_grad_() for tensor in (x, h, W, U, b)]
    state = fn(*tensors)
    if not isinstance(state, torch.Tensor) or not state.requires_grad:
        return Outcome(state, faults=["returns a state through which no gradient flows back"])
    combination = torch.cos(torch.arange(state.numel(), dtype=state.dtype)).view(state.shape)
    gradients = torch.autograd.grad((state * combination).sum(), tensors, allow_unused=True)
    if x.abs().max() > 100:  # a gate written as 1/(1 + exp(−x)) has a slope of 0 · ∞ there, and the right value
        return {"new state": state.detach()}
    return {"new state": state.detach(), "gradients of x, h, W, U, b": gradients}


def _steps():
    """A state of two numbers to follow by hand; two batches of one shape, with B, I and H that differ, one spread in
    memory; a state of one number; gates that are wide open or shut."""
    by_hand = torch.tensor([[1.0]]), torch.tensor([[0.5, -1.0]])
    parts = (torch.linspace(-1, 1, 6)[:, None], torch.linspace(-1, 2, 12).view(6, 2), torch.linspace(0.5, -0.5, 6))

    def batch(B, i, H, scale=1.0):
        shapes = [(B, i), (B, H), (3 * H, i), (3 * H, H), (3 * H,)]
        return tuple(scale * drawn(*shape, seed=seed, dtype=torch.float64) for seed, shape in enumerate(shapes))

    spread_out = tuple(spread(tensor) for tensor in batch(3, 4, 5, scale=0.5))
    return [(*by_hand, *parts), batch(3, 4, 5), spread_out, batch(2, 3, 1), batch(3, 2, 2, scale=100.0)]


gru_2014 = Exercise(
    gru_2014,
    _steps,
    [
        edit(
            *("(r * h) @ U_n.T", "r * (h @ U_n.T)"),
            "That is torch's form, r ⊙ (U_n h), where the reset comes after the matrix. Here r multiplies h first.",
        ),
        edit(
            *("x @ W_n.T + (r * h) @ U_n.T + b_n", "r * (x @ W_n.T + h @ U_n.T + b_n)"),
            "The reset gate shuts out the old state, not the input: W_n x + b_n stays whole.",
        ),
        edit("(r * h) @", "h @", "r is computed and then never used: the candidate sees r ⊙ h, not h."),
        edit(
            *("z * h + (1 - z) * n", "(1 - z) * h + z * n"),
            "The gates are swapped in the last line: here z keeps the old h, and 1 − z lets n in.",
        ),
        edit(
            *("z * h +", "z * (r * h) +"),
            "The reset state r ⊙ h is for the candidate alone; the last line keeps z ⊙ h itself.",
        ),
        edit(
            *("W_r, W_z, W_n =", "W_z, W_r, W_n ="),
            *("U_r, U_z, U_n =", "U_z, U_r, U_n ="),
            *("b_r, b_z, b_n =", "b_z, b_r, b_n ="),
            "The first H rows belong to r and the next H to z; here it is the other way round.",
        ),
        edit("torch.tanh(", "torch.sigmoid(", "The candidate n may be negative: tanh, not σ. Only gates use σ."),
    ],
    [
        "Cut W, U and b in three along their rows: `W_r, W_z, W_n = W.chunk(3)`.",
        "With samples as rows, W_r x for all of them is `x @ W_r.T`.",
        "n = torch.tanh(x @ W_n.T + (r * h) @ U_n.T + b_n), and z weighs h, 1 − z weighs n.",
    ],
    outcome=_step,
    rtol=1e-6,
)
