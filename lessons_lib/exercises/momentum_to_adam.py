"""Exercises of lesson 03: the steps of momentum, Adam and AdamW, and the memory that an optimiser needs."""

import torch
from torch import nn

from lessons_lib.exercises.core import Exercise


def momentum_step(theta, g, b, lr, mu):
    """One step of momentum in torch's form. Returns the new (theta, b).

    theta, g, b: the parameter, its gradient and the buffer (zeros before the first step), all of
    one shape. lr, mu: the learning rate and the share of the buffer that is kept, two numbers.
    """
    b = mu * b + g
    return theta - lr * b, b


def _dampened(theta, g, b, lr, mu):
    """You weigh the gradient by 1 − mu, which makes b an average. In torch's form b is a sum: the gradient goes in
    whole, and under a constant gradient b grows to g / (1 − mu)."""
    b = mu * b + (1 - mu) * g
    return theta - lr * b, b


def _rate_in_the_buffer(theta, g, b, lr, mu):
    """Here lr has gone into b. In torch's form b holds gradients only, and lr multiplies b when theta moves, so that a
    new lr acts at once on all that b remembers."""
    b = mu * b + lr * g
    return theta - b, b


def _old_buffer(theta, g, b, lr, mu):
    """theta moves by the buffer of the step before. Update b first, then move along the new b."""
    return theta - lr * b, mu * b + g


def _forgets(theta, g, b, lr, mu):
    """theta is right, but the b that you return holds this gradient alone: at the next step, nothing older than one
    step is remembered. Return the new sum."""
    return theta - lr * (g + mu * b), g


def _looks_ahead(theta, g, b, lr, mu):
    """That is Nesterov's form, which adds mu · b to the gradient once more. Plain momentum moves along b alone."""
    b = mu * b + g
    return theta - lr * (g + mu * b), b


def _momentum_cases():
    theta, g, b = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.25, -1.5]])
    return [(theta, g, torch.zeros(2), 0.1, 0.9), (theta, g, b, 0.5, 0.9), (g, theta, b, 2, 0.25)]


momentum_step = Exercise(
    momentum_step,
    _momentum_cases,
    [_dampened, _rate_in_the_buffer, _old_buffer, _forgets, _looks_ahead],
    ["Two lines: first b, then theta.", "b ← mu · b + g, and theta moves by −lr times the new b."],
    scratch=("theta", "b"),
)


