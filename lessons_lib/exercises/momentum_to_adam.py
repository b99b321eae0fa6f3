"""Exercises of lesson 03: the steps of momentum, Adam and AdamW, and the memory that an optimiser needs."""

import torch
from torch import nn

from lessons_lib.exercises.core import Exercise, edit


def momentum_step(theta, g, b, lr, mu):
    """One step of momentum in torch's form. Returns the new (theta, b), and leaves the old ones as they are.

    theta, g, b: the parameter, its gradient and the buffer (zeros before the first step), all of
    one shape. lr, mu: the learning rate and the share of the buffer that is kept, two numbers. Where mu is
    0, the new b is g.
    """
    b = mu * b + g
    return theta - lr * b, b


def _momentum_cases():
    """Vectors by hand; a table in float64; a number alone; all kept, or nothing; no rate; one entry."""
    theta, g, b = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.25, -1.5]])
    table = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    return [
        (theta, g, torch.zeros(2), 0.1, 0.9),
        (theta, g, b, 0.5, 0.9),
        (g, theta, b, 2, 0.25),
        (table, 2 - table.flip(1), table.square() - 3, 0.01, 0.75),
        (torch.tensor(3.0), torch.tensor(0.0), torch.tensor(-2.0), 0.3, 0.5),
        (theta, g, b, 0.125, 1),
        (theta, g, b, 0.125, 0),
        (b, theta, g, 0, 0.5),
        (g[:1], b[:1], theta[:1], 3e-4, 0.99),
    ]


momentum_step = Exercise(
    momentum_step,
    _momentum_cases,
    [
        edit(
            "+ g",
            "+ (1 - mu) * g",
            "You weigh the gradient by 1 − mu, which makes b an average. In torch's form b is a sum: the gradient goes "
            "in whole, and under a constant gradient b grows to g / (1 − mu).",
        ),
        edit(
            "+ g",
            "+ lr * g",
            "- lr * b",
            "- b",
            "Here lr has gone into b. In torch's form b holds gradients only, and lr multiplies b when theta moves, so "
            "that a new lr acts at once on all that b remembers.",
        ),
        edit(
            "+ g",
            "- lr * g",
            "- lr * b",
            "+ b",
            "Here b is the change itself, with −lr in it, as in many papers. In torch's form b holds gradients only.",
        ),
        edit(
            "    b = mu * b + g\n",
            "",
            "lr * b, b",
            "lr * b, mu * b + g",
            "theta moves by the buffer of the step before. Update b first, then move along the new b.",
        ),
        edit(
            "lr * b, b",
            "lr * b, g",
            "theta is right, but the b that you return holds this gradient alone: at the next step, nothing older than "
            "one step is remembered. Return the new sum.",
        ),
        edit(
            "- lr * b",
            "- lr * (g + mu * b)",
            "That is Nesterov's form, which adds mu · b to the gradient once more. Plain momentum moves along b alone.",
        ),
        edit("theta - lr", "theta + lr", "theta climbs: it moves against b, by −lr · b."),
    ],
    ["Two lines: first b, then theta.", "b ← mu · b + g, and theta moves by −lr times the new b."],
)


