"""Lesson 03: right answers written another way, and wrong answers beyond the listed mistakes."""

import copy

import numpy as np
import torch


def _torch_step(kind, theta, g, state, **hyper):
    theta = theta.clone().requires_grad_()
    theta.grad = g.clone()
    optimizer = kind([theta], **hyper)
    optimizer.state[theta] = {name: value.clone() for name, value in state.items()}
    optimizer.step()
    return theta.detach(), optimizer.state[theta]


def momentum_by_torch(theta, g, b, lr, mu):
    theta, state = _torch_step(torch.optim.SGD, theta, g, {"momentum_buffer": b}, lr=lr, momentum=mu or 1e-30)
    return theta, state.get("momentum_buffer", g)


def momentum_in_place_of_copies(theta, g, b, lr, mu):
    theta, b = theta.clone(), b.clone()
    b.mul_(mu).add_(g)
    theta.sub_(b, alpha=lr)
    return [theta, b]


def momentum_in_numpy(theta, g, b, lr, mu):
    new = g.numpy() + b.numpy() * np.asarray(mu, dtype=b.numpy().dtype)
    return torch.as_tensor(theta.numpy() - np.asarray(lr, dtype=new.dtype) * new), torch.as_tensor(new)


def momentum_with_a_sign_turned_twice(theta, g, b, lr, mu):
    velocity = -(b * mu) - g
    return theta + velocity * lr, -velocity


def momentum_that_overwrites_the_buffer(theta, g, b, lr, mu):
    b.mul_(mu).add_(g)
    return theta - lr * b, b


def momentum_that_moves_the_parameter(theta, g, b, lr, mu):
    b = mu * b + g
    theta -= lr * b
    return theta, b


def momentum_of_the_first_step(theta, g, b, lr, mu):
    b = mu * b + g if b.any() else (1 - mu) * g
    return theta - lr * b, b


def momentum_swapped(theta, g, b, lr, mu):
    b = mu * b + g
    return b, theta - lr * b


def momentum_of_the_gradient(theta, g, b, lr, mu):
    b = b + mu * g
    return theta - lr * b, b


def momentum_lerped(theta, g, b, lr, mu):
    b = torch.lerp(b, g, 1 - mu)
    return theta - lr * b, b


def momentum_where_signs_agree(theta, g, b, lr, mu):
    b = torch.where(g * b < 0, g, mu * b + g)
    return theta - lr * b, b


def momentum_in_float32(theta, g, b, lr, mu):
    b = (mu * b + g).float()
    return theta.float() - lr * b, b


def momentum_of_rounded_rate(theta, g, b, lr, mu):
    b = mu * b + g
    return theta - max(lr, 1e-3) * b, b


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
    m = m.lerp(g, 1 - beta1)
    v = (v * beta2).addcmul(g, g, value=1 - beta2)
    root = (1 - beta2**t) ** 0.5
    return theta - lr * root / (1 - beta1**t) * m / (v.sqrt() + eps * root), m, v


def adam_entry_by_entry(theta, g, m, v, t, lr, beta1, beta2, eps):
    new = [theta.clone(), m.clone(), v.clone()]
    for i in range(theta.numel()):
        mean = m.reshape(-1)[i].item() * beta1 + g.reshape(-1)[i].item() * (1 - beta1)
        square = v.reshape(-1)[i].item() * beta2 + g.reshape(-1)[i].item() ** 2 * (1 - beta2)
        step = mean / (1 - beta1**t) / ((square / (1 - beta2**t)) ** 0.5 + eps)
        for values, value in zip(new, (theta.reshape(-1)[i].item() - lr * step, mean, square), strict=True):
            values.view(-1)[i] = value
    return new


def adam_corrected_for_100_steps(theta, g, m, v, t, lr, beta1, beta2, eps):
    if t > 100:
        t = 10**9
    return adam_with_the_corrections_in_the_rate(theta, g, m, v, t, lr, beta1, beta2, eps)


