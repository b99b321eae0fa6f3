"""Other answers to the exercises of lesson 12."""

import torch


def tensors_of(module):
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]


def start_through_state_dict(comm, module):
    """Leaves out the buffers that are in no state_dict."""
    for tensor in module.state_dict().values():
        comm.broadcast(tensor, src=0)


def start_in_one_flat_tensor(comm, module):
    for dtype in {str(tensor.dtype): tensor.dtype for tensor in tensors_of(module)}.values():
        same = [tensor for tensor in tensors_of(module) if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        comm.broadcast(flat)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


def start_along_a_chain(comm, module):
    for tensor in tensors_of(module):
        if comm.rank > 0:
            comm.recv(tensor, comm.rank - 1)
        if comm.rank < comm.world_size - 1:
            comm.send(tensor, comm.rank + 1)


def start_of_the_last_rank(comm, module):
    for tensor in module.state_dict().values():
        comm.broadcast(tensor, src=comm.world_size - 1)


def start_of_matrices_only(comm, module):
    for tensor in module.state_dict().values():
        if tensor.dim() > 1:
            comm.broadcast(tensor)


def start_from_rank_0_alone(comm, module):
    if comm.rank == 0:
        for tensor in module.state_dict().values():
            comm.broadcast(tensor)


def mean_in_one_message(comm, gradient, num_samples):
    message = torch.cat([num_samples * gradient, gradient.new_tensor([float(num_samples)])])
    comm.all_reduce(message)
    return message[:-1] / message[-1]


def mean_with_shares_first(comm, gradient, num_samples):
    total = torch.tensor([num_samples])
    comm.all_reduce(total)
    gradient = gradient * (num_samples / total.item())
    comm.all_reduce(gradient)
    return gradient


def mean_of_two_means(comm, gradient, num_samples):
    weighted, count = gradient * num_samples, gradient.new_tensor([num_samples])
    comm.all_reduce(weighted, op="mean")
    comm.all_reduce(count, op="mean")
    return weighted / count


def mean_with_roots(comm, gradient, num_samples):
    weighted, count = gradient * num_samples**0.5, gradient.new_tensor([num_samples**0.5])
    comm.all_reduce(weighted)
    comm.all_reduce(count)
    return weighted / count


def mean_on_rank_0_alone(comm, gradient, num_samples):
    weighted, count = gradient * num_samples, gradient.new_tensor([num_samples])
    comm.all_reduce(weighted)
    comm.all_reduce(count)
    return weighted / count if comm.rank == 0 else gradient


def buckets_by_index(comm, gradients, cap_bytes):
    first = 0
    while first < len(gradients):
        last = first + 1
        while last < len(gradients) and sum(g.nbytes for g in gradients[first : last + 1]) <= cap_bytes:
            last += 1
        flat = torch.nn.utils.parameters_to_vector(gradients[first:last])
        comm.all_reduce(flat)
        torch.nn.utils.vector_to_parameters(flat / comm.world_size, gradients[first:last])
        first = last


def buckets_all_at_once(comm, gradients, cap_bytes):
    works, bucket = [], []
    for gradient in [*reversed(gradients), None]:
        full = gradient is None or sum(g.nbytes for g in bucket) + gradient.nbytes > cap_bytes
        if full and bucket:
            flat = torch.cat([g.flatten() for g in bucket])
            works.append((bucket, flat, comm.all_reduce(flat, op="mean", async_op=True)))
            bucket = []
        bucket.append(gradient)
    for bucket, flat, work in works:
        work.wait()
        start = 0
        for gradient in bucket:
            gradient.view(-1)[:] = flat[start : start + gradient.numel()]
            start += gradient.numel()


def buckets_of_two(comm, gradients, cap_bytes):
    for first in range(0, len(gradients), 2):
        flat = torch.cat([g.reshape(-1) for g in gradients[first : first + 2]])
        comm.all_reduce(flat, op="mean")
        for gradient, part in zip(
            gradients[first : first + 2], flat.split([g.numel() for g in gradients[first : first + 2]]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))


def buckets_without_gradients(comm, gradients, cap_bytes):
    for gradient in gradients:
        gradient.zero_()


def overlap_with_a_callback(comm, model, loss):
    works = []

    def ready(parameter):
        if not works:
            torch.autograd.Variable._execution_engine.queue_callback(lambda: [work.wait() for work in works])
        works.append(comm.all_reduce(parameter.grad, "mean", True))

    hooks = [parameter.register_post_accumulate_grad_hook(ready) for parameter in model.parameters()]
    torch.autograd.backward(loss)
    for hook in hooks:
        hook.remove()


def overlap_by_layer(comm, model, loss):
    works, hooks = [], []
    for layer in model:
        waiting = set(layer.parameters())

        def ready(parameter, layer=layer, waiting=waiting):
            waiting.discard(parameter)
            if not waiting:
                own = list(layer.parameters())
                flat = torch.cat([p.grad.flatten() for p in own])
                works.append((own, flat, comm.all_reduce(flat, op="sum", async_op=True)))

        hooks += [parameter.register_post_accumulate_grad_hook(ready) for parameter in layer.parameters()]
    loss.backward()
    for own, flat, work in works:
        work.wait()
        for p, part in zip(own, flat.split([p.numel() for p in own]), strict=True):
            p.grad = (part / comm.world_size).view_as(p)
    for hook in hooks:
        hook.remove()


def backward_with(hook, parameters, loss):
    """Run backward, and `hook` on each of the parameters as soon as its gradient is complete."""
    hooks = [parameter.register_post_accumulate_grad_hook(hook) for parameter in parameters]
    loss.backward()
    for each in hooks:
        each.remove()


def overlap_of_matrices_only(comm, model, loss):
    works = []
    matrices = [p for p in model.parameters() if p.dim() > 1]
    backward_with(lambda p: works.append(comm.all_reduce(p.grad, op="mean", async_op=True)), matrices, loss)
    for work in works:
        work.wait()


def overlap_with_one_wait(comm, model, loss):
    works = []
    backward_with(lambda p: works.append(comm.all_reduce(p.grad, op="mean", async_op=True)), model.parameters(), loss)
    works[-1].wait()


def start_by_copying_what_arrived(comm, module):
    arrived = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    arrived |= {name: tensor.clone() for name, tensor in module.named_buffers()}
    for name in sorted(arrived):
        comm.broadcast(arrived[name], src=0)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.copy_(arrived[name])


def start_with_data_of_parameters(comm, module):
    """Right numbers in new memory: who has a view of the old, as an optimiser of one flat tensor has, sees none."""
    for parameter in module.parameters():
        received = parameter.data.clone()
        comm.broadcast(received)
        parameter.data = received
    for buffer in module.buffers():
        comm.broadcast(buffer)


def start_in_one_flat_tensor_of_float32(comm, module):
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors_of(module)])
    comm.broadcast(flat)
    for tensor, part in zip(tensors_of(module), flat.split([t.numel() for t in tensors_of(module)]), strict=True):
        tensor.copy_(part.view_as(tensor))


