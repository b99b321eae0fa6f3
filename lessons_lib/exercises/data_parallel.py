"""Exercises of lesson 12: the start, the weighted mean, buckets, and reducing while backward goes on."""

import operator
from itertools import pairwise

import torch
from torch import nn

from lessons_lib.exercises.cases import drawn
from lessons_lib.exercises.core import Exercise, Outcome, edit, on_ranks
from lessons_lib.exercises.ranks import COSTS
from lessons_lib.exercises.watching import Snapshot

# --- broadcast_start: one start for all ------------------------------------------------------------------------------


def broadcast_start(comm, module):
    """Overwrite this rank's `module` with rank 0's, in place and to the bit: every parameter and every buffer.

    module: of any kind, perhaps without parameters or without buffers. They may be of any dtype and not
        contiguous, and `state_dict()` leaves out buffers of `persistent=False`. Each stays in the memory
        where it is, and nothing else changes. No more travels than by a `comm.broadcast` of each.
    """
    for tensor in [*module.parameters(), *module.buffers()]:
        comm.broadcast(tensor)


def _one_after_the_other(comm, module):
    """Right, but rank 0 sends everything N − 1 times while the others rest. In `comm.broadcast` those who have it pass
    it on: a tree (lesson 10)."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if comm.rank == 0:
            for dst in range(1, comm.world_size):
                comm.send(tensor, dst)
        else:
            comm.recv(tensor, 0)


def _mixed(rank, width):
    """A module with all that a module may hold, and numbers that survive no detour over float32 or over a sum."""
    module = nn.Sequential(nn.Linear(12, width), nn.BatchNorm1d(width), nn.Linear(width, 3, dtype=torch.float64))
    module.register_parameter("scale", nn.Parameter(torch.randn(3, width).t()))
    module.register_buffer("mask", torch.rand(9) > 0.5, persistent=False)
    module[0].requires_grad_(False)
    module[1].running_mean.normal_()
    module[1].running_var.fill_(float("nan") if rank else 2.0)
    module[1].num_batches_tracked.fill_(2**60 + 1 + rank)
    return module


def _started(comm, fn, width, turn):
    """What `fn` leaves of a module whose every number depends on the rank."""
    torch.manual_seed(10 * comm.rank + turn)
    buffers_alone = nn.BatchNorm1d(width, affine=False)
    buffers_alone.running_mean.normal_()
    module = [_mixed(comm.rank, width), nn.Linear(width, 2), buffers_alone][turn]
    before = dict([*module.named_parameters(), *module.named_buffers()])
    views = {name: tensor.detach() for name, tensor in before.items()}
    fn(comm, module)
    after = dict([*module.named_parameters(), *module.named_buffers()])
    return {
        "moved to other memory": [name for name, view in views.items() if before[name].data_ptr() != view.data_ptr()],
        **views,
        "replaced by others": [name for name, tensor in before.items() if after.get(name) is not tensor],
        "all of it": Snapshot(module).now()["its parts"],
    }


def _run_start(fn, world_size, width):
    costs = ["bytes sent by all ranks", *COSTS[2:], "messages sent by all ranks"]
    return on_ranks(_started, fn, width, world_size=world_size, costs=costs, num_calls=3)


broadcast_start = Exercise(
    broadcast_start,
    cases=[(4, 8), (1, 3), (3, 5)],
    outcome=_run_start,
    rtol=0.0,
    atol=0.0,
    may_be_cheaper=True,  # along a chain no rank sends more than once
    mistakes=[
        edit(
            "[*module.parameters(), *module.buffers()]",
            "module.parameters()",
            "The parameters agree, the buffers don't: running statistics of batch norm are state too, and no gradient "
            "will ever repair them. `module.buffers()` lists them.",
        ),
        edit(
            "*module.parameters(), ",
            "*[p for p in module.parameters() if p.requires_grad], ",
            "A frozen parameter gets no gradient, so nothing will bring it together later. It has to be broadcast as "
            "well: leave `requires_grad` out of it.",
        ),
        edit(
            "comm.broadcast(tensor)",
            'comm.all_reduce(tensor, op="mean") if tensor.is_floating_point() else None',
            "The mean of all random starts is not rank 0's start: of four starts it has half the spread that the "
            "initialisation chose. One rank's weights should go to all, and that is a broadcast.",
        ),
        edit(
            "comm.broadcast(tensor)",
            "comm.broadcast(tensor.clone())",
            "`clone()` makes new memory: the broadcast filled the copy, and the module still has its own numbers. Hand "
            "over the parameter itself.",
        ),
        _one_after_the_other,
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

    gradient: (P,), g_k of this rank, the gradient of its own samples' mean loss. It stays as it is. A nan or
        inf in it is one in the mean as well.
    num_samples: n_k, which may be 0 (then g_k is 0 too), but not on all ranks.
    Communication: the bytes and messages of an all-reduce of P numbers and one of a single number, and a tenth.
    """
    mean, total = gradient * num_samples, gradient.new_tensor([num_samples])
    comm.all_reduce(mean)
    comm.all_reduce(total)
    return mean / total


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


