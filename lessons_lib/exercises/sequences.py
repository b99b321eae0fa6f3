"""Exercises of lesson 06: clipping by the global norm, and the GRU of 2014."""

import math

import torch

from lessons_lib.exercises.core import Exercise


def clip_gradients(gradients, max_norm):
    """Shorten the gradients of a model to a total length of at most `max_norm`, in place.

    gradients: list of tensors of any shapes, changed in place, together one long vector. max_norm: > 0.
    Their direction stays, and so do gradients that are short enough.
    Returns the length that the vector had before, a number.
    """
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
    if norm > max_norm:
        for g in gradients:
            g *= max_norm / norm
    return norm


def _length(gradients):
    return math.sqrt(sum(g.square().sum().item() for g in gradients))


def _scaled(gradients, factor):
    for g in gradients:
        g *= factor


def _each_alone(gradients, max_norm):
    """Each tensor is clipped by its own norm, which turns the direction of the whole. One norm, one factor."""
    norm = _length(gradients)
    for g in gradients:
        g *= min(1.0, max_norm / max(g.norm().item(), 1e-12))
    return norm


def _always(gradients, max_norm):
    """This also *lengthens* gradients that are short. Below max_norm nothing changes."""
    norm = _length(gradients)
    _scaled(gradients, max_norm / max(norm, 1e-12))
    return norm


def _always_even_zeros(gradients, max_norm):
    """This also *lengthens* gradients that are short, and makes zeros nan. Below max_norm nothing changes."""
    norm = _length(gradients)
    _scaled(gradients, max_norm / torch.tensor(norm))
    return norm


def _always_divides(gradients, max_norm):
    """This also *lengthens* gradients that are short, and divides by the 0 of zeros. Below max_norm nothing changes."""
    norm = _length(gradients)
    _scaled(gradients, max_norm / norm)
    return norm


def _by_the_square(gradients, max_norm):
    """Divided by the square of the norm the result is too short: the factor is max_norm/norm."""
    norm = _length(gradients)
    _scaled(gradients, min(1.0, max_norm / max(norm, 1e-12) ** 2))
    return norm


def _without_the_root(gradients, max_norm):
    """A sum of squares is the square of a length: take its root."""
    norm = _length(gradients) ** 2
    _scaled(gradients, min(1.0, max_norm / max(norm, 1e-12)))
    return norm


def _sum_of_lengths(gradients, max_norm):
    """Lengths of parts do not add up: 3 and 4 at right angles give 5. Add their squares."""
    norm = sum(g.norm().item() for g in gradients)
    _scaled(gradients, min(1.0, max_norm / max(norm, 1e-12)))
    return norm


def _longest_alone(gradients, max_norm):
    """That is the length of the longest tensor. All of them together are one vector."""
    norm = max(g.norm().item() for g in gradients)
    _scaled(gradients, min(1.0, max_norm / max(norm, 1e-12)))
    return norm


def _entries(gradients, max_norm):
    """Clamping entries bends the direction. One factor for all entries keeps it."""
    norm = _length(gradients)
    for g in gradients:
        g.clamp_(-max_norm, max_norm)
    return norm


def _length_afterwards(gradients, max_norm):
    """Return the length *before* clipping: after it, one cannot see that it was needed."""
    clip_gradients.reference(gradients, max_norm)
    return _length(gradients)


def _copies(gradients, max_norm):
    """The tensors handed in are unchanged: `g *= …` works in place; `g = g * …` and
    `gradients[k] = …` leave the tensor as it is."""
    return clip_gradients.reference([g.clone() for g in gradients], max_norm)


def _returns_the_list(gradients, max_norm):
    """The gradients are changed in place, so nobody needs them back: return the length that they had before."""
    clip_gradients.reference(gradients, max_norm)
    return gradients


def _returns_new_tensors(gradients, max_norm):
    """Change the tensors handed in, `g *= …`, as the model holds these; and return the length that they had before."""
    return [g * min(1.0, max_norm / max(_length(gradients), 1e-12)) for g in gradients]


def _returns_nothing(gradients, max_norm):
    """Nothing is returned: return the length that the gradients had before."""
    clip_gradients.reference(gradients, max_norm)


def _to_length_one(gradients, max_norm):
    """Cut down to a length of 1: the length that is allowed is max_norm."""
    norm = _length(gradients)
    if norm > max_norm:
        _scaled(gradients, 1 / norm)
    return norm


def _clip(fn, gradients, max_norm):
    """What is returned, and the tensors handed in, afterwards: new entries in the list do not reach the model."""
    returned = fn(list(gradients), max_norm)
    return {"returned": returned, "gradients": gradients}


def _gradient_lists():
    """3-4-12 and its length 13; a short one; a matrix, a vector and a number; nothing but zeros."""
    generator = torch.Generator().manual_seed(7)
    shapes = (4, 3), (5,), ()
    return [
        ([torch.tensor([3.0, 4.0]), torch.tensor([12.0])], 6.5),
        ([torch.tensor([0.3, -0.4]), torch.tensor([[0.0]])], 2.0),
        ([5 * torch.randn(shape, generator=generator) for shape in shapes], 2.0),
        ([torch.zeros(3), torch.zeros(2)], 0.5),
    ]


