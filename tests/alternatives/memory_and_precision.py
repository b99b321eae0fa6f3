"""Lesson 08: right answers written another way, and wrong answers beyond the listed mistakes."""

import numpy
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
    model.zero_grad(set_to_none=False)
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


def accumulate_sample_by_sample(model, parts):
    """Even less memory: no part is needed as a whole. Scales at the end."""
    model.zero_grad(set_to_none=True)
    losses = []
    for x, y in parts:
        for sample, label in zip(x, y, strict=True):
            if label != -100:
                loss = -model(sample[None]).log_softmax(1)[0, label]
                loss.backward()
                losses.append(loss.detach())
    for p in model.parameters():
        p.grad /= len(losses)
    return torch.stack(losses).mean()


def accumulated(before=lambda model, parts: None, after=lambda model, loss: loss, each=1):
    """The right answer with something wrong before and after it, and each part `each` times."""

    def answer(model, parts):
        before(model, parts)
        model.zero_grad()
        num_labelled = sum((y != -100).sum() for _, y in parts)
        total = 0.0
        for x, y in parts:
            for _ in range(each):
                loss = cross_entropy(model(x), y, reduction="sum") / (num_labelled * each)
                loss.backward()
                total += loss.item()
        return after(model, total)

    return answer


def accumulate_with_the_graph(model, parts):
    model.zero_grad()
    num_labelled, mean = sum((y != -100).sum() for _, y in parts), 0.0
    for x, y in parts:
        loss = cross_entropy(model(x), y, reduction="sum") / num_labelled
        loss.backward()
        mean = mean + loss
    return mean


def zero_the_old(model, parts):
    for p in model.parameters():
        p.grad.zero_()


def make_a_step(model, loss):
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    return loss


def replace_labels(model, parts):
    for _, y in parts:
        y.clamp_(min=-100)[y == -100] = -100
        y[:1] = -100


def accumulate_without_empty_classes(model, parts):
    return accumulate_by_hand(model, [(x[y > 0], y[y > 0]) for x, y in parts])


def loss_looked_at_first(model, parts):
    num_labelled = sum(len(y[y >= 0]) for _, y in parts)
    with torch.no_grad():
        mean = sum(cross_entropy(model(x), y, reduction="sum") for x, y in parts) / num_labelled
    accumulate_by_hand(model, parts)
    return mean


def checkpoint_with_saved_state(block, x):
    """Sets and puts back the random state by itself, and hands the gradients of the parameters to their `.grad`."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, handle):
            ctx.x, ctx.state = x.detach(), torch.random.get_rng_state()
            return block(x)

        @staticmethod
        def backward(ctx, grad):
            now, x = torch.get_rng_state(), ctx.x.clone().requires_grad_()
            torch.set_rng_state(ctx.state)
            with torch.set_grad_enabled(True):
                y = block(x)
            torch.set_rng_state(now)
            y.backward(grad)
            return x.grad, None

    return Again.apply(x, torch.zeros((), requires_grad=True))


def recomputed(keep=lambda x: x, before=lambda block: None, after=lambda block: None, second=lambda block, x: block(x)):
    """A checkpoint that keeps `keep(x)`, with something before and after the second run."""

    def answer(block, x):
        class Again(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, *parameters):
                ctx.state = torch.get_rng_state()
                ctx.kept = keep(x)
                return block(x)

            @staticmethod
            def backward(ctx, grad):
                before(block)
                x = ctx.kept.detach().to(grad.dtype).requires_grad_()
                with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                    torch.set_rng_state(ctx.state)
                    y = second(block, x)
                found = torch.autograd.grad(y, [x, *block.parameters()], grad)
                after(block)
                return found

        return Again.apply(x, *block.parameters())

    return answer


def marked_in_place(block, x):
    return recomputed()(block, x.requires_grad_())


def a_run_for_each(block, x):
    """One backward for x and one for the parameters."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *parameters):
            ctx.state, ctx.x = torch.get_rng_state(), x
            return block(x)

        @staticmethod
        def backward(ctx, grad):
            x = ctx.x.detach().requires_grad_()
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                torch.set_rng_state(ctx.state)
                y = block(x)
            of_x = torch.autograd.grad(y, [x], grad, retain_graph=True)
            return *of_x, *torch.autograd.grad(y, list(block.parameters()), grad)

    return Again.apply(x, *block.parameters())


def one_for_all(block, x, kept=[]):  # noqa: B006
    """Keeps the input of the last call only."""
    kept[:] = [x]
    return recomputed(keep=lambda x: x, second=lambda block, x: block(kept[0].detach() + 0 * x))(block, x)


def clear_gradients(block):
    block.zero_grad()


def memory_by_sums(num_layers, width, vocabulary, context):
    shapes = [(vocabulary, width), (context, width), (2, width)]
    for _ in range(num_layers):
        shapes += [(width, width), (1, width)] * 4 + [
            (width, 4 * width),
            (4 * width, 1),
            (4 * width, width),
            (1, width),
        ]
        shapes += [(2, width)] * 2
    parameters = sum(rows * columns for rows, columns in shapes)
    return [parameters, sum(parameters * size for size in (2, 2, 4, 4, 4))]


def memory_with(parameters=lambda count, *sizes: count, size=lambda parameters: 16 * parameters):
    def answer(*sizes):
        count = parameters(memory_by_sums(*sizes)[0], *sizes)
        return count, size(count)

    return answer