def _weighted(comm, fn, shares, numel, dtype, turn):
    share, gradient = shares[comm.rank], drawn(numel, seed=comm.rank + 10 * turn, dtype=dtype)
    if share == 0:
        gradient.zero_()
    elif numel > 4:
        gradient[4] = (comm.rank + 1) * torch.finfo(dtype).max / 1e7
        if comm.rank == len(shares) - 1:
            gradient[2:4] = torch.tensor([float("nan"), float("inf")])
    return fn(comm, gradient, share * (1 + 2 * turn))


def _run_weighted(fn, shares, numel, dtype):
    costs = ["bytes sent by all ranks", "bytes received by a rank", "messages sent by all ranks"]
    ran = on_ranks(_weighted, fn, shares, numel, dtype, world_size=len(shares), costs=costs, num_calls=2)
    return ran if numel > 1 else Outcome(ran.value)  # beside one number the count weighs as much


weighted_mean = Exercise(
    weighted_mean,
    cases=[
        ((40, 8, 8, 8), 60, torch.float64),
        ((5, 0, 3), 60, torch.float32),
        ((7,), 60, torch.float64),
        ((0, 4, 1, 2, 9, 3), 1, torch.float32),
        ((1000, 70_000), 60, torch.float32),
    ],
    outcome=_run_weighted,
    slack=1.1,  # a count may travel as an integer of eight bytes
    may_be_cheaper=True,
    mistakes=[
        edit(
            "comm.all_reduce(mean)",
            'mean = gradient.clone()\n    comm.all_reduce(mean, op="mean")',
            "mean / total",
            "mean",
            "The plain mean is right only while all shares are equal: it gives a sample of a small share more say than "
            "one of a large share. Multiply by n_k before you add.",
        ),
        edit(
            "gradient * num_samples,",
            "gradient.clone(),",
            "mean / total",
            "mean * num_samples / total",
            "After the all-reduce the gradients are mixed, and each rank multiplies the mix by its *own* n_k: the "
            "replicas differ from now on. Weigh before the sum.",
        ),
        edit(
            "mean / total",
            "mean",
            "That is Σ n_k g_k. It is as many times too long as there are samples: divide by Σ n_k, which is a sum "
            "over all ranks too.",
        ),
        edit(
            "comm.all_reduce(mean)",
            'comm.all_reduce(mean, op="mean")',
            '`op="mean"` has divided by the number of ranks, and then you divide by the number of samples. Only the '
            "second is wanted: reduce with the default sum.",
        ),
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

    gradients: list of contiguous tensors of any shape, all of one dtype, in the order of the layers; it may be
        empty. They themselves get the means (a new `.data` will do), and the list stays as it is: others in
        their place are of no use to whoever holds them.
    cap_bytes: no all-reduce is larger, unless a single gradient is: that one goes alone.
    """
    buckets, room_bytes = [], -1  # no room for an empty gradient either: the first one opens a bucket
    for gradient in reversed(gradients):
        if gradient.nbytes > room_bytes:
            buckets.append([])
            room_bytes = cap_bytes
        buckets[-1].append(gradient)
        room_bytes -= gradient.nbytes
    for bucket in buckets:
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        comm.all_reduce(flat, op="mean")
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _one_call_each(comm, gradients, cap_bytes):
    """Right, and every tensor pays the latency of an all-reduce of its own. Join neighbours with `torch.cat` as long as
    they fit under `cap_bytes`."""
    for gradient in gradients:
        comm.all_reduce(gradient, op="mean")


def _averaged(comm, fn, shapes, cap_bytes, dtype, turn):
    """The gradients after `fn`, the largest all-reduce in bytes beyond what it may be, and all calls until then."""
    shapes = [shapes, shapes[::-1], []][turn]
    gradients = [drawn(*shape, seed=99 * comm.rank + k, dtype=dtype) for k, shape in enumerate(shapes)]
    for gradient in gradients:
        if comm.rank == 0 and gradient.numel() > 3:
            gradient.view(-1)[:2] = torch.tensor([float("nan"), torch.finfo(dtype).max / 8], dtype=dtype)
    given, reduce, sizes = list(gradients), comm.all_reduce, []

    def noted(tensor, *args, **options):
        sizes.append(tensor.nbytes)
        return reduce(tensor, *args, **options)

    comm.all_reduce = noted
    fn(comm, given, cap_bytes)
    comm.all_reduce = reduce
    is_same_list = len(given) == len(gradients) and all(map(operator.is_, given, gradients))
    alone = [gradient.nbytes for gradient in gradients]
    beyond = [size_bytes - cap_bytes for size_bytes in sizes if size_bytes > cap_bytes and size_bytes not in alone]
    value = {"the list is as it was": is_same_list, "gradients": gradients}
    return value, max(beyond, default=0), sum(comm.ledger.calls.values())


def _run_buckets(fn, world_size, shapes, cap_bytes, dtype):
    costs = ["bytes sent by all ranks"]
    ran = on_ranks(_averaged, fn, shapes, cap_bytes, dtype, world_size=world_size, costs=costs, num_calls=3)
    cost = {
        "collective calls of a rank in 3 calls": max(turns[-1][2] for turns in ran.value.values()),
        "bytes beyond cap_bytes in one all-reduce": max(turn[1] for turns in ran.value.values() for turn in turns),
    }
    return Outcome(
        {rank: [turn[0] for turn in turns] for rank, turns in ran.value.items()},
        cost | ran.cost if world_size > 1 else {},
    )


_MLP_SHAPES = [(6, 8), (6,), (6, 6), (6,), (6, 6), (6,), (3, 6), (3,)]

average_in_buckets = Exercise(
    average_in_buckets,
    cases=[
        (1, [(4,), (3,)], 20, torch.float32),  # nothing needs to be reduced
        (3, _MLP_SHAPES, 200, torch.float32),
        (2, [(5, 30), (5,), (4, 5), (4,)], 200, torch.float64),
        (2, [(2,), (), (3,), (4,), (6,), (0,)], 40, torch.float32),  # buckets of exactly the cap, an empty gradient
        (2, [(4,), (2, 3), (7,), (30,)], 44, torch.float32),  # the largest is the first to be there
    ],
    outcome=_run_buckets,
    mistakes=[
        _one_call_each,
        edit(
            "gradient.nbytes > room_bytes",
            "not buckets",
            "One bucket has the fewest calls, but it can only leave when the very last gradient is there, so that "
            "nothing overlaps. Close a bucket before it grows beyond `cap_bytes`.",
        ),
        edit(
            "for bucket in buckets:",
            "for bucket in buckets[:-1]:",
            "A bucket is reduced when the next gradient no longer fits, and after the loop one bucket is left over: "
            "its gradients are still those of their own rank.",
        ),
        edit(
            "gradient.copy_(part.view_as(gradient))",
            "pass",
            "`torch.cat` copies: the mean is in the flat tensor, and the gradients don't know it. Split the flat "
            "tensor and `copy_` each part back.",
        ),
        edit(
            'op="mean"',
            'op="sum"',
            'The gradients are the sum over ranks: as many times too long as there are ranks. `op="mean"`.',
        ),
        edit(
            "gradient.nbytes > room_bytes",
            "gradient.numel() > room_bytes",
            "room_bytes -= gradient.nbytes",
            "room_bytes -= gradient.numel()",
            "The cap is in bytes: a float32 number takes four. `gradient.nbytes`, not `gradient.numel()`.",
        ),
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
    """Run backward once, reducing each gradient while the rest is computed: `.grad` is the mean.

    Every parameter gets a gradient: none is frozen. When backward comes to a layer, the all-reduces of the
    layers after it have all begun, and only when backward is over does anybody wait. Nothing stays behind: no
    hooks, and nothing of the model changes but `.grad`.
    """
    works = []

    def ready(parameter):
        works.append(comm.all_reduce(parameter.grad, op="mean", async_op=True))

    hooks = [parameter.register_post_accumulate_grad_hook(ready) for parameter in model.parameters()]
    loss.backward()
    for work in works:
        work.wait()
    for hook in hooks:
        hook.remove()


def _after_backward(comm, model, loss):
    """All gradients are there before the first one leaves: the links rest during backward and the processor rests after
    it. Start each all-reduce from a hook, as soon as its gradient is complete."""
    loss.backward()
    for work in [comm.all_reduce(parameter.grad, op="mean", async_op=True) for parameter in model.parameters()]:
        work.wait()


class StandIn:
    """Plays rank 0 of `world_size` without processes, and notes what is called when.

    The others hold 5 times this rank's gradient between them, and nothing has arrived before `wait()`.
    """

    def __init__(self, model, world_size):
        self.rank, self.world_size = 0, world_size
        self.in_backward, self.works, self.num_passes = False, [], 0
        self.late = self.blocked = self.held_up = self.held_back = self.numel_started = self.numel_complete = 0
        for layer in model:
            for parameter in layer.parameters():
                parameter.register_post_accumulate_grad_hook(lambda _, layer=layer: self._complete(layer))

    def watch(self, loss):
        """Know from now on whether a backward pass of `loss` is under way."""
        self.numel_started = self.numel_complete = 0
        self.layer = None

        def ended():
            self.in_backward = False

        def began(_):
            self.in_backward = True
            self.num_passes += 1
            torch.autograd.Variable._execution_engine.queue_callback(ended)

        loss.register_hook(began)

    def _complete(self, layer):
        """A gradient of `layer` is complete: those of the layers after it should have left."""
        if layer is not self.layer:
            self.held_back += self.numel_started < self.numel_complete
            self.layer, self.numel_complete = layer, self.numel_complete + sum(p.numel() for p in layer.parameters())

    def all_reduce(self, tensor, op="sum", async_op=False):
        self.late += not self.in_backward
        self.numel_started += tensor.numel()
        total = 6.0 if self.world_size > 1 else 1.0
        self.works.append(Arrival(self, tensor, {"sum": total, "mean": total / self.world_size}.get(op, 5.0 / 3.0)))
        if async_op:
            return self.works[-1]
        self.blocked += 1
        self.works[-1].arrive()
        return None


class Arrival:
    """What an asynchronous all-reduce of the stand-in gives."""

    def __init__(self, comm, tensor, factor):
        self._comm, self._tensor, self._factor = comm, tensor, factor

    def arrive(self):
        if self._factor is not None:
            self._tensor.detach().mul_(self._factor)
            self._factor = None

    def is_completed(self):
        return self._factor is None

    def wait(self):
        self._comm.held_up += self._comm.in_backward
        self.arrive()


def _hooks(model):
    """How many hooks the parameters have; torch has no public way to ask."""
    return sum(len(p._post_accumulate_grad_hooks or ()) + len(p._backward_hooks or ()) for p in model.parameters())


def _run_overlap(fn, sizes, world_size, dtype):
    """Two steps, so that what the first leaves behind shows in the second."""
    model, steps = nn.Sequential(), []
    for width, next_width in pairwise(sizes):
        model.extend([nn.Linear(width, next_width, dtype=dtype), nn.Tanh()])
    comm, factor = StandIn(model, world_size), 1e100 if dtype == torch.float64 else 1.0
    num_hooks = _hooks(model)
    for _ in range(2):
        model.zero_grad()
        loss = model(torch.randn(4, sizes[0], dtype=dtype)).square().mean() * factor
        comm.watch(loss)
        fn(comm, model, loss)
        gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
        steps.append(gradients | {"all of the model": Snapshot(model).now()["its parts"]})
    cost = {
        "backward passes in two steps": comm.num_passes,
        "hooks left on the parameters": _hooks(model) - num_hooks,
        "all-reduces started after backward had ended": comm.late,
        "layers that backward came to before the all-reduces of those after them had begun": comm.held_back,
        "blocking all-reduces": comm.blocked,
        "waits that held up backward": comm.held_up,
        "all-reduces that nobody waited for": sum(not work.is_completed() for work in comm.works),
        "all-reduces started in two steps": len(comm.works),
    }
    if world_size == 1:
        del cost["layers that backward came to before the all-reduces of those after them had begun"]  # none is needed
    return Outcome(steps, cost)


backward_with_overlap = Exercise(
    backward_with_overlap,
    cases=[
        ([3, 4, 2], 4, torch.float32),
        ([6, 5, 4, 3], 3, torch.float64),
        ([2, 1], 2, torch.float32),
        ([5, 4, 3], 1, torch.float32),
        ([4, 4, 4, 4, 4], 4, torch.float32),
    ],
    outcome=_run_overlap,
    may_be_cheaper=True,  # one all-reduce per layer
    mistakes=[
        _after_backward,
        edit(
            'works.append(comm.all_reduce(parameter.grad, op="mean", async_op=True))',
            'comm.all_reduce(parameter.grad, op="mean")',
            "Each all-reduce holds up backward until it has ended: the next layer's gradient is not computed "
            "meanwhile. `async_op=True` returns at once, with something to wait for when `loss.backward()` is over.",
        ),
        edit(
            "work.wait()",
            "pass",
            "Nobody waits: your function returns before the means have arrived, and the optimiser would step with this "
            "rank's own gradient. Keep each work and call its `wait()`.",
        ),
        edit(
            "parameter.grad, op",
            "parameter.grad.clone(), op",
            "The mean arrives in a copy of the gradient, and `.grad` itself stays this rank's own. Reduce "
            "`parameter.grad`, or put the mean back into it when it has arrived.",
        ),
        edit(
            "works.append(comm.all_reduce",
            "return works.append(comm.all_reduce",
            "async_op=True))",
            "async_op=True)) or works[-1]",
            "A hook of torch has to return None, and yours hands back the work (a lambda returns its value too). Put "
            "the work into a list that your function keeps.",
        ),
        edit(
            "hook.remove()",
            "pass",
            "In the second step the hooks of the first still fire, so each gradient is reduced twice. Keep what "
            "`register_post_accumulate_grad_hook` returns, and `remove()` it.",
        ),
        edit(
            'op="mean", ',
            "",
            'Without `op="mean"` the gradients are sums over ranks, 4 times too long.',
        ),
    ],
    hints=[
        "`parameter.register_post_accumulate_grad_hook(f)` calls f(parameter) as soon as `parameter.grad` is complete.",
        "In the hook: start the all-reduce with `async_op=True` and put what it returns into a list.",
        "After `loss.backward()`: `wait()` for everything in the list, then `remove()` the hooks.",
    ],
)