clip_gradients = Exercise(
    clip_gradients,
    _gradient_lists,
    [
        _each_alone,
        _always,
        _always_even_zeros,
        _always_divides,
        _by_the_square,
        _without_the_root,
        _sum_of_lengths,
        _longest_alone,
        _entries,
        _length_afterwards,
        _copies,
        _returns_the_list,
        _returns_new_tensors,
        _returns_nothing,
        _to_length_one,
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
    Returns h', (B, H).
    """
    W_r, W_z, W_n = W.chunk(3)
    U_r, U_z, U_n = U.chunk(3)
    b_r, b_z, b_n = b.chunk(3)
    r = torch.sigmoid(x @ W_r.T + h @ U_r.T + b_r)
    z = torch.sigmoid(x @ W_z.T + h @ U_z.T + b_z)
    n = torch.tanh(x @ W_n.T + (r * h) @ U_n.T + b_n)
    return z * h + (1 - z) * n


def _gates(x, h, W, U, b, squash=torch.sigmoid):
    """r and z, and what the candidate gets from x and from h without reset."""
    (ar, az, an), (ur, uz, un) = (x @ W.T + b).chunk(3, -1), (h @ U.T).chunk(3, -1)
    return squash(ar + ur), squash(az + uz), an, un


def _as_torch_does(x, h, W, U, b):
    """That is torch's form, r ⊙ (U_n h), where the reset comes after the matrix. Here r multiplies h first."""
    r, z, from_x, from_h = _gates(x, h, W, U, b)
    return z * h + (1 - z) * torch.tanh(from_x + r * from_h)


def _resets_the_sum(x, h, W, U, b):
    """The reset gate shuts out the old state, not the input: W_n x + b_n stays whole."""
    r, z, from_x, from_h = _gates(x, h, W, U, b)
    return z * h + (1 - z) * torch.tanh(r * (from_x + from_h))


def _never_resets(x, h, W, U, b):
    """r is computed and then never used: the candidate sees r ⊙ h, not h."""
    _, z, from_x, from_h = _gates(x, h, W, U, b)
    return z * h + (1 - z) * torch.tanh(from_x + from_h)


def _candidate(x, h, W, U, b, squash=torch.tanh):
    r, z, from_x, _ = _gates(x, h, W, U, b)
    return r, z, squash(from_x + (r * h) @ U.chunk(3)[2].T)


def _z_swapped(x, h, W, U, b):
    """The gates are swapped in the last line: here z keeps the old h, and 1 − z lets n in."""
    _, z, n = _candidate(x, h, W, U, b)
    return (1 - z) * h + z * n


def _keeps_the_reset(x, h, W, U, b):
    """The reset state r ⊙ h is for the candidate alone; the last line keeps z ⊙ h itself."""
    r, z, n = _candidate(x, h, W, U, b)
    return z * (r * h) + (1 - z) * n


def _parts_swapped(x, h, W, U, b):
    """The first H rows belong to r and the next H to z; here it is the other way round."""
    swapped = [torch.cat([part.chunk(3)[i] for i in (1, 0, 2)]) for part in (W, U, b)]
    return gru_2014.reference(x, h, *swapped)


def _sigmoid_candidate(x, h, W, U, b):
    """The candidate n may be negative: tanh, not σ. Only gates use σ."""
    _, z, n = _candidate(x, h, W, U, b, torch.sigmoid)
    return z * h + (1 - z) * n


def _tanh_gates(x, h, W, U, b):
    """Gates are shares between 0 and 1, so they need σ; tanh goes below 0."""
    r, z, from_x, _ = _gates(x, h, W, U, b, torch.tanh)
    return z * h + (1 - z) * torch.tanh(from_x + (r * h) @ U.chunk(3)[2].T)


def _no_bias(x, h, W, U, b):
    """The bias b is not used: all three parts have one."""
    return gru_2014.reference(x, h, W, U, torch.zeros_like(b))


def _adds_the_candidate(x, h, W, U, b):
    """What z keeps of h must make room for n: the candidate is weighed with 1 − z."""
    _, z, n = _candidate(x, h, W, U, b)
    return z * h + n


def _steps():
    """A state of two numbers to follow by hand; two batches with B, I and H that differ."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    by_hand = torch.tensor([[1.0]]), torch.tensor([[0.5, -1.0]])
    parts = (torch.linspace(-1, 1, 6)[:, None], torch.linspace(-1, 2, 12).view(6, 2), torch.linspace(0.5, -0.5, 6))
    sizes = [(3, 4, 5), (4, 2, 3)]
    return [(*by_hand, *parts)] + [
        (draw(B, i), draw(B, H), draw(3 * H, i), draw(3 * H, H), draw(3 * H)) for B, i, H in sizes
    ]


gru_2014 = Exercise(
    gru_2014,
    _steps,
    [
        _as_torch_does,
        _resets_the_sum,
        _never_resets,
        _z_swapped,
        _keeps_the_reset,
        _parts_swapped,
        _sigmoid_candidate,
        _tanh_gates,
        _no_bias,
        _adds_the_candidate,
    ],
    [
        "Cut W, U and b in three along their rows: `W_r, W_z, W_n = W.chunk(3)`.",
        "With samples as rows, W_r x for all of them is `x @ W_r.T`.",
        "n = torch.tanh(x @ W_n.T + (r * h) @ U_n.T + b_n), and z weighs h, 1 − z weighs n.",
    ],
    rtol=1e-6,
)
