"""Exercises of lesson 12: the start, the weighted mean, buckets, and reducing while backward goes on."""

from itertools import pairwise

import torch
from torch import nn

from lessons_lib.exercises.core import Exercise, Outcome, by_rank
from lessons_lib.launch import launch

# --- broadcast_start: one start for all ------------------------------------------------------------------------------


def broadcast_start(comm, module):
    """Overwrite this rank's `module` with rank 0's, in place: every parameter and every buffer."""
    for tensor in [*module.parameters(), *module.buffers()]:
        comm.broadcast(tensor)


def _forgets_the_buffers(comm, module):
    """The parameters agree, the buffers don't: running statistics of batch norm are state too, and no gradient will
    ever repair them. `module.buffers()` lists them."""
    for tensor in module.parameters():
        comm.broadcast(tensor)


def _trained_only(comm, module):
    """A frozen parameter gets no gradient, so nothing will bring it together later. It has to be broadcast as well:
    leave `requires_grad` out of it."""
    for tensor in [*[p for p in module.parameters() if p.requires_grad], *module.buffers()]:
        comm.broadcast(tensor)


def _mean_of_all_starts(comm, module):
    """The mean of four random starts is not rank 0's start: it has half the spread that the initialisation chose. One
    rank's weights should go to all, and that is a broadcast."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            comm.all_reduce(tensor, op="mean")


def _every_rank_in_turn(comm, module):
    """Right, and only because rank 0 came first: from then on the others send what they have just got, and N times the
    bytes travel. One broadcast is enough: `src` is 0 for all ranks."""
    for tensor in [*module.parameters(), *module.buffers()]:
        for src in range(comm.world_size):
            comm.broadcast(tensor, src=src)


def _copies(comm, module):
    """`clone()` makes new memory: the broadcast filled the copy, and the module still has its own numbers. Hand over
    the parameter itself."""
    for tensor in [*module.parameters(), *module.buffers()]:
        comm.broadcast(tensor.clone())


def _one_after_the_other(comm, module):
    """Right, but rank 0 sends everything N − 1 times while the others rest. In `comm.broadcast` those who have it pass
    it on: a tree (lesson 10)."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if comm.rank == 0:
            for dst in range(1, comm.world_size):
                comm.send(tensor, dst)
        else:
            comm.recv(tensor, 0)