def start_with_new_parameters(comm, module):
    """Right numbers, but the optimiser that holds the old parameters never sees them."""
    for layer in module.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            new = torch.nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            comm.broadcast(new)
            setattr(layer, name, new)
    for buffer in module.buffers():
        comm.broadcast(buffer)


def start_from_every_rank_in_turn(comm, module):
    """Right, as rank 0 comes first: from then on the others send what they have got, and N times the bytes travel."""
    for tensor in tensors_of(module):
        for src in range(comm.world_size):
            comm.broadcast(tensor, src)


def start_by_zeros_and_a_sum(comm, module):
    """Right, but an all-reduce gathers before it spreads: twice the bytes."""
    for tensor in tensors_of(module):
        if comm.rank > 0:
            tensor.zero_()
        comm.all_reduce(tensor)


def start_all_trained(comm, module):
    module.requires_grad_(True)
    start_along_a_chain(comm, module)


def start_without_integers(comm, module):
    for tensor in tensors_of(module):
        if tensor.is_floating_point():
            comm.broadcast(tensor)


def start_of_the_first_layer(comm, module):
    for tensor in [*module[0].parameters(), *module[1].buffers()]:
        comm.broadcast(tensor)


def start_with_zeros(comm, module):
    for tensor in module.state_dict().values():
        tensor.zero_()


def mean_with_numpy(comm, gradient, num_samples):
    weighted = torch.from_numpy(gradient.numpy() * num_samples)
    count = torch.zeros(1, dtype=gradient.dtype)
    count[0] = num_samples
    comm.all_reduce(weighted)
    comm.all_reduce(count)
    return weighted.div(count.item())


def mean_over_the_argument(comm, gradient, num_samples):
    gradient *= num_samples
    total = gradient.new_tensor([num_samples])
    comm.all_reduce(gradient)
    comm.all_reduce(total)
    return gradient.clone() / total