def scaler_by_numpy(grads, scale, good_steps, growth_interval):
    arrays = [g.numpy().astype("float32") for g in grads]
    if sum(int((~numpy.isfinite(array)).sum()) for array in arrays):
        return None, scale * 0.5, 0
    unscaled = [torch.from_numpy(numpy.asarray(array / numpy.float32(scale))) for array in arrays]
    full = not good_steps + 1 < growth_interval
    return unscaled, scale * 2**full, (good_steps + 1) * (not full)


def scaled(finite=None, unscale=None, rest=lambda scale, good_steps: (scale, good_steps)):
    """The right answer with another test, another division, or another rest."""

    def answer(grads, scale, good_steps, growth_interval):
        is_finite = finite(grads) if finite else all(g.isfinite().all() for g in grads)
        if not is_finite:
            return None, *rest(scale / 2, 0)
        unscaled = [unscale(g, scale) if unscale else g.float() / scale for g in grads]
        grows = good_steps + 1 >= growth_interval
        return unscaled, *rest(scale * 2 if grows else scale, 0 if grows else good_steps + 1)

    return answer


alternatives = {
    "accumulate": [accumulate_by_hand, accumulate_where_labelled, accumulate_sample_by_sample, accumulated()],
    "checkpoint": [checkpoint_by_hooks, checkpoint_with_saved_state, recomputed()],
    "training_memory": [memory_by_the_library, memory_of_modules, memory_by_sums, memory_with()],
    "scaler_step": [scaler_by_a_flat_tensor, scaler_by_numpy, scaled()],
}
wrong = {
    "accumulate": [
        accumulate_the_first,
        accumulate_nothing,
        accumulate_without_empty_classes,
        loss_looked_at_first,
        accumulated(before=zero_the_old),
        accumulated(before=replace_labels),
        accumulated(before=lambda model, parts: parts.reverse()),
        accumulated(before=lambda model, parts: model.train(not model.training)),
        accumulated(after=make_a_step),
        accumulated(after=lambda model, loss: model.requires_grad_(False) and loss),
        accumulated(after=lambda model, loss: None),
        accumulate_with_the_graph,
        accumulated(after=lambda model, loss: model.zero_grad() or loss),
        accumulated(after=lambda model, loss: 2 * loss),
        accumulated(each=2),
        lambda model, parts: accumulated()(model, [(x, y) for x, y in parts if len(y) > 1]),
        lambda model, parts: accumulated()(model, parts[:5]),
    ],
    "checkpoint": [
        checkpoint_by_torch,
        checkpoint_by_torch_the_old_way,
        checkpoint_in_half_precision,
        checkpoint_of_the_input,
        marked_in_place,
        a_run_for_each,
        one_for_all,
        recomputed(keep=lambda x: x.half()),
        recomputed(keep=lambda x: x.detach().clone()),
        recomputed(before=lambda block: block.eval()),
        recomputed(before=lambda block: block.train()),
        recomputed(after=clear_gradients),
        recomputed(after=lambda block: torch.rand(1)),
        recomputed(second=lambda block, x: (block(x), block(x))[1]),
        lambda block, x: recomputed()(block, x).clone().detach(),
    ],
    "training_memory": [
        memory_by_the_rule_of_thumb,
        memory_in_float32,
        memory_with(size=lambda parameters: 16.0 * parameters),
        memory_with(size=lambda parameters: 18 * parameters),
        memory_with(size=lambda parameters: 14 * parameters),
        memory_with(size=lambda parameters: 8 * parameters),
        memory_with(size=lambda parameters: 2 * parameters),
        memory_with(size=lambda parameters: 16 * parameters / 2**30),
        memory_with(parameters=lambda count, layers, width, vocabulary, context: count + vocabulary),
        memory_with(parameters=lambda count, layers, width, vocabulary, context: count - 3 * layers * width),
        memory_with(parameters=lambda count, layers, width, vocabulary, context: count - layers * 4 * width),
        memory_with(parameters=lambda count, layers, width, vocabulary, context: count - 2 * width * (layers + 1)),
        memory_with(parameters=lambda count, layers, width, vocabulary, context: count - width * (width + 1) * layers),
    ],
    "scaler_step": [
        scaler_that_quarters,
        scaler_that_replaces,
        scaled(finite=lambda grads: torch.isfinite(sum(g.sum() for g in grads))),
        scaled(finite=lambda grads: all(g.isfinite().any() for g in grads)),
        scaled(finite=lambda grads: grads[0].isfinite().all()),
        scaled(finite=lambda grads: grads[-1].isfinite().all()),
        scaled(finite=lambda grads: all((g < float("inf")).all() for g in grads)),
        scaled(finite=lambda grads: all((g.abs() < 60000).all() for g in grads)),
        scaled(unscale=lambda g, scale: g.float() * scale),
        scaled(unscale=lambda g, scale: g.double() / scale),
        scaled(unscale=lambda g, scale: (g * (1 / scale)).float()),
        scaled(unscale=lambda g, scale: g.float().flatten() / scale),
        scaled(unscale=lambda g, scale: g.mul_(1).float().div_(scale) if not g.zero_().any() else g),
        scaled(rest=lambda scale, good_steps: (int(scale), good_steps)),
        scaled(rest=lambda scale, good_steps: (max(scale, 1.0), good_steps)),
        scaled(rest=lambda scale, good_steps: (scale, float(good_steps))),
        scaled(rest=lambda scale, good_steps: (min(scale, 65536.0), good_steps)),
    ],
}