def _zero_and_sum(comm, module):
    """0 + 0 + w₀ is right, but an all-reduce gathers before it spreads: twice the bytes. Nothing needs to be added up
    here."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if comm.rank > 0:
            tensor.data.zero_()
        comm.all_reduce(tensor)


def _started(comm, fn):
    """What `fn` leaves of a module whose every number depends on the rank."""
    torch.manual_seed(comm.rank)
    module = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3))
    module[2].requires_grad_(False)
    module(torch.randn(4 + comm.rank, 12))
    module[1].num_batches_tracked += comm.rank
    fn(comm, module)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _run_start(fn, world_size):
    results = launch(_started, fn, world_size=world_size)
    sent = [ledger.bytes_sent for ledger in results.ledgers]
    return Outcome(by_rank(results), {"bytes sent by all ranks": sum(sent), "bytes sent by one rank": max(sent)})


broadcast_start = Exercise(
    broadcast_start,
    cases=[(4,)],
    outcome=_run_start,
    may_be_cheaper=True,  # a chain spares rank 0, and takes longer
    rtol=0.0,
    atol=0.0,
    mistakes=[
        _forgets_the_buffers,
        _trained_only,
        _mean_of_all_starts,
        _every_rank_in_turn,
        _copies,
        _one_after_the_other,
        _zero_and_sum,
    ],
    hints=[
        "Which collective takes one rank's numbers to all ranks? Every rank has to call it, also the one that gives.",
        "A module keeps two kinds of tensors: `module.parameters()` and `module.buffers()`.",
        "`for tensor in [*module.parameters(), *module.buffers()]:` and one line in the loop.",
    ],
)


# --- weighted_mean: shares of different size -------------------------------------------------------------------------


def weighted_mean(comm, gradient, num_samples):
    """Return g = Σ_k n_k g_k / Σ_k n_k on every rank.

    gradient: (P,), g_k of this rank, the gradient of its own samples' mean loss.
    num_samples: n_k, which may be 0.
    """
    mean = gradient * num_samples
    total = torch.tensor([num_samples], dtype=gradient.dtype)
    comm.all_reduce(mean)
    comm.all_reduce(total)
    return mean / total


def _plain_mean(comm, gradient, num_samples):
    """The plain mean is right only while all shares are equal: it gives a sample of a small share more say than one of
    a large share. Multiply by n_k before you add."""
    comm.all_reduce(gradient, op="mean")
    return gradient


def _weighs_too_late(comm, gradient, num_samples):
    """After the all-reduce the gradients are mixed, and each rank multiplies the mix by its *own* n_k: the replicas
    differ from now on. Weigh before the sum."""
    total = torch.tensor([num_samples], dtype=gradient.dtype)
    comm.all_reduce(gradient)
    comm.all_reduce(total)
    return gradient * num_samples / total


def _sum_not_divided(comm, gradient, num_samples):
    """That is Σ n_k g_k. It is as many times too long as there are samples: divide by Σ n_k, which is a sum over all
    ranks too."""
    weighted = gradient * num_samples
    comm.all_reduce(weighted)
    return weighted


def _divides_twice(comm, gradient, num_samples):
    """`op="mean"` has divided by the number of ranks, and then you divide by the number of samples. Only the second is
    wanted: reduce with the default sum."""
    weighted = gradient * num_samples
    total = torch.tensor([num_samples], dtype=gradient.dtype)
    comm.all_reduce(weighted, op="mean")
    comm.all_reduce(total)
    return weighted / total


def _divides_by_ranks(comm, gradient, num_samples):
    """Σ n_k g_k is a sum over samples, so it has to be divided by the number of samples of all ranks, not by the number
    of ranks."""
    weighted = gradient * num_samples
    comm.all_reduce(weighted, op="mean")
    return weighted


def _own_count(comm, gradient, num_samples):
    """n_k times the number of ranks is the whole batch only while shares are equal (and is 0 where a share is empty).
    The ranks have to add up their n_k."""
    weighted = gradient * num_samples
    comm.all_reduce(weighted)
    return weighted / (num_samples * comm.world_size)


def _gathers_everything(comm, gradient, num_samples):
    """Right, but every rank now holds N gradients and received N − 1 of them. Sums can be made on the way: an
    all-reduce of n_k g_k, and one of n_k."""
    everyone = gradient.new_empty(comm.world_size, len(gradient) + 1)
    comm.all_gather(everyone, torch.cat([gradient, gradient.new_tensor([num_samples])]))
    counts = everyone[:, -1]
    return (counts[:, None] * everyone[:, :-1]).sum(0) / counts.sum()


def _weighted(comm, fn, shares):
    generator = torch.Generator().manual_seed(comm.rank)
    gradient = torch.randn(60, generator=generator, dtype=torch.float64)
    return fn(comm, gradient * (shares[comm.rank] > 0), shares[comm.rank])


def _run_weighted(fn, shares):
    results = launch(_weighted, fn, shares, world_size=len(shares))
    return Outcome(by_rank(results), {"bytes sent by all ranks": sum(each.bytes_sent for each in results.ledgers)})


weighted_mean = Exercise(
    weighted_mean,
    cases=[((40, 8, 8, 8),), ((5, 0, 3),)],
    outcome=_run_weighted,
    mistakes=[
        _plain_mean,
        _weighs_too_late,
        _sum_not_divided,
        _divides_twice,
        _divides_by_ranks,
        _own_count,
        _gathers_everything,
    ],
    hints=[
        "Which two sums over ranks stand in the formula? Each is one all-reduce.",
        "Each rank can make its own term n_k g_k before anything travels.",
        "The count travels as a tensor: `torch.tensor([num_samples], dtype=gradient.dtype)`.",
    ],
)


# --- average_in_buckets: few large messages --------------------------------------------------------------------------


def average_in_buckets(comm, gradients, cap_bytes):
    """Replace every gradient by its mean over the ranks, in place, with few all-reduces.

    gradients: list of tensors of any shape, in the order of the layers.
    cap_bytes: no all-reduce is larger, unless a single gradient is: that one goes alone.
    """
    buckets, size_bytes = [[]], 0
    for gradient in reversed(gradients):
        if buckets[-1] and size_bytes + gradient.nbytes > cap_bytes:
            buckets.append([])
            size_bytes = 0
        buckets[-1].append(gradient)
        size_bytes += gradient.nbytes
    for bucket in buckets:
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        comm.all_reduce(flat, op="mean")
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _filled(gradients, cap_bytes, size=lambda gradient: gradient.nbytes):
    """The reference's buckets, for the mistakes that come after filling them."""
    buckets, filled = [[]], 0
    for gradient in reversed(gradients):
        if buckets[-1] and filled + size(gradient) > cap_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(gradient)
        filled += size(gradient)
    return buckets


