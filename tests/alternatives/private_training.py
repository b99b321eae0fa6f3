"""Other answers to the exercises of lesson 25."""

import math

import torch

from lessons_lib.privacy import Accountant, clipped_sum


def by_the_library(gradients, max_norm, noise_multiplier, noise, expected_batch_size):
    total = clipped_sum(gradients, max_norm)
    scale = noise_multiplier * max_norm
    return {name: (total[name] + scale * noise[name]) / expected_batch_size for name in total}


def sample_by_sample(gradients, max_norm, noise_multiplier, noise, expected_batch_size):
    total = {name: noise_multiplier * max_norm * z for name, z in noise.items()}
    for i in range(len(next(iter(gradients.values())))):
        one = {name: g[i] for name, g in gradients.items()}
        norm = torch.cat([g.flatten() for g in one.values()]).norm()
        factor = max_norm / norm if norm > max_norm else 1.0
        total = {name: total[name] + factor * g for name, g in one.items()}
    return {name: t / expected_batch_size for name, t in total.items()}


def with_noise_for_each_sample(gradients, max_norm, noise_multiplier, noise, expected_batch_size):
    num = len(next(iter(gradients.values())))
    noise = {name: num * z for name, z in noise.items()}
    return by_the_library(gradients, max_norm, noise_multiplier, noise, expected_batch_size)


def by_the_accountant(sample_rate, noise_multiplier, steps, delta, orders):
    accountant = Accountant(orders)
    accountant.step(sample_rate, noise_multiplier, steps)
    classic, _ = accountant.epsilon(delta, "classic")
    tight = [
        r + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        for order, r in zip(orders, accountant.rdp, strict=True)
    ]
    return classic, max(0.0, min(tight))


def with_a_whole_power(sample_rate, noise_multiplier, steps, delta, orders):
    """One step of a divergence T times as large, as if noise were shared by all steps."""
    classic, tight = by_the_accountant(sample_rate, noise_multiplier / math.sqrt(max(1, steps)), 1, delta, orders)
    return classic, tight


def by_signs(vector, number, masks):
    total = vector.clone()
    for other in sorted(masks):
        total = (total + (1 if other > number else -1) * masks[other]) % 2**32
    return total.remainder(2**32)


def by_bits(vector, number, masks):
    total = vector
    for other, mask in masks.items():
        total = total + mask if number < other else total - mask
    return total & (2**32 - 1)


def hidden_by_chance(vector, number, masks):
    """Masks of its own for each client, which nobody takes off again."""
    random = torch.Generator().manual_seed(number)
    return (vector + torch.randint(0, 2**32, vector.shape, generator=random)) % 2**32


def by_the_rightly_signed(lines, sign, head):
    """The right hashes of all lines that the texts would have."""
    count, last = head
    hashes = [""]
    for text, _ in lines:
        hashes.append(sign(hashes[-1], text))
    for number in range(1, max(len(lines), count) + 1):
        if number > min(len(lines), count) or lines[number - 1][1] != hashes[number]:
            return number
        if number == count and hashes[number] != last:
            return number
    return None


def by_the_head_alone(lines, sign, head):
    count, last = head
    return None if len(lines) == count and (lines[-1][1] if lines else "") == last else len(lines)


alternatives = {
    "clip_per_sample": [by_the_library, sample_by_sample],
    "epsilon_of": [by_the_accountant],
    "masks_that_cancel": [by_signs, by_bits],
    "verify_log": [by_the_rightly_signed],
}
wrong = {
    "clip_per_sample": [with_noise_for_each_sample],
    "epsilon_of": [with_a_whole_power],
    "masks_that_cancel": [hidden_by_chance],
    "verify_log": [by_the_head_alone],
}
