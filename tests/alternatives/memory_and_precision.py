"""Lesson 08: right answers written another way, and wrong answers beyond the listed mistakes."""

import torch
from torch.nn.functional import cross_entropy
from torch.utils import checkpoint as torch_checkpoint

from lessons_lib import memory


def accumulate_by_hand(model, parts):
    parameters = list(model.parameters())
    sums, num_labelled, losses = [torch.zeros_like(p) for p in parameters], 0, []
    for x, y in parts:
        x, y = x[y != -100], y[y != -100]
        loss = cross_entropy(model(x), y, reduction="sum")
        for total, grad in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
            total += grad
        num_labelled += len(y)
        losses.append(loss.item())
    for p, total in zip(parameters, sums, strict=True):
        p.grad = total / num_labelled
    return sum(losses) / num_labelled


def accumulate_where_labelled(model, parts):
    num_labelled = sum(len(y[y >= 0]) for _, y in parts)
    for p in model.parameters():
        p.grad.zero_()
    mean = torch.zeros(())
    for x, y in parts:
        if (y >= 0).any():
            share = (y >= 0).sum() / num_labelled
            loss = cross_entropy(model(x), y) * share
            loss.backward()
            mean = mean + loss.detach()
    return mean


def accumulate_the_first(model, parts):
    model.zero_grad()
    cross_entropy(model(parts[0][0]), parts[0][1]).backward()


def accumulate_nothing(model, parts):
    del parts
    model.zero_grad()


def checkpoint_by_torch(block, x):
    return torch_checkpoint.checkpoint(block, x, use_reentrant=False)


def checkpoint_by_torch_the_old_way(block, x):
    if not x.requires_grad:  # the old way gives no gradients at all if the input needs none
        x = x.detach().requires_grad_()
    return torch_checkpoint.checkpoint(block, x, use_reentrant=True)


def checkpoint_by_hooks(block, x):
    """Each saved tensor is replaced by its number; the first that is asked for brings all back."""
    state, found, count = torch.get_rng_state(), [], [0]

    def pack(tensor):
        del tensor
        count[0] += 1
        return count[0] - 1

    def unpack(number):
        if not found:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t.detach()), lambda t: t):
                    block(x)
        return found[number]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return block(x)


def checkpoint_in_half_precision(block, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.double()):
        return block(x)


def checkpoint_of_the_input(block, x):
    return block(x.detach())


def memory_by_the_library(num_layers, width, vocabulary, context):
    parameters = memory.num_parameters(memory.transformer(num_layers, width, vocabulary, context))
    return parameters, sum(memory.training_bytes(parameters).values())


def memory_of_modules(num_layers, width, vocabulary, context):
    with torch.device("meta"):
        block = torch.nn.TransformerEncoderLayer(width, 1, 4 * width)
    parameters = num_layers * sum(p.numel() for p in block.parameters())
    parameters += (vocabulary + context + 2) * width
    return parameters, 16 * parameters


def memory_by_the_rule_of_thumb(num_layers, width, vocabulary, context):
    del context
    parameters = 12 * num_layers * width**2 + vocabulary * width
    return parameters, 16 * parameters


def memory_in_float32(num_layers, width, vocabulary, context):
    parameters, size = memory_by_the_library(num_layers, width, vocabulary, context)
    return parameters, size * 4


def scaler_by_a_flat_tensor(grads, scale, good_steps, growth_interval):
    flat = torch.cat([g.flatten() for g in grads]).float()
    if torch.isinf(flat).any() or torch.isnan(flat).any():
        return [None, scale * 0.5, 0]
    grows = good_steps + 1 >= growth_interval
    parts = flat.div(scale).split([g.numel() for g in grads])
    unscaled = [part.view_as(g) for part, g in zip(parts, grads, strict=True)]
    return unscaled, scale * (1 + grows), 0 if grows else good_steps + 1


def scaler_that_quarters(grads, scale, good_steps, growth_interval):
    found, new_scale, good_steps = scaler_by_a_flat_tensor(grads, scale, good_steps, growth_interval)
    return found, new_scale if found else scale / 4, good_steps


def scaler_that_replaces(grads, scale, good_steps, growth_interval):
    del growth_interval
    return [torch.nan_to_num(g.float() / scale) for g in grads], scale, good_steps + 1


alternatives = {
    "accumulate": [accumulate_by_hand, accumulate_where_labelled],
    "checkpoint": [checkpoint_by_torch, checkpoint_by_torch_the_old_way, checkpoint_by_hooks],
    "training_memory": [memory_by_the_library, memory_of_modules],
    "scaler_step": [scaler_by_a_flat_tensor],
}
wrong = {
    "accumulate": [accumulate_the_first, accumulate_nothing],
    "checkpoint": [checkpoint_in_half_precision, checkpoint_of_the_input],
    "training_memory": [memory_by_the_rule_of_thumb, memory_in_float32],
    "scaler_step": [scaler_that_quarters, scaler_that_replaces],
}