def _reduce(comm, bucket, op="mean"):
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    comm.all_reduce(flat, op=op)
    for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _one_call_each(comm, gradients, cap_bytes):
    """Right, and every tensor pays the latency of an all-reduce of its own. Join neighbours with `torch.cat` as long as
    they fit under `cap_bytes`."""
    for gradient in gradients:
        comm.all_reduce(gradient, op="mean")


def _one_bucket_for_all(comm, gradients, cap_bytes):
    """One bucket has the fewest calls, but it can only leave when the very last gradient is there, so that nothing
    overlaps. Close a bucket before it grows beyond `cap_bytes`."""
    _reduce(comm, gradients)


def _loses_the_last_bucket(comm, gradients, cap_bytes):
    """A bucket is reduced when the next gradient no longer fits, and after the loop one bucket is left over: its
    gradients are still those of their own rank."""
    for bucket in _filled(gradients, cap_bytes)[:-1]:
        _reduce(comm, bucket)


def _never_copied_back(comm, gradients, cap_bytes):
    """`torch.cat` copies: the mean is in the flat tensor, and the gradients don't know it. Split the flat tensor and
    `copy_` each part back."""
    for bucket in _filled(gradients, cap_bytes):
        comm.all_reduce(torch.cat([gradient.reshape(-1) for gradient in bucket]), op="mean")


def _copied_back_in_another_order(comm, gradients, cap_bytes):
    """The parts come back in another order than they went in, so gradients get numbers of their neighbours. Go through
    the same list both times."""
    for bucket in _filled(gradients, cap_bytes):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        comm.all_reduce(flat, op="mean")
        bucket = bucket[::-1]
        for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _sum_of_buckets(comm, gradients, cap_bytes):
    """The gradients are the sum over ranks: as many times too long as there are ranks. `op="mean"`."""
    for bucket in _filled(gradients, cap_bytes):
        _reduce(comm, bucket, op="sum")


def _cap_in_elements(comm, gradients, cap_bytes):
    """The cap is in bytes: a float32 number takes four. `gradient.nbytes`, not `gradient.numel()`."""
    for bucket in _filled(gradients, cap_bytes, size=lambda gradient: gradient.numel()):
        _reduce(comm, bucket)


