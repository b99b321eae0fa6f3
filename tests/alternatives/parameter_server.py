"""Other answers to the exercises of lesson 13."""

import torch


def serve_with_a_fresh_tensor(comm, weights, lr, num_pushes):
    served = []
    while len(served) < num_pushes:
        message = torch.zeros_like(weights)
        served.append(comm.recv(message, src=None))
        weights.add_(message, alpha=-lr)
        comm.send(weights, dst=served[-1])
    return served


def serve_averages(comm, weights, lr, num_pushes):
    order = []
    for _ in range(num_pushes):
        gradient = torch.empty_like(weights)
        order.append(comm.recv(gradient))
        weights -= lr * gradient / 2
        comm.send(weights, order[-1])
    return order


def serve_answers_at_the_end(comm, weights, lr, num_pushes):
    order = []
    for _ in range(num_pushes):
        gradient = torch.empty_like(weights)
        order.append(comm.recv(gradient))
        weights -= lr * gradient
    for src in order:
        comm.send(weights, src)
    return order


def serve_forgets_the_order(comm, weights, lr, num_pushes):
    gradient, served = torch.empty_like(weights), set()
    for _ in range(num_pushes):
        src = comm.recv(gradient)
        weights -= lr * gradient
        comm.send(weights, src)
        served.add(src)
    return sorted(served)


def go_on_by_filter(clocks, waiting, max_staleness):
    at_work = [clock for clock in clocks if clock is not None]

    def is_near(worker):
        return all(clocks[worker] - clock <= max_staleness for clock in at_work)

    return list(filter(is_near, waiting))


def go_on_counts_from_the_mean(clocks, waiting, max_staleness):
    at_work = [clock for clock in clocks if clock is not None]
    return [w for w in waiting if clocks[w] <= sum(at_work) / len(at_work) + max_staleness]


def go_on_one_at_a_time(clocks, waiting, max_staleness):
    slowest = min([clock for clock in clocks if clock is not None], default=0)
    return [w for w in waiting if clocks[w] <= slowest + max_staleness][:1]


def go_on_if_near_to_those_at_work(clocks, waiting, max_staleness):
    others = [clock for worker, clock in enumerate(clocks) if clock is not None and worker not in waiting]
    slowest = min(others or [clock for clock in clocks if clock is not None], default=0)
    return [worker for worker in waiting if clocks[worker] <= slowest + max_staleness]


def go_on_and_count_at_once(clocks, waiting, max_staleness):
    clocks, allowed = list(clocks), []
    for worker in waiting:
        if clocks[worker] <= min(clock for clock in clocks if clock is not None) + max_staleness:
            allowed.append(worker)
            clocks[worker] += 1
    return allowed


def go_on_with_a_largest_bound(clocks, waiting, max_staleness):
    return go_on_by_filter(clocks, waiting, min(max_staleness, 1000))


def outer_by_torch(comm, start, weights, velocity, lr, momentum):
    theta = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([theta], lr=lr, momentum=momentum, nesterov=momentum > 0)
    optimizer.state[theta]["momentum_buffer"] = velocity
    theta.grad = start - weights
    comm.all_reduce(theta.grad, op="mean")
    gradient = theta.grad.clone()
    optimizer.step()
    if momentum == 0:
        velocity.copy_(gradient)
    start.copy_(theta.detach())
    weights.copy_(theta.detach())


def outer_reduces_the_weights(comm, start, weights, velocity, lr, momentum):
    comm.all_reduce(weights)
    delta = start - weights / comm.world_size
    velocity.copy_(momentum * velocity + delta)
    start -= lr * delta + lr * momentum * velocity
    weights[:] = start


def outer_gathers_everything(comm, start, weights, velocity, lr, momentum):
    everyone = weights.new_empty(comm.world_size * len(weights))
    comm.all_gather(everyone, weights)
    delta = start - everyone.view(comm.world_size, -1).mean(0)
    velocity.mul_(momentum).add_(delta)
    start -= lr * (delta + momentum * velocity)
    weights.copy_(start)


def outer_from_the_mean(comm, start, weights, velocity, lr, momentum):
    mean = weights.clone()
    comm.all_reduce(mean, op="mean")
    velocity.mul_(momentum).add_(start - mean)
    start.copy_(mean - lr * momentum * velocity)
    weights.copy_(start)


def outer_in_one_memory(comm, start, weights, velocity, lr, momentum):
    """The next inner step would move `start` too."""
    way = start - weights
    comm.all_reduce(way, op="mean")
    velocity.mul_(momentum).add_(way)
    start.sub_(lr * (way + momentum * velocity))
    weights.data = start


def traffic_step_by_step(size_bytes, num_workers, num_steps, inner_steps):
    server = reduced = local = 0
    for step in range(1, num_steps + 1):
        server += sum(size_bytes + size_bytes for _ in range(num_workers))
        chunk = size_bytes // num_workers
        ring = num_workers * 2 * (num_workers - 1) * chunk
        reduced += ring
        local += ring if step % inner_steps == 0 else 0
    return {"local": local, "server": server, "all-reduce": reduced}


def traffic_through_a_float(size_bytes, num_workers, num_steps, inner_steps):
    right = traffic_step_by_step(size_bytes, num_workers, num_steps, inner_steps)
    return {name: int(float(size)) for name, size in right.items()}


def traffic_of_the_busiest_rank(size_bytes, num_workers, num_steps, inner_steps):
    ring = 2 * (num_workers - 1) * size_bytes // num_workers
    return {
        "server": num_workers * size_bytes * num_steps,
        "all-reduce": ring * num_steps,
        "local": ring * (num_steps // inner_steps),
    }


alternatives = {
    "serve": [serve_with_a_fresh_tensor],
    "may_go_on": [go_on_by_filter],
    "outer_step": [outer_by_torch, outer_reduces_the_weights],
    "traffic": [traffic_step_by_step],
}
wrong = {
    "serve": [serve_averages, serve_answers_at_the_end, serve_forgets_the_order],
    "may_go_on": [
        go_on_counts_from_the_mean,
        go_on_one_at_a_time,
        go_on_if_near_to_those_at_work,
        go_on_and_count_at_once,
        go_on_with_a_largest_bound,
    ],
    "outer_step": [outer_gathers_everything, outer_from_the_mean, outer_in_one_memory],
    "traffic": [traffic_of_the_busiest_rank, traffic_through_a_float],
}
