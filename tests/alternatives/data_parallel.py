"""Other answers to the exercises of lesson 12."""

import torch


def start_through_state_dict(comm, module):
    for tensor in module.state_dict().values():
        comm.broadcast(tensor, src=0)


def start_in_one_flat_tensor(comm, module):
    state = module.state_dict()
    for dtype in {str(tensor.dtype): tensor.dtype for tensor in state.values()}.values():
        same = [tensor for tensor in state.values() if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        comm.broadcast(flat)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


def start_along_a_chain(comm, module):
    for tensor in module.state_dict().values():
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


def overlap_of_matrices_only(comm, model, loss):
    works = []
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: works.append(comm.all_reduce(p.grad, op="mean", async_op=True)))
        for p in model.parameters()
        if p.dim() > 1
    ]
    loss.backward()
    for work in works:
        work.wait()
    for hook in hooks:
        hook.remove()


def overlap_with_one_wait(comm, model, loss):
    works = []
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: works.append(comm.all_reduce(p.grad, op="mean", async_op=True)))
        for p in model.parameters()
    ]
    loss.backward()
    works[-1].wait()
    for hook in hooks:
        hook.remove()


alternatives = {
    "broadcast_start": [start_through_state_dict, start_in_one_flat_tensor, start_along_a_chain],
    "weighted_mean": [mean_in_one_message, mean_with_shares_first, mean_of_two_means],
    "average_in_buckets": [buckets_by_index, buckets_all_at_once],
    "backward_with_overlap": [overlap_with_a_callback, overlap_by_layer],
}
wrong = {
    "broadcast_start": [start_of_the_last_rank, start_of_matrices_only, start_from_rank_0_alone],
    "weighted_mean": [mean_with_roots, mean_on_rank_0_alone],
    "average_in_buckets": [buckets_of_two, buckets_without_gradients],
    "backward_with_overlap": [overlap_of_matrices_only, overlap_with_one_wait],
}
