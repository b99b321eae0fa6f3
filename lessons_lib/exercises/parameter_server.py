"""Exercises of lesson 13: a server, who may go on, the outer step of DiLoCo, and bytes."""

from math import inf

import torch

from lessons_lib.exercises.cases import drawn
from lessons_lib.exercises.core import Exercise, Outcome, edit, on_ranks

# --- serve: pull and push --------------------------------------------------------------------------------------------


def serve(comm, weights, lr, num_pushes):
    """Serve plain SGD, and return a list of the ranks whose gradients were used, in that order.

    Workers send you a gradient each (`comm.send(gradient, 0)`) and then wait for weights, `num_pushes` times in
    all. Whoever comes first is served first. Every gradient is a step of its own, weights ← weights − lr · gradient,
    and whoever sent it gets the weights with it in, before you take the next one.

    comm: has `recv(tensor, src=None)`, which gives the rank, and `send(tensor, dst)`.
    weights: (P,), changed in place. Gradients have its shape and dtype.
    """
    gradient, order = torch.empty_like(weights), []
    for _ in range(num_pushes):
        src = comm.recv(gradient)
        weights -= lr * gradient
        comm.send(weights, src)
        order.append(src)
    return order


class Workers:
    """Plays the workers without processes: they send in a given order, and each waits for its weights in between."""

    def __init__(self, order, shape, dtype):
        self.rank, self.world_size = 0, max(order, default=0) + 2
        self._ahead, self._shape, self._dtype = list(enumerate(order)), shape, dtype
        self._waiting, self.answers = set(), []

    def recv(self, tensor, src=None):
        for number, worker in self._ahead:
            if worker not in self._waiting and src in (None, worker):
                if (tensor.shape, tensor.dtype) != (self._shape, self._dtype):
                    raise ValueError(f"recv of {tensor.dtype} {tuple(tensor.shape)}: another gradient was sent")
                self._ahead.remove((number, worker))
                self._waiting.add(worker)
                tensor.copy_(drawn(*self._shape, seed=7 * number + worker, dtype=self._dtype))
                return worker
        waits = f", and these wait for weights: {sorted(self._waiting)}" if self._waiting else ""
        raise RuntimeError(f"recv(src={src}) would wait for ever: nothing is sent{waits}")

    def send(self, tensor, dst):
        if dst not in self._waiting:
            raise RuntimeError(f"send(dst={dst}) would wait for ever: rank {dst} has not asked for weights")
        self._waiting.remove(dst)
        self.answers.append({"to": dst, "weights": tensor.clone()})

    def left_over(self):
        """What is wrong when the server returns."""
        faults = [f"leaves rank {worker} waiting for weights" for worker in sorted(self._waiting)]
        return faults + ["leaves gradients that nobody has taken"] * bool(self._ahead)


def _serve_in_turn(comm, weights, lr, num_pushes):
    """You ask the workers in turn, so the slowest of them holds up all others. `comm.recv(gradient)` without `src`
    takes whoever comes first, and gives its rank."""
    gradient, order = torch.empty_like(weights), []
    for number in range(num_pushes):
        order.append(comm.recv(gradient, 1 + number % (comm.world_size - 2)))
        weights -= lr * gradient
        comm.send(weights, order[-1])
    return order