def adam_step(theta, g, m, v, t, lr, beta1, beta2, eps):
    """One step of Adam. Returns the new (theta, m, v), and leaves the old ones as they are.

    theta, g, m, v: the parameter, its gradient and both running means as they were stored, all of
    one shape. t: the number of this step; the first is 1. lr, beta1, beta2, eps: numbers.
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return theta - lr * m_hat / (v_hat.sqrt() + eps), m, v


def _adam_cases():
    """The first step, the second, and steps at which one correction or both still count; other betas and shapes."""
    theta, g = torch.tensor([[1.0, -2.0, 0.5], [0.5, -3.0, 0.0]])
    m, v = torch.tensor([[0.2, 0.1, 0.0], [0.3, 0.02, 0.0]])
    usual = (0.1, 0.9, 0.999, 1e-8)
    late = [(theta, g, m, v, t, *usual) for t in (2, 7, 40, 200, 1000, 3000)]
    table = torch.arange(6.0, dtype=torch.float64).view(2, 3) - 2
    alone = [torch.tensor(value) for value in (3.0, 1e-9, 0.0, 0.0)]
    return [
        (theta, g, torch.zeros(3), torch.zeros(3), 1, *usual),
        *late,
        (theta, g, m, v, 12, 0.01, 0.8, 0.95, 0.1),
        (theta, g, m, v, 5000, 0.1, 0.9, 0.99, 1e-8),
        (table, table.flip(0), table / 7, table.square() / 9, 3, 1, 0.5, 0.25, 1e-3),
        (*alone, 1, *usual),
        (theta, g, m, v, 4, 0.1, 0.0, 0.9, 1e-8),
    ]


_CORRECTED_V = "v / (1 - beta2**t)"
_ADAM_MISTAKES = [
    edit(
        "m / (1 - beta1**t)",
        "m",
        _CORRECTED_V,
        "v",
        "The correction is missing: m and v start at zero and are too small at first. Divide m by 1 − beta1ᵗ and v by "
        "1 − beta2ᵗ before you use them.",
    ),
    edit(
        _CORRECTED_V,
        "v",
        "m is corrected, v is not. v starts at zero as well and, beta2 being nearer to 1, stays too small for longer: "
        "divide it by 1 − beta2ᵗ.",
    ),
    edit(
        "beta1**t",
        "torch.tensor(beta1) ** (t - 1)",
        "beta2**t",
        "torch.tensor(beta2) ** (t - 1)",
        "Your correction counts the steps from 0, so the first one divides by 1 − beta⁰ = 0. The `t` that you are "
        "given is 1 at the first step: use it as it is.",
    ),
    edit(
        "beta1**t",
        "beta1 ** (t + 1)",
        "beta2**t",
        "beta2 ** (t + 1)",
        "Your correction is one step ahead: `t` is 1 at the first step already, so the power is t, not t + 1.",
    ),
    edit(
        "(v_hat.sqrt() + eps)",
        "(v_hat + eps).sqrt()",
        "eps stands inside the root, where 1e-8 acts like 1e-4. Take the root first, then add eps.",
    ),
    edit(
        "v_hat.sqrt()",
        "v_hat",
        "You divide by v_hat, a mean of squares. Its root has the unit of a gradient: divide by √v_hat + eps.",
    ),
    edit(
        "g**2",
        "g",
        "v is a mean of squared gradients. Without the square it can be negative, and its root is then nan.",
    ),
    edit(
        "eps), m, v",
        "eps), m_hat, v_hat",
        "theta is right, but you return the corrected means. Stored as they are, they would be corrected a second time "
        "at the next step: keep m and v, and correct copies.",
    ),
]

adam_step = Exercise(
    adam_step,
    _adam_cases,
    _ADAM_MISTAKES,
    [
        "Five lines: m, v, their corrected copies, theta.",
        "m ← beta1 · m + (1 − beta1) · g, and v in the same way from beta2 and g².",
        "m_hat = m / (1 − beta1**t), v_hat = v / (1 − beta2**t); theta moves by −lr · m_hat / (v_hat.sqrt() + eps).",
    ],
)


def adamw_step(theta, g, m, v, t, lr, weight_decay, beta1, beta2, eps):
    """One step of AdamW, as torch takes it. Returns the new (theta, m, v), and leaves the old ones as they are.

    weight_decay: the share of theta that, times lr, is taken off before Adam's step.
    The other arguments are those of `adam_step`.
    """
    theta = theta - lr * weight_decay * theta
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return theta - lr * m_hat / (v_hat.sqrt() + eps), m, v


def _adamw_cases():
    decays = (0.5, 0.01, 0, 2.0, 0.1)
    return [(*case[:6], decays[i % len(decays)], *case[6:]) for i, case in enumerate(_adam_cases())]


adamw_step = Exercise(
    adamw_step,
    _adamw_cases,
    [
        edit(
            "theta - lr * weight_decay * theta",
            "theta.clone()",
            "m = beta1",
            "g = g + weight_decay * theta\n    m = beta1",
            "You add the decay to the gradient: that is L2 inside Adam, and √v_hat then divides the decay too. Leave g "
            "alone and shrink theta itself.",
        ),
        edit(
            "lr * weight_decay",
            "weight_decay",
            "Each step takes off weight_decay · theta. In torch the decay is multiplied by lr as well, so that a "
            "schedule of lr slows both down together.",
        ),
        edit(
            "theta - lr * weight_decay * theta",
            "theta.clone()",
            "return theta - lr * m_hat / (v_hat.sqrt() + eps)",
            "return (theta - lr * m_hat / (v_hat.sqrt() + eps)) * (1 - lr * weight_decay)",
            "You shrink the parameter after Adam's step, so part of that step shrinks too. Take the decay from the "
            "theta that you were given.",
        ),
        edit(
            "theta - lr * weight_decay",
            "theta + lr * weight_decay",
            "The sign of the decay is wrong: theta grows. Decay takes lr · weight_decay · theta off.",
        ),
        edit("- lr * weight_decay * theta", "+ 0", "That is Adam: weight_decay has no effect yet."),
        edit(
            "m / (1 - beta1**t)",
            "m",
            _CORRECTED_V,
            "v",
            "The decay is right, but m and v are used without their correction: 1 − beta1ᵗ and 1 − beta2ᵗ.",
        ),
    ],
    [
        "It is `adam_step` with one line before it.",
        "The line changes theta and nothing else: the gradient, m and v never see the decay.",
        "theta = theta − lr · weight_decay · theta, then Adam's step with the plain g.",
    ],
)


def state_bytes(model, optimizer):
    """Bytes that torch's optimiser keeps for `model` after its first step, weights not counted: an int.

    model: an nn.Module, which stays as it is. Parameters with requires_grad=False get no gradient,
    hence no state. optimizer: "sgd", "momentum", "rmsprop", "adam" or "adamw".
    A tensor of the state has the shape and dtype of its parameter. RMSprop, Adam and AdamW also
    keep a step counter for every parameter tensor: one float32.
    """
    tensors = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adam": 2, "adamw": 2}[optimizer]
    counter = 4 if optimizer in ("rmsprop", "adam", "adamw") else 0
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(tensors * p.numel() * p.element_size() + counter for p in trained)


def _state_cases():
    """Frozen layers, other dtypes, side by side too, shared weights, buffers, a number as parameter, all frozen."""
    fine_tuned = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    fine_tuned[0].requires_grad_(False)
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    scaled = nn.ParameterList([nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(2, 3, 5))])
    half, full = nn.Linear(5, 5).to(torch.bfloat16), nn.Linear(5, 5).double()
    normed = nn.Sequential(nn.Conv2d(3, 4, 2, bias=False), nn.BatchNorm2d(4))
    models = [
        nn.Linear(3, 2),
        fine_tuned,
        half,
        full,
        tied,
        scaled,
        nn.Sequential(half, nn.Linear(5, 2)),
        normed,
        nn.Linear(2, 2).requires_grad_(False),
    ]
    return [(model, optimizer) for model in models for optimizer in ("sgd", "momentum", "rmsprop", "adam", "adamw")]


def _beside_old_gradients(fn, model, optimizer):
    """What `fn` says of a model in the midst of training, whose gradients are part of what stays."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    return fn(model, optimizer)