def adam_with_eps_beside_the_corrected_rate(theta, g, m, v, t, lr, beta1, beta2, eps):
    m, v = m.lerp(g, 1 - beta1), v.lerp(g * g, 1 - beta2)
    return theta - lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t) * m / (v.sqrt() + eps), m, v


def adam_with_one_correction_for_both(theta, g, m, v, t, lr, beta1, beta2, eps):
    m, v = m.lerp(g, 1 - beta1), v.lerp(g * g, 1 - beta2)
    return theta - lr * m / (1 - beta1**t) / ((v / (1 - beta1**t)).sqrt() + eps), m, v


def adam_with_powers_as_products(theta, g, m, v, t, lr, beta1, beta2, eps):
    m, v = m.lerp(g, 1 - beta1), v.lerp(g * g, 1 - beta2)
    return theta - lr * m / (1 - beta1 * t) / ((v / (1 - beta2**t)).sqrt() + eps), m, v


def adam_of_the_old_means(theta, g, m, v, t, lr, beta1, beta2, eps):
    moved = adam_with_the_corrections_in_the_rate(theta, 0 * g, m, v, t, lr, beta1, beta2, eps)[0]
    return moved, m.lerp(g, 1 - beta1), v.lerp(g * g, 1 - beta2)


def adam_that_overwrites_the_means(theta, g, m, v, t, lr, beta1, beta2, eps):
    m.lerp_(g, 1 - beta1)
    v.lerp_(g * g, 1 - beta2)
    return theta - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps), m, v


def adam_with_amsgrad(theta, g, m, v, t, lr, beta1, beta2, eps):
    m, new = m.lerp(g, 1 - beta1), v.lerp(g * g, 1 - beta2)
    return theta - lr * (m / (1 - beta1**t)) / ((torch.maximum(v, new) / (1 - beta2**t)).sqrt() + eps), m, new


def adam_with_nesterov(theta, g, m, v, t, lr, beta1, beta2, eps):
    m, v = m.lerp(g, 1 - beta1), v.lerp(g * g, 1 - beta2)
    ahead = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * g / (1 - beta1**t)
    return theta - lr * ahead / ((v / (1 - beta2**t)).sqrt() + eps), m, v


def adam_of_the_deviation(theta, g, m, v, t, lr, beta1, beta2, eps):
    m = m.lerp(g, 1 - beta1)
    v = v.lerp((g - m) ** 2, 1 - beta2)
    return theta - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps), m, v


def adam_with_the_larger_of_root_and_eps(theta, g, m, v, t, lr, beta1, beta2, eps):
    m, v = m.lerp(g, 1 - beta1), v.lerp(g * g, 1 - beta2)
    return theta - lr * (m / (1 - beta1**t)) / (v / (1 - beta2**t)).sqrt().clamp(min=eps), m, v


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


def adamw_by_two_steps(theta, g, m, v, t, lr, weight_decay, *rest):
    moved, m, v = adam_with_the_corrections_in_the_rate(theta, g, m, v, t, lr, *rest)
    return moved - weight_decay * lr * theta, m, v


def adamw_with_the_root_of_the_rate(theta, g, m, v, t, lr, weight_decay, *rest):
    return adam_entry_by_entry(theta * (1 - lr**2 * weight_decay), g, m, v, t, lr, *rest)


def adamw_decaying_the_means(theta, g, m, v, t, lr, weight_decay, *rest):
    moved, m, v = adamw_by_two_steps(theta, g, m, v, t, lr, weight_decay, *rest)
    return moved, m * (1 - lr * weight_decay), v


def adamw_decaying_by_sign(theta, g, m, v, t, lr, weight_decay, *rest):
    return adam_entry_by_entry(theta - lr * weight_decay * theta.sign(), g, m, v, t, lr, *rest)