def _averaged(comm, fn, shapes, cap_bytes):
    """The gradients after `fn`, and the largest all-reduce in bytes beyond what it may be."""
    generator = torch.Generator().manual_seed(comm.rank)
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    reduce, sizes = comm.all_reduce, [0]

    def noted(tensor, *args, **options):
        sizes.append(tensor.nbytes)
        return reduce(tensor, *args, **options)

    comm.all_reduce = noted
    fn(comm, gradients, cap_bytes)
    return gradients, max(0, max(sizes) - max(cap_bytes, *(gradient.nbytes for gradient in gradients)))


def _run_buckets(fn, shapes, cap_bytes):
    results = launch(_averaged, fn, shapes, cap_bytes, world_size=3)
    cost = {
        "collective calls of a rank": sum(results.ledgers[0].calls.values()),
        "bytes beyond cap_bytes in one all-reduce": max(over for _, over in results),
        "bytes sent by all ranks": sum(ledger.bytes_sent for ledger in results.ledgers),
    }
    return Outcome(by_rank([gradients for gradients, _ in results]), cost)


_MLP_SHAPES = [(6, 8), (6,), (6, 6), (6,), (6, 6), (6,), (3, 6), (3,)]

average_in_buckets = Exercise(
    average_in_buckets,
    cases=[(_MLP_SHAPES, 200), ([(5, 30), (5,), (4, 5), (4,)], 120)],
    outcome=_run_buckets,
    mistakes=[
        _one_call_each,
        _one_bucket_for_all,
        _loses_the_last_bucket,
        _never_copied_back,
        _copied_back_in_another_order,
        _sum_of_buckets,
        _cap_in_elements,
    ],
    hints=[
        "Two steps: first decide which gradients share a bucket, then treat each bucket.",
        "A new bucket begins when the old one is not empty and the next gradient would push it over the cap.",
        "For a bucket: `flat = torch.cat([g.reshape(-1) for g in bucket])`, one all-reduce, then `flat.split([...])` "
        "and `copy_`.",
    ],
)


# --- backward_with_overlap: reduce while backward goes on ------------------------------------------------------------


def backward_with_overlap(comm, model, loss):
    """Run backward, reducing each gradient while the rest is computed: `.grad` is the mean."""
    works = []

    def ready(parameter):
        works.append(comm.all_reduce(parameter.grad, op="mean", async_op=True))

    hooks = [parameter.register_post_accumulate_grad_hook(ready) for parameter in model.parameters()]
    loss.backward()
    for work in works:
        work.wait()
    for hook in hooks:
        hook.remove()


def _hooked(model, ready, loss):
    hooks = [parameter.register_post_accumulate_grad_hook(ready) for parameter in model.parameters()]
    loss.backward()
    for hook in hooks:
        hook.remove()


def _after_backward(comm, model, loss):
    """All gradients are there before the first one leaves: the links rest during backward and the processor rests after
    it. Start each all-reduce from a hook, as soon as its gradient is complete."""
    loss.backward()
    for work in [comm.all_reduce(parameter.grad, op="mean", async_op=True) for parameter in model.parameters()]:
        work.wait()


def _blocking(comm, model, loss):
    """Each all-reduce holds up backward until it has ended: the next layer's gradient is not computed meanwhile.
    `async_op=True` returns at once, with something to wait for later."""
    _hooked(model, lambda parameter: comm.all_reduce(parameter.grad, op="mean"), loss)


def _waits_at_once(comm, model, loss):
    """`wait()` inside the hook makes an asynchronous call a blocking one. Keep the works in a list, and wait for them
    when `loss.backward()` has returned."""
    _hooked(model, lambda parameter: comm.all_reduce(parameter.grad, op="mean", async_op=True).wait(), loss)


def _never_waits(comm, model, loss):
    """Nobody waits: your function returns before the means have arrived, and the optimiser would step with this rank's
    own gradient. Keep each work and call its `wait()`."""

    def ready(parameter):
        comm.all_reduce(parameter.grad, op="mean", async_op=True)

    _hooked(model, ready, loss)