def adam_step(theta, g, m, v, t, lr, beta1, beta2, eps):
    """One step of Adam. Returns the new (theta, m, v).

    theta, g, m, v: the parameter, its gradient and both running means as they were stored, all of
    one shape. t: the number of this step; the first is 1. lr, beta1, beta2, eps: numbers.
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return theta - lr * m_hat / (v_hat.sqrt() + eps), m, v


def _means(g, m, v, beta1, beta2):
    return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2


def _uncorrected(theta, g, m, v, t, lr, beta1, beta2, eps):
    """The correction is missing: m and v start at zero and are too small at first. Divide m by 1 − beta1ᵗ and v by 1 −
    beta2ᵗ before you use them."""
    m, v = _means(g, m, v, beta1, beta2)
    return theta - lr * m / (v.sqrt() + eps), m, v


def _half_corrected(theta, g, m, v, t, lr, beta1, beta2, eps):
    """m is corrected, v is not. v starts at zero as well and, beta2 being nearer to 1, stays too small for longer:
    divide it by 1 − beta2ᵗ."""
    m, v = _means(g, m, v, beta1, beta2)
    return theta - lr * m / (1 - beta1**t) / (v.sqrt() + eps), m, v


def _one_step_behind(theta, g, m, v, t, lr, beta1, beta2, eps):
    """Your correction counts the steps from 0, so the first one divides by 1 − beta⁰ = 0. The `t` that you are given is
    1 at the first step: use it as it is."""
    m, v = _means(g, m, v, beta1, beta2)
    t = torch.tensor(t - 1.0)
    return theta - lr * m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps), m, v


def _one_step_ahead(theta, g, m, v, t, lr, beta1, beta2, eps):
    """Your correction is one step ahead: `t` is 1 at the first step already, so the power is t, not t + 1."""
    m, v = _means(g, m, v, beta1, beta2)
    return theta - lr * m / (1 - beta1 ** (t + 1)) / ((v / (1 - beta2 ** (t + 1))).sqrt() + eps), m, v


def _eps_in_the_root(theta, g, m, v, t, lr, beta1, beta2, eps):
    """eps stands inside the root, where 1e-8 acts like 1e-4. Take the root first, then add eps."""
    m, v = _means(g, m, v, beta1, beta2)
    return theta - lr * m / (1 - beta1**t) / (v / (1 - beta2**t) + eps).sqrt(), m, v


def _no_root(theta, g, m, v, t, lr, beta1, beta2, eps):
    """You divide by v_hat, a mean of squares. Its root has the unit of a gradient: divide by √v_hat + eps."""
    m, v = _means(g, m, v, beta1, beta2)
    return theta - lr * m / (1 - beta1**t) / (v / (1 - beta2**t) + eps), m, v


def _not_squared(theta, g, m, v, t, lr, beta1, beta2, eps):
    """v is a mean of squared gradients. Without the square it can be negative, and its root is then nan."""
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g
    return theta - lr * m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps), m, v


def _keeps_the_corrected(theta, g, m, v, t, lr, beta1, beta2, eps):
    """theta is right, but you return the corrected means. Stored as they are, they would be corrected a second time at
    the next step: keep m and v, and correct copies."""
    m, v = _means(g, m, v, beta1, beta2)
    m, v = m / (1 - beta1**t), v / (1 - beta2**t)
    return theta - lr * m / (v.sqrt() + eps), m, v


def _adam_cases():
    theta, g = torch.tensor([[1.0, -2.0, 0.5], [0.5, -3.0, 0.0]])
    m, v = torch.tensor([[0.2, 0.1, 0.0], [0.3, 0.02, 0.0]])
    return [
        (theta, g, torch.zeros(3), torch.zeros(3), 1, 0.1, 0.9, 0.999, 1e-8),
        (theta, g, m, v, 2, 0.1, 0.9, 0.999, 1e-8),
        (theta, g, m, v, 12, 0.01, 0.8, 0.95, 0.1),
        (theta, g, m, v, 5000, 0.1, 0.9, 0.99, 1e-8),
    ]


adam_step = Exercise(
    adam_step,
    _adam_cases,
    [
        _uncorrected,
        _half_corrected,
        _one_step_behind,
        _one_step_ahead,
        _eps_in_the_root,
        _no_root,
        _not_squared,
        _keeps_the_corrected,
    ],
    [
        "Five lines: m, v, their corrected copies, theta.",
        "m ← beta1 · m + (1 − beta1) · g, and v in the same way from beta2 and g².",
        "m_hat = m / (1 − beta1**t), v_hat = v / (1 − beta2**t); theta moves by −lr · m_hat / (v_hat.sqrt() + eps).",
    ],
    scratch=("theta", "m", "v"),
)


def adamw_step(theta, g, m, v, t, lr, weight_decay, beta1, beta2, eps):
    """One step of AdamW, as torch takes it. Returns the new (theta, m, v).

    weight_decay: the share of theta that, times lr, is taken off before Adam's step.
    The other arguments are those of `adam_step`.
    """
    theta = theta - lr * weight_decay * theta
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return theta - lr * m_hat / (v_hat.sqrt() + eps), m, v


def _adam(theta, g, m, v, t, lr, beta1, beta2, eps):
    return adam_step.reference(theta, g, m, v, t, lr, beta1, beta2, eps)


def _penalty_in_the_gradient(theta, g, m, v, t, lr, weight_decay, *rest):
    """You add the decay to the gradient: that is L2 inside Adam, and √v_hat then divides the decay too. Leave g alone
    and shrink theta itself."""
    return _adam(theta, g + weight_decay * theta, m, v, t, lr, *rest)


def _decay_without_rate(theta, g, m, v, t, lr, weight_decay, *rest):
    """Each step takes off weight_decay · theta. In torch the decay is multiplied by lr as well, so that a schedule of
    lr slows both down together."""
    return _adam(theta - weight_decay * theta, g, m, v, t, lr, *rest)


def _decay_afterwards(theta, g, m, v, t, lr, weight_decay, *rest):
    """You shrink the parameter after Adam's step, so part of that step shrinks too. Take the decay from the theta that
    you were given."""
    theta, m, v = _adam(theta, g, m, v, t, lr, *rest)
    return theta - lr * weight_decay * theta, m, v


def _growth(theta, g, m, v, t, lr, weight_decay, *rest):
    """The sign of the decay is wrong: theta grows. Decay takes lr · weight_decay · theta off."""
    return _adam(theta + lr * weight_decay * theta, g, m, v, t, lr, *rest)


def _no_decay(theta, g, m, v, t, lr, weight_decay, *rest):
    """That is Adam: weight_decay has no effect yet."""
    return _adam(theta, g, m, v, t, lr, *rest)


def _adamw_cases():
    return [(*case[:6], weight_decay, *case[6:]) for case in _adam_cases() for weight_decay in (0.5, 0.01)]


adamw_step = Exercise(
    adamw_step,
    _adamw_cases,
    [_penalty_in_the_gradient, _decay_without_rate, _decay_afterwards, _growth, _no_decay],
    [
        "It is `adam_step` with one line before it.",
        "The line changes theta and nothing else: the gradient, m and v never see the decay.",
        "theta = theta − lr · weight_decay · theta, then Adam's step with the plain g.",
    ],
    scratch=("theta", "m", "v"),
)


def state_bytes(model, optimizer):
    """Bytes that torch's optimiser keeps for `model` after its first step, weights not counted.

    model: an nn.Module. Parameters with requires_grad=False get no gradient, hence no state.
    optimizer: "sgd", "momentum", "rmsprop", "adam" or "adamw".
    A tensor of the state has the shape and dtype of its parameter. RMSprop, Adam and AdamW also
    keep a step counter for every parameter tensor: one float32.
    """
    tensors = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adam": 2, "adamw": 2}[optimizer]
    counter = 4 if optimizer in ("rmsprop", "adam", "adamw") else 0
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(tensors * p.numel() * p.element_size() + counter for p in trained)


_TENSORS = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adam": 2, "adamw": 2}


def _counter(optimizer):
    return 4 if _TENSORS[optimizer] and optimizer != "momentum" else 0


def _trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def _bytes(parameters):
    return sum(p.numel() * p.element_size() for p in parameters)


def _no_counter(model, optimizer):
    """The tensors of the state are all there; the step counters are not. RMSprop, Adam and AdamW keep 4 bytes more for
    every parameter tensor."""
    return _TENSORS[optimizer] * _bytes(_trained(model))


def _one_counter(model, optimizer):
    """You count one step counter for the whole model. torch keeps one for every parameter tensor: a layer with a bias
    has two."""
    return _no_counter(model, optimizer) + _counter(optimizer)


def _one_moment(model, optimizer):
    """Adam and AdamW keep two numbers for every weight: m and v. You have counted one."""
    return min(1, _TENSORS[optimizer]) * _bytes(_trained(model)) + _counter(optimizer) * len(_trained(model))


def _with_weights(model, optimizer):
    """You have added the weights themselves. They belong to the model; the state is what comes on top."""
    return state_bytes.reference(model, optimizer) + _bytes(model.parameters())


def _frozen_too(model, optimizer):
    """Parameters with requires_grad=False never get a gradient, and a state is made at the first gradient: leave them
    out."""
    parameters = list(model.parameters())
    return _TENSORS[optimizer] * _bytes(parameters) + _counter(optimizer) * len(parameters)


def _always_four(model, optimizer):
    """Not every number has 4 bytes: the state has the dtype of its parameter. `p.element_size()` says how many."""
    trained = _trained(model)
    return _TENSORS[optimizer] * 4 * sum(p.numel() for p in trained) + _counter(optimizer) * len(trained)


def _always_eight(model, optimizer):
    """8 bytes a number is float64. The state takes the dtype of its parameter, and that is usually float32:
    `p.element_size()` says how many bytes."""
    trained = _trained(model)
    return _TENSORS[optimizer] * 8 * sum(p.numel() for p in trained) + _counter(optimizer) * len(trained)


def _in_numbers(model, optimizer):
    """You have counted numbers. Each takes `p.element_size()` bytes, a step counter 4."""
    trained = _trained(model)
    return _TENSORS[optimizer] * sum(p.numel() for p in trained) + (_counter(optimizer) // 4) * len(trained)


def _state_cases():
    fine_tuned = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    fine_tuned[0].requires_grad_(False)
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    models = [nn.Linear(3, 2), fine_tuned, nn.Linear(5, 5).to(torch.bfloat16), nn.Linear(5, 5).double(), tied]
    return [(model, optimizer) for model in models for optimizer in _TENSORS]


state_bytes = Exercise(
    state_bytes,
    _state_cases,
    [_no_counter, _one_counter, _one_moment, _with_weights, _frozen_too, _always_four, _always_eight, _in_numbers],
    [
        "Go through `model.parameters()`: how many tensors of its shape does the optimiser keep for each?",
        "sgd 0, momentum 1, rmsprop 1, adam and adamw 2; each has p.numel() numbers of p.element_size() bytes.",
        "Then add 4 bytes a parameter tensor for the step counter, except for sgd and momentum.",
    ],
    scratch=("model",),
)