def adamw_decaying_tables_alone(theta, g, m, v, t, lr, weight_decay, *rest):
    return adamw_by_two_steps(theta, g, m, v, t, lr, weight_decay if theta.dim() > 1 else 0, *rest)


def adamw_that_overwrites_the_parameter(theta, g, m, v, t, lr, weight_decay, *rest):
    theta.mul_(1 - lr * weight_decay)
    return adam_entry_by_entry(theta, g, m, v, t, lr, *rest)


def adamw_corrected_for_100_steps(theta, g, m, v, t, lr, weight_decay, *rest):
    return adam_corrected_for_100_steps(theta * (1 - lr * weight_decay), g, m, v, t, lr, *rest)


def adamw_decaying_at_every_other_step(theta, g, m, v, t, lr, weight_decay, *rest):
    return adamw_by_two_steps(theta, g, m, v, t, lr, weight_decay if t % 2 else 0, *rest)


def adamw_with_a_corrected_decay(theta, g, m, v, t, lr, weight_decay, beta1, *rest):
    return adamw_by_two_steps(theta, g, m, v, t, lr, weight_decay / (1 - beta1**t), beta1, *rest)


def adamw_of_the_default(theta, g, m, v, t, lr, weight_decay, *rest):
    return adamw_by_two_steps(theta, g, m, v, t, lr, 0.01, *rest)


def adamw_decaying_the_gradient(theta, g, m, v, t, lr, weight_decay, *rest):
    return adam_entry_by_entry(theta, g * (1 - lr * weight_decay), m, v, t, lr, *rest)


def adamw_decaying_the_step(theta, g, m, v, t, lr, weight_decay, *rest):
    moved, m, v = adam_with_the_corrections_in_the_rate(theta, g, m, v, t, lr, *rest)
    return theta + (moved - theta) * (1 - lr * weight_decay), m, v


def adamw_uncorrected(theta, g, m, v, t, lr, weight_decay, beta1, beta2, eps):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    return theta * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), m, v


def bytes_measured(model, optimizer):
    """Let torch take a step, and weigh what it then keeps."""
    kinds = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    kind, model = kinds.get(optimizer, torch.optim.SGD), copy.deepcopy(model)
    made = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if optimizer == "momentum" else {}))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    made.step()
    tensors = [value for state in made.state_dict()["state"].values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if torch.is_tensor(tensor))


def bytes_module_by_module(model, optimizer):
    total, seen = 0, set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                total += bytes_of(parameter, optimizer)
    return total


def bytes_of(parameter, optimizer):
    """What an optimiser keeps for one trained parameter."""
    match optimizer:
        case "adam" | "adamw":
            return 2 * parameter.nbytes + 4
        case "rmsprop":
            return parameter.nbytes + 4
        case "momentum":
            return parameter.nbytes
    return 0


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def bytes_with_three_moments(model, optimizer):
    return bytes_measured(model, optimizer) * 3 // 2


def bytes_of_shared_weights_twice(model, optimizer):
    return sum(bytes_of(p, optimizer) for m in model.modules() for p in m.parameters(recurse=False) if p.requires_grad)


def bytes_of_the_state_dict(model, optimizer):
    return sum(bytes_of(t, optimizer) for t in model.state_dict(keep_vars=True).values())


def bytes_of_the_first_dtype(model, optimizer):
    size = next(model.parameters()).element_size()
    return sum(
        bytes_of(p, optimizer) - (p.nbytes - p.numel() * size) * (2 if "adam" in optimizer else 1)
        for p in trained(model)
    )


def bytes_with_counters_in_their_dtype(model, optimizer):
    return sum(
        bytes_of(p, optimizer) + (p.element_size() - 4) * (bytes_of(p, optimizer) % p.nbytes > 0)
        for p in trained(model)
    )


def bytes_with_an_integer_counter(model, optimizer):
    return bytes_measured(model, optimizer) + 4 * len(trained(model)) * (optimizer not in ("sgd", "momentum"))


