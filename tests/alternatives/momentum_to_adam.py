"""Lesson 03: right answers written another way, and wrong answers beyond the listed mistakes."""

import torch


def _torch_step(kind, theta, g, state, **hyper):
    theta = theta.clone().requires_grad_()
    theta.grad = g
    optimizer = kind([theta], **hyper)
    if state:
        optimizer.state[theta] = state
    optimizer.step()
    return theta.detach(), optimizer.state[theta]


def momentum_by_torch(theta, g, b, lr, mu):
    theta, state = _torch_step(torch.optim.SGD, theta, g, {"momentum_buffer": b}, lr=lr, momentum=mu)
    return theta, state.get("momentum_buffer", g)


def momentum_in_place(theta, g, b, lr, mu):
    b.mul_(mu).add_(g)
    theta.sub_(b, alpha=lr)
    return [theta, b]


def momentum_climbing(theta, g, b, lr, mu):
    b = mu * b + g
    return theta + lr * b, b


def momentum_without_buffer(theta, g, b, lr, mu):
    return theta - lr * (mu * b + g)


def adam_by_torch(theta, g, m, v, t, lr, beta1, beta2, eps, kind=torch.optim.Adam, **hyper):
    state = {"step": torch.tensor(t - 1.0), "exp_avg": m, "exp_avg_sq": v}
    theta, state = _torch_step(kind, theta, g, state, lr=lr, betas=(beta1, beta2), eps=eps, **hyper)
    return theta, state["exp_avg"], state["exp_avg_sq"]


def adam_with_the_corrections_in_the_rate(theta, g, m, v, t, lr, beta1, beta2, eps):
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    root = (1 - beta2**t) ** 0.5
    return theta - lr * root / (1 - beta1**t) * m / (v.sqrt() + eps * root), m, v


def adam_without_guard(theta, g, m, v, t, lr, beta1, beta2, eps):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    return theta - lr * (m / (1 - beta1**t)) / (v / (1 - beta2**t)).sqrt(), m, v


def adam_with_swapped_betas(theta, g, m, v, t, lr, beta1, beta2, eps):
    return adam_with_the_corrections_in_the_rate(theta, g, m, v, t, lr, beta2, beta1, eps)


def adamw_by_torch(theta, g, m, v, t, lr, weight_decay, beta1, beta2, eps):
    return adam_by_torch(theta, g, m, v, t, lr, beta1, beta2, eps, torch.optim.AdamW, weight_decay=weight_decay)


def adamw_with_the_decay_in_the_sum(theta, g, m, v, t, lr, weight_decay, beta1, beta2, eps):
    m = m + (1 - beta1) * (g - m)
    v = v + (1 - beta2) * (g.square() - v)
    direction = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
    return theta - lr * (direction + weight_decay * theta), m, v


def adamw_uncorrected(theta, g, m, v, t, lr, weight_decay, beta1, beta2, eps):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    return theta * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), m, v


def bytes_measured(model, optimizer):
    """Let torch take a step, and weigh what it then keeps."""
    kinds = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    kind = kinds.get(optimizer, torch.optim.SGD)
    made = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if optimizer == "momentum" else {}))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    made.step()
    tensors = [value for state in made.state_dict()["state"].values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if torch.is_tensor(tensor))


def bytes_with_three_moments(model, optimizer):
    return bytes_measured(model, optimizer) * 3 // 2


alternatives = {
    "momentum_step": [momentum_by_torch, momentum_in_place],
    "adam_step": [adam_by_torch, adam_with_the_corrections_in_the_rate],
    "adamw_step": [adamw_by_torch, adamw_with_the_decay_in_the_sum],
    "state_bytes": [bytes_measured],
}
wrong = {
    "momentum_step": [momentum_climbing, momentum_without_buffer],
    "adam_step": [adam_without_guard, adam_with_swapped_betas],
    "adamw_step": [adamw_uncorrected],
    "state_bytes": [bytes_with_three_moments],
}