def _serve_together(comm, weights, lr, num_pushes):
    """You take the gradients of all workers before you answer the first of them: that is the synchronous server, where
    everybody waits for the slowest. Step and answer at once."""
    order, num_workers = [], comm.world_size - 2
    for _ in range(num_pushes // num_workers):
        gradients = [torch.empty_like(weights) for _ in range(num_workers)]
        came = [comm.recv(gradient) for gradient in gradients]
        for gradient in gradients:
            weights -= lr * gradient / num_workers
        for src in came:
            comm.send(weights, src)
        order += came
    return order


def _run_serve(fn, order, numel, lr, dtype):
    weights = drawn(numel, seed=1, dtype=dtype)
    comm = Workers(order, weights.shape, dtype)
    served = fn(comm, weights, lr, len(order))
    value = {"returned": served, "weights": weights, "answers": comm.answers}
    return Outcome(value, faults=comm.left_over())


serve = Exercise(
    serve,
    cases=[
        ([1, 2, 3], 4, 0.5, torch.float64),
        ([3, 1, 1, 2, 1, 3], 5, 0.1, torch.float64),
        ([2], 1, 1.0, torch.float32),
        ([], 3, 0.1, torch.float32),
        ([1, 1, 1, 2], 7, 0.25, torch.float32),
        ([2, 1, 2, 1, 3, 3], 0, 0.25, torch.float32),
    ],
    outcome=_run_serve,
    mistakes=[
        _serve_in_turn,
        _serve_together,
        edit(
            "weights -= lr * gradient\n        comm.send(weights, src)",
            "comm.send(weights, src)\n        weights -= lr * gradient",
            "The weights leave before the step: the worker gets them without its own gradient in. Step first.",
        ),
        edit(
            "weights -= lr * gradient",
            "weights += lr * gradient",
            "A gradient points uphill: subtract it.",
        ),
        edit(
            "weights -= lr * gradient",
            "weights = weights - lr * gradient",
            "`weights = weights - …` makes a new tensor, and whoever gave you the weights still holds the old one. "
            "Change it in place: `weights -= …`.",
        ),
        edit(
            "weights -= lr * gradient",
            "weights -= lr * gradient / (comm.world_size - 2)",
            "You divide by the number of workers, as for a mean of all their gradients. Here each gradient is a step "
            "of its own, with the whole learning rate.",
        ),
    ],
    hints=[
        "Three things for each gradient, in this order: take it, step, answer. To whom does the answer go?",
        "`src = comm.recv(gradient)` fills `gradient` and says who sent it.",
        "For each of `range(num_pushes)`: recv, `weights -= lr * gradient`, `comm.send(weights, src)`, and note src.",
    ],
)


# --- may_go_on: bounded staleness ------------------------------------------------------------------------------------


def may_go_on(clocks, waiting, max_staleness):
    """Return those workers in `waiting` that may have weights now, as a list in the same order.

    Nobody may compute a gradient while it is more than `max_staleness` pushes ahead of the slowest worker.

    clocks: list with the number of pushes of each worker; None where the worker has ended: nobody waits for it.
    waiting: list of workers, numbers of places in `clocks`, that have asked for weights. None of them has ended.
    max_staleness: a whole number from 0 up, or math.inf.
    """
    slowest = min([clock for clock in clocks if clock is not None], default=0)
    return [worker for worker in waiting if clocks[worker] <= slowest + max_staleness]


def _slowest_of_the_waiting(clocks, waiting, max_staleness):
    """You look for the slowest among those that wait. The slowest worker is most often at work, and that is why the
    others wait: look at all clocks."""
    slowest = min([clocks[worker] for worker in waiting], default=0)
    return [worker for worker in waiting if clocks[worker] <= slowest + max_staleness]


def _ended_is_slow(clocks, waiting, max_staleness):
    """A worker that has ended counts as one that has never pushed, so sooner or later all others wait for ever. Leave
    None out before you take the smallest clock."""
    slowest = min([clock or 0 for clock in clocks], default=0)
    return [worker for worker in waiting if clocks[worker] <= slowest + max_staleness]


def _behind_the_fastest(clocks, waiting, max_staleness):
    """You let those go on that are near the fastest, which holds up the slow ones. It is the other way round: who is
    too far ahead of the slowest waits."""
    fastest = max([clock for clock in clocks if clock is not None], default=0)
    return [worker for worker in waiting if clocks[worker] >= fastest - max_staleness]


may_go_on = Exercise(
    may_go_on,
    cases=[
        ([3, 1, 2], [0, 2], 1),
        ([0, 0, 0], [0, 1, 2], 0),
        ([4, 4, 5], [2, 0], 0),
        ([7, 2, 5, 4], [3, 0, 2], 2),
        ([9, None, 7], [0, 2], 1),
        ([9, None, 7, 8], [3, 0, 2], 1),
        ([100, 0], [0], inf),
        ([10**12, 0], [0], inf),
        ([1, 2], [], 3),
        ([None, None], [], 0),
        ([6, 5, 3, 3], [2, 0, 1], 3),
        ([2], [0], 0),
        ([0, None], [0], 0),
        ([0, 3, 5], [1, 0], 1),  # the slowest waits as well
        ([0, 2], [0, 1], 1),  # who goes on now has not pushed yet
    ],
    mistakes=[
        edit(
            "<= slowest",
            "< slowest",
            "Exactly `max_staleness` ahead is still allowed. With `<` and max_staleness=0 nobody could ever start.",
        ),
        _slowest_of_the_waiting,
        _ended_is_slow,
        _behind_the_fastest,
        edit(
            "return [",
            "return sorted([",
            "+ max_staleness]",
            "+ max_staleness])",
            "Whoever asked first is answered first: keep the order of `waiting`.",
        ),
        edit(
            "slowest + max_staleness",
            "max_staleness",
            "Clocks only grow: a bound that does not move with the slowest worker stops everybody. Compare with "
            "slowest + max_staleness.",
        ),
    ],
    hints=[
        "Whose clock decides? Not that of the worker that asks alone.",
        "The slowest worker has the smallest clock of those that are still at work: leave out None.",
        "A list comprehension over `waiting`, with the condition clocks[worker] <= slowest + max_staleness.",
    ],
)


# --- outer_step: DiLoCo ----------------------------------------------------------------------------------------------


def outer_step(comm, start, weights, velocity, lr, momentum):
    """End a round of DiLoCo: in place, `weights` and `start` of every rank become the same new weights.

    start: (P,), θ, from where all ranks began the round.
    weights: (P,), θ_k, to where the inner steps of this rank have led.
    velocity: (P,), v, the same on all ranks; changed in place.

    The outer gradient Δ is the mean over ranks of the way back, θ − θ_k, and the step is Nesterov's as torch takes
    it: v ← momentum · v + Δ, then θ ← θ − lr · (Δ + momentum · v) with the new v. No more travels than in one
    all-reduce of P numbers.
    """
    way = start - weights
    comm.all_reduce(way, op="mean")
    velocity.mul_(momentum).add_(way)
    start.sub_(lr * (way + momentum * velocity))
    weights.copy_(start)


def _ended(comm, fn, numel, lr, momentum, dtype, turn):
    """Two rounds, each from where the last one has led."""
    start, velocity = drawn(numel, seed=5 + turn, dtype=dtype), drawn(numel, seed=50 + turn, dtype=dtype)
    rounds = []
    for number in range(2):
        weights = start + drawn(numel, seed=100 * comm.rank + 10 * number + turn, dtype=dtype)
        given = {"weights": weights, "start": start, "velocity": velocity}
        places = {name: tensor.data_ptr() for name, tensor in given.items()}
        fn(comm, start, weights, velocity, lr, momentum)
        values = {name: tensor.clone() for name, tensor in given.items()}
        moved = [name for name, tensor in given.items() if tensor.data_ptr() != places[name]]
        rounds.append(values | {"moved to other memory": moved})
    return rounds


def _run_outer(fn, world_size, numel, lr, momentum, dtype):
    costs = ["bytes sent by all ranks", "messages sent by all ranks"] if world_size > 1 else []
    return on_ranks(_ended, fn, numel, lr, momentum, dtype, world_size=world_size, costs=costs, num_calls=2)


outer_step = Exercise(
    outer_step,
    cases=[
        (3, 5, 0.7, 0.9, torch.float64),
        (2, 4, 0.7, 0.9, torch.float32),
        (1, 3, 0.5, 0.25, torch.float64),
        (4, 1, 1.0, 0.0, torch.float64),
    ],
    outcome=_run_outer,
    mistakes=[
        edit(
            "start - weights",
            "weights - start",
            "That is the way forth, and an optimiser *subtracts* its gradient: the ranks would go back to before they "
            "began. Δ is the way back, θ − θ_k.",
        ),
        edit(
            "lr * (way + momentum * velocity)",
            "lr * velocity",
            "That is heavy-ball momentum. Nesterov looks one step of momentum ahead: lr · (Δ + momentum · v).",
        ),
        edit(
            ', op="mean"',
            "",
            'The sum over ranks, not the mean: the step is as many times too long as there are ranks. `op="mean"`.',
        ),
        edit(
            "start.sub_(lr * (way + momentum * velocity))\n    weights.copy_(start)",
            "weights.copy_(start - lr * (way + momentum * velocity))",
            "`weights` is right, and `start` is still where this round began: the next round would count its way from "
            "there once more.",
        ),
        edit(
            'comm.all_reduce(way, op="mean")',
            "pass",
            "Each rank takes its own way back, so the ranks part for ever. Average it first.",
        ),
        edit(
            "velocity.mul_(momentum).add_(way)",
            "velocity = momentum * velocity + way",
            "`velocity = …` makes a new tensor, and whoever calls you still holds the old one: the next round begins "
            "without this round's momentum. Change it in place.",
        ),
    ],
    hints=[
        "Before anything travels each rank can compute its own way back. Which operation makes one of all?",
        '`comm.all_reduce(way, op="mean")`; then two lines, one for v and one for θ, each in place.',
        "`velocity.mul_(momentum).add_(way)`, `start.sub_(lr * (way + momentum * velocity))`, `weights.copy_(start)`.",
    ],
)


# --- traffic: bytes --------------------------------------------------------------------------------------------------


def traffic(size_bytes, num_workers, num_steps, inner_steps):
    """Return how many bytes all ranks together send, as {"server": …, "all-reduce": …, "local": …}.

    Each of the workers takes `num_steps` steps with a model of `size_bytes`. All answers are whole numbers.

    "server": one rank more serves. In each step a worker pulls the weights and pushes a gradient.
    "all-reduce": the workers all-reduce their gradients in a ring, in each step.
    "local": the workers all-reduce their weights in a ring, after every `inner_steps` steps. A round that is not full
        at the end sends nothing.

    size_bytes: divisible by num_workers; num_steps: from 0 up; inner_steps: from 1 up.
    """
    ring = 2 * (num_workers - 1) * size_bytes
    return {
        "server": 2 * num_workers * size_bytes * num_steps,
        "all-reduce": ring * num_steps,
        "local": ring * (num_steps // inner_steps),
    }


traffic = Exercise(
    traffic,
    cases=[
        (1200, 4, 10, 5),
        (1200, 3, 10, 4),
        (96, 8, 500, 500),
        (96, 2, 499, 500),
        (40, 1, 7, 2),
        (40, 5, 0, 1),
        (7000, 7, 12, 1),
        (3 * (10**17 + 7), 3, 5, 2),  # no float holds that
    ],
    mistakes=[
        edit(
            "2 * num_workers * size_bytes",
            "num_workers * size_bytes",
            "Two ways per step: the gradient goes to the server, and weights come back.",
        ),
        edit(
            "ring = 2 *",
            "ring = 2 / num_workers *",
            "That is what *one* rank of the ring sends, 2(N−1)/N of the size. All N together send N times that.",
        ),
        edit(
            "num_steps // inner_steps",
            "-(-num_steps // inner_steps)",
            "The last round is not full: it sends nothing.",
        ),
        edit(
            "ring * (num_steps // inner_steps)",
            "ring * num_steps / inner_steps",
            "Only whole rounds send: num_steps // inner_steps of them.",
        ),
        edit(
            "ring = 2 * (num_workers - 1)",
            "ring = 2 * num_workers",
            "In a ring each chunk makes N − 1 steps to be added up, and N − 1 more to be handed round (lesson 11).",
        ),
        edit(
            '"local": ring * (num_steps // inner_steps)',
            '"local": size_bytes * (num_steps // inner_steps)',
            "An average takes an all-reduce, just as gradients do: 2(N−1) times the size for all ranks together.",
        ),
    ],
    hints=[
        "Count one step first. How many times does the whole model travel between a worker and the server?",
        "In a ring all-reduce all ranks together send 2(N−1) times the size (lesson 11).",
        "The number of full rounds is `num_steps // inner_steps`.",
    ],
)