def mean_of_ranks_that_have_samples(comm, gradient, num_samples):
    total, count = gradient.clone(), gradient.new_tensor([num_samples > 0])
    comm.all_reduce(total)
    comm.all_reduce(count)
    return total / count


def mean_with_the_largest_count(comm, gradient, num_samples):
    weighted, count = gradient * num_samples, gradient.new_tensor([num_samples])
    comm.all_reduce(weighted)
    comm.all_reduce(count, op="max")
    return weighted / (count * comm.world_size)


def mean_in_whole_numbers(comm, gradient, num_samples):
    weighted, count = gradient * num_samples, gradient.new_tensor([num_samples])
    comm.all_reduce(weighted)
    comm.all_reduce(count)
    return (weighted // count).to(gradient.dtype)


def mean_with_a_row_of_counts(comm, gradient, num_samples):
    """Right, and the count travels as often as there are numbers in the gradient."""
    weighted, count = gradient * num_samples, torch.full_like(gradient, num_samples)
    comm.all_reduce(weighted)
    comm.all_reduce(count)
    return weighted / count


def mean_without_nan(comm, gradient, num_samples):
    return mean_in_one_message(comm, torch.nan_to_num(gradient), num_samples)


def mean_squeezed(comm, gradient, num_samples):
    return mean_in_one_message(comm, gradient, num_samples).squeeze()


def mean_in_float64(comm, gradient, num_samples):
    return mean_in_one_message(comm, gradient.double(), num_samples)


def buckets_by_recursion(comm, gradients, cap_bytes):
    if not gradients or comm.world_size == 1:
        return
    size = 1
    while size < len(gradients) and sum(g.nbytes for g in gradients[: size + 1]) <= cap_bytes:
        size += 1
    flat = torch.cat([g.ravel() for g in gradients[:size]])
    comm.all_reduce(flat)
    for gradient, part in zip(gradients[:size], flat.split([g.numel() for g in gradients[:size]]), strict=True):
        gradient[...] = part.reshape(gradient.shape) / comm.world_size
    buckets_by_recursion(comm, gradients[size:], cap_bytes)


def buckets_with_new_tensors(comm, gradients, cap_bytes):
    for k, gradient in enumerate(gradients):
        gradients[k] = gradient.clone()
    buckets_by_recursion(comm, gradients, cap_bytes)


def buckets_closed_when_they_are_full(comm, gradients, cap_bytes):
    """Closes a bucket only when it has grown beyond the cap."""
    bucket = []
    for k, gradient in enumerate(gradients):
        bucket.append(gradient)
        if sum(g.nbytes for g in bucket) > cap_bytes or k == len(gradients) - 1:
            buckets_by_recursion(comm, bucket, 1 << 30)
            bucket = []


def buckets_strictly_below_the_cap(comm, gradients, cap_bytes):
    buckets_by_recursion(comm, gradients, cap_bytes - 1)


def buckets_without_the_large_ones(comm, gradients, cap_bytes):
    buckets_by_recursion(comm, [g for g in gradients if g.nbytes <= cap_bytes], cap_bytes)


def buckets_of_four_bytes_a_number(comm, gradients, cap_bytes):
    buckets_by_recursion(comm, gradients, cap_bytes * (gradients[0].itemsize if gradients else 4) // 4)


def buckets_sorted(comm, gradients, cap_bytes):
    gradients.sort(key=lambda gradient: gradient.numel())
    buckets_by_recursion(comm, gradients, cap_bytes)


def buckets_divided_twice(comm, gradients, cap_bytes):
    buckets_by_recursion(comm, gradients, cap_bytes)
    for gradient in gradients:
        gradient /= comm.world_size


def buckets_of_matrices_only(comm, gradients, cap_bytes):
    buckets_by_recursion(comm, [g for g in gradients if g.dim() > 1], cap_bytes)


def overlap_starting_at_the_last_gradient(comm, model, loss):
    """Within backward, but when it has nothing left to do."""
    works, parameters, ready = [], list(model.parameters()), []

    def note(parameter):
        ready.append(parameter)
        if len(ready) == len(parameters):
            works.extend(comm.all_reduce(p.grad, op="mean", async_op=True) for p in ready)

    backward_with(note, parameters, loss)
    for work in works:
        work.wait()


def overlap_in_a_second_pass(comm, model, loss):
    works = []
    loss.backward(retain_graph=True)
    model.zero_grad()
    backward_with(lambda p: works.append(comm.all_reduce(p.grad, op="mean", async_op=True)), model.parameters(), loss)
    for work in works:
        work.wait()


def overlap_one_layer_late(comm, model, loss):
    works, waiting = [], []

    def ready(parameter):
        waiting.append(parameter)
        if len(waiting) > 2:
            works.append(comm.all_reduce(waiting.pop(0).grad, op="mean", async_op=True))

    backward_with(ready, model.parameters(), loss)
    works += [comm.all_reduce(p.grad, op="mean", async_op=True) for p in waiting]
    for work in works:
        work.wait()


def overlap_of_a_copy(comm, model, loss):
    works = []
    backward_with(
        lambda p: works.append(comm.all_reduce(p.grad * 1.0, op="mean", async_op=True)), model.parameters(), loss
    )
    for work in works:
        work.wait()


def overlap_in_two_buckets(comm, model, loss):
    parameters, works, ready = list(model.parameters()), [], []

    def note(parameter):
        ready.append(parameter)
        if len(ready) in (len(parameters) // 2, len(parameters)):
            start = 0 if len(ready) == len(parameters) // 2 else len(parameters) // 2
            works.extend(comm.all_reduce(p.grad, op="mean", async_op=True) for p in ready[start:])

    backward_with(note, parameters, loss)
    for work in works:
        work.wait()


def overlap_with_hooks_that_sleep(comm, model, loss):
    works, awake = [], [True]
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p: works.append(comm.all_reduce(p.grad, op="mean", async_op=True)) if awake else None
        )
    loss.backward()
    for work in works:
        work.wait()
    awake.clear()


def overlap_of_four_ranks(comm, model, loss):
    works = []
    backward_with(lambda p: works.append(comm.all_reduce(p.grad, async_op=True)), model.parameters(), loss)
    for work in works:
        work.wait()
    for parameter in model.parameters():
        parameter.grad /= 4


def overlap_that_waits_in_the_hook(comm, model, loss):
    backward_with(lambda p: comm.all_reduce(p.grad, op="mean", async_op=True).wait(), model.parameters(), loss)


def overlap_without_backward(comm, model, loss):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def overlap_dividing_what_has_not_arrived(comm, model, loss):
    works = []

    def ready(parameter):
        works.append(comm.all_reduce(parameter.grad, async_op=True))
        parameter.grad = parameter.grad / comm.world_size

    backward_with(ready, model.parameters(), loss)
    for work in works:
        work.wait()


alternatives = {
    "broadcast_start": [
        start_in_one_flat_tensor,
        start_along_a_chain,
        start_by_copying_what_arrived,
    ],
    "weighted_mean": [
        mean_in_one_message,
        mean_with_shares_first,
        mean_of_two_means,
        mean_with_numpy,
    ],
    "average_in_buckets": [buckets_by_index, buckets_all_at_once, buckets_by_recursion],
    "backward_with_overlap": [overlap_with_a_callback, overlap_by_layer],
}
wrong = {
    "broadcast_start": [
        start_through_state_dict,
        start_with_data_of_parameters,
        start_in_one_flat_tensor_of_float32,
        start_of_the_last_rank,
        start_of_matrices_only,
        start_from_rank_0_alone,
        start_with_new_parameters,
        start_from_every_rank_in_turn,
        start_by_zeros_and_a_sum,
        start_all_trained,
        start_without_integers,
        start_of_the_first_layer,
        start_with_zeros,
    ],
    "weighted_mean": [
        mean_with_roots,
        mean_on_rank_0_alone,
        mean_over_the_argument,
        mean_of_ranks_that_have_samples,
        mean_with_the_largest_count,
        mean_in_whole_numbers,
        mean_with_a_row_of_counts,
        mean_without_nan,
        mean_squeezed,
        mean_in_float64,
    ],
    "average_in_buckets": [
        buckets_of_two,
        buckets_without_gradients,
        buckets_with_new_tensors,
        buckets_closed_when_they_are_full,
        buckets_strictly_below_the_cap,
        buckets_without_the_large_ones,
        buckets_of_four_bytes_a_number,
        buckets_sorted,
        buckets_divided_twice,
        buckets_of_matrices_only,
    ],
    "backward_with_overlap": [
        overlap_of_matrices_only,
        overlap_with_one_wait,
        overlap_starting_at_the_last_gradient,
        overlap_in_a_second_pass,
        overlap_one_layer_late,
        overlap_of_a_copy,
        overlap_in_two_buckets,
        overlap_with_hooks_that_sleep,
        overlap_of_four_ranks,
        overlap_that_waits_in_the_hook,
        overlap_without_backward,
        overlap_dividing_what_has_not_arrived,
    ],
}