state_bytes = Exercise(
    state_bytes,
    _state_cases,
    [
        edit(
            "+ counter for",
            "for",
            "The tensors of the state are all there; the step counters are not. RMSprop, Adam and AdamW keep 4 bytes "
            "more for every parameter tensor.",
        ),
        edit(
            "+ counter for p in trained)",
            "for p in trained) + counter",
            "You count one step counter for the whole model. torch keeps one for every parameter tensor: a layer with "
            "a bias has two.",
        ),
        edit(
            '"adam": 2, "adamw": 2',
            '"adam": 1, "adamw": 1',
            "Adam and AdamW keep two numbers for every weight: m and v.",
        ),
        edit(
            "for p in trained)",
            "for p in trained) + sum(p.nbytes for p in model.parameters())",
            "You have added the weights themselves. They belong to the model; the state is what comes on top.",
        ),
        edit(
            " if p.requires_grad",
            "",
            "Parameters with requires_grad=False never get a gradient, and a state is made at the first gradient: "
            "leave them out.",
        ),
        edit(
            "p.element_size()",
            "4",
            "Not every number has 4 bytes: the state has the dtype of its parameter. `p.element_size()` says how many.",
        ),
        edit(
            " * p.element_size()",
            "",
            "4 if",
            "1 if",
            "You have counted numbers. Each takes `p.element_size()` bytes, a step counter 4.",
        ),
        edit('("rmsprop", "adam"', '("adam"', "RMSprop keeps a step counter as well, as Adam and AdamW do."),
    ],
    [
        "Go through `model.parameters()`: how many tensors of its shape does the optimiser keep for each?",
        "sgd 0, momentum 1, rmsprop 1, adam and adamw 2; each has p.numel() numbers of p.element_size() bytes.",
        "Then add 4 bytes for the step counter of each parameter tensor, except for sgd and momentum.",
    ],
    outcome=_beside_old_gradients,
)