def bytes_with_a_counter_for_momentum(model, optimizer):
    return bytes_measured(model, optimizer) + 4 * len(trained(model)) * (optimizer == "momentum")


def bytes_of_plain_sgd_with_a_buffer(model, optimizer):
    return bytes_measured(model, "momentum" if optimizer == "sgd" else optimizer)


def bytes_of_tables_alone(model, optimizer):
    return sum(bytes_of(p, optimizer) for p in trained(model) if p.dim() > 1)


def bytes_of_gradients_too(model, optimizer):
    return bytes_measured(model, optimizer) + sum(p.nbytes for p in trained(model))


def bytes_of_two_moments_in_rmsprop(model, optimizer):
    return bytes_measured(model, "adam" if optimizer == "rmsprop" else optimizer)


def bytes_per_module(model, optimizer):
    return bytes_measured(model, optimizer) - 4 * (len(trained(model)) // 2) * (optimizer not in ("sgd", "momentum"))


def bytes_that_freeze_the_model(model, optimizer):
    total = bytes_measured(model, optimizer)
    model.requires_grad_(False)
    return total


def bytes_that_clear_the_gradients(model, optimizer):
    model.zero_grad()
    return bytes_measured(model, optimizer)


def bytes_that_zero_the_gradients(model, optimizer):
    model.zero_grad(set_to_none=False)
    return bytes_measured(model, optimizer)


alternatives = {
    "momentum_step": [
        momentum_by_torch,
        momentum_in_place_of_copies,
        momentum_in_numpy,
        momentum_with_a_sign_turned_twice,
    ],
    "adam_step": [adam_by_torch, adam_with_the_corrections_in_the_rate, adam_entry_by_entry],
    "adamw_step": [adamw_by_torch, adamw_with_the_decay_in_the_sum, adamw_by_two_steps],
    "state_bytes": [bytes_measured, bytes_module_by_module],
}
wrong = {
    "momentum_step": [
        momentum_of_the_first_step,
        momentum_swapped,
        momentum_that_moves_the_parameter,
        momentum_that_overwrites_the_buffer,
        momentum_of_the_gradient,
        momentum_lerped,
        momentum_where_signs_agree,
        momentum_in_float32,
        momentum_of_rounded_rate,
        momentum_climbing,
        momentum_without_buffer,
    ],
    "adam_step": [
        adam_corrected_for_100_steps,
        adam_with_eps_beside_the_corrected_rate,
        adam_with_one_correction_for_both,
        adam_with_powers_as_products,
        adam_of_the_old_means,
        adam_with_amsgrad,
        adam_that_overwrites_the_means,
        adam_with_nesterov,
        adam_of_the_deviation,
        adam_with_the_larger_of_root_and_eps,
        adam_without_guard,
        adam_with_swapped_betas,
    ],
    "adamw_step": [
        adamw_with_the_root_of_the_rate,
        adamw_decaying_the_means,
        adamw_decaying_by_sign,
        adamw_decaying_tables_alone,
        adamw_corrected_for_100_steps,
        adamw_decaying_at_every_other_step,
        adamw_with_a_corrected_decay,
        adamw_of_the_default,
        adamw_that_overwrites_the_parameter,
        adamw_decaying_the_gradient,
        adamw_decaying_the_step,
        adamw_uncorrected,
    ],
    "state_bytes": [
        bytes_with_three_moments,
        bytes_of_shared_weights_twice,
        bytes_of_the_state_dict,
        bytes_of_the_first_dtype,
        bytes_with_counters_in_their_dtype,
        bytes_with_an_integer_counter,
        bytes_with_a_counter_for_momentum,
        bytes_of_plain_sgd_with_a_buffer,
        bytes_of_tables_alone,
        bytes_of_gradients_too,
        bytes_of_two_moments_in_rmsprop,
        bytes_per_module,
        bytes_that_freeze_the_model,
        bytes_that_clear_the_gradients,
        bytes_that_zero_the_gradients,
    ],
}