def _returns_the_work(comm, model, loss):
    """A hook of torch has to return None, and yours hands back the work (a lambda returns its value too). Put the work
    into a list that your function keeps."""
    works = []

    def ready(parameter):
        works.append(comm.all_reduce(parameter.grad, op="mean", async_op=True))
        return works[-1]

    _hooked(model, ready, loss)
    for work in works:
        work.wait()


def _leaves_the_hooks(comm, model, loss):
    """In the second step the hooks of the first still fire, so each gradient is reduced twice. Keep what
    `register_post_accumulate_grad_hook` returns, and `remove()` it."""
    works = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda parameter: works.append(comm.all_reduce(parameter.grad, op="mean", async_op=True))
        )
    loss.backward()
    for work in works:
        work.wait()


def _sums(comm, model, loss):
    """Without `op="mean"` the gradients are sums over ranks, 4 times too long."""
    works = []
    _hooked(model, lambda parameter: works.append(comm.all_reduce(parameter.grad, async_op=True)), loss)
    for work in works:
        work.wait()


class StandIn:
    """Plays rank 0 of 4 without processes, and notes what is called when.

    The other three hold 5 times this rank's gradient between them, and nothing has arrived before `wait()`.
    """

    rank, world_size = 0, 4

    def __init__(self):
        self.in_backward, self.started, self.late, self.blocked, self.held_up = False, 0, 0, 0, 0

    def watch(self, loss):
        """Know from now on whether the backward pass of `loss` is under way."""

        def ended():
            self.in_backward = False

        def began(_):
            self.in_backward = True
            torch.autograd.Variable._execution_engine.queue_callback(ended)

        loss.register_hook(began)

    def all_reduce(self, tensor, op="sum", async_op=False):
        self.started += 1
        self.late += not self.in_backward
        work = Arrival(self, tensor, {"sum": 6.0, "mean": 1.5}.get(op, 5.0 / 3.0))
        if async_op:
            return work
        self.blocked += 1
        work.arrive()
        return None


class Arrival:
    """What an asynchronous all-reduce of the stand-in gives."""

    def __init__(self, comm, tensor, factor):
        self._comm, self._tensor, self._factor = comm, tensor, factor

    def arrive(self):
        if self._factor is not None:
            self._tensor.detach().mul_(self._factor)
            self._factor = None

    def wait(self):
        self._comm.held_up += self._comm.in_backward
        self.arrive()


def _run_overlap(fn, sizes):
    """Two steps, so that what the first leaves behind shows in the second."""
    model, comm, steps = nn.Sequential(), StandIn(), []
    for width, next_width in pairwise(sizes):
        model.extend([nn.Linear(width, next_width), nn.Tanh()])
    for _ in range(2):
        model.zero_grad()
        loss = model(torch.randn(4, sizes[0])).square().mean()
        comm.watch(loss)
        fn(comm, model, loss)
        steps.append({name: p.grad.clone() for name, p in model.named_parameters()})
    cost = {
        "all-reduces started after backward had ended": comm.late,
        "blocking all-reduces": comm.blocked,
        "waits that held up backward": comm.held_up,
        "all-reduces started in two steps": comm.started,
    }
    return Outcome(steps, cost)


backward_with_overlap = Exercise(
    backward_with_overlap,
    cases=[([3, 4, 2],), ([6, 5, 4, 3],)],
    outcome=_run_overlap,
    may_be_cheaper=True,  # who starts earlier than the reference overlaps more
    mistakes=[_after_backward, _blocking, _waits_at_once, _never_waits, _returns_the_work, _leaves_the_hooks, _sums],
    hints=[
        "`parameter.register_post_accumulate_grad_hook(f)` calls f(parameter) as soon as `parameter.grad` is complete.",
        "In the hook: start the all-reduce with `async_op=True` and put what it returns into a list.",
        "After `loss.backward()`: `wait()` for everything in the list, then `remove()` the hooks.",
    ],
)
