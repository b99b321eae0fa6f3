"""Pipeline parallelism: every rank holds some stages of the model, and micro-batches pass through them (lesson 16)."""

import zlib
from itertools import pairwise

import torch
from torch import nn

from ..errors import check_whole
from ..schedules.pipeline import Pipeline
from ..schedules.verify import verify
from .replicas import share_start
from .stage import Stage
from .tied import TiedParameters
from .wire import Wire


class PipelineParallel(nn.Module):
    """Runs any pipeline program: the rank's list of steps is all that it knows of the schedule.

    One `step` adds to the gradients what one process would add for the mean loss of the whole batch, which is cut into
    m equal micro-batches. At the start all stages take over rank 0's numbers; a rank then keeps its own stages alone.

    Args:
        stages: the modules from first to last, all of them on every rank; each maps one tensor to one tensor. A
            parameter may lie in several, as a tied embedding does: its gradients are added over the ranks that hold it.
        comm: `Communicator`.
        schedule: a `Pipeline` program for these ranks and stages, such as `one_f_one_b(comm.world_size, 8)`.

    Attributes:
        stages: the rank's own ones, {number as text: module}.
        program: the schedule.

    Raises:
        TypeError: an argument of another type.
        ValueError: the program is for other ranks or stages, or does not compute what it promises.
        CollectiveMismatch: the ranks' stages or programs differ.

    Communication: of each micro-batch one activation and one gradient for each pair of neighbouring stages on two
    ranks; the loss, a number, from the last stage to all; one all-reduce of the tied parameters. With a new shape of
    input one small message more for each pair of stages.

    Memory: the parameters of a rank's own stages, and at most `count(schedule).most_kept[rank]` stashes.

    Source: Huang et al., GPipe (2019), §2; Narayanan et al. (2021); lesson 16.
    """

    def __init__(self, stages, comm, schedule):
        super().__init__()
        stages = _checked_stages(stages)
        _check_schedule(schedule, comm, len(stages))
        self.comm, self.program = comm, schedule
        number = zlib.crc32(repr(schedule).encode())
        share_start(nn.ModuleList(stages), comm, f"{schedule.name} {number:08x}", "PipelineParallel")
        self._tied = TiedParameters(stages, schedule.placement, comm)
        own = [number for number, rank in enumerate(schedule.placement) if rank == comm.rank]
        self.stages = nn.ModuleDict({str(number): stages[number] for number in own})
        splits = any(step.op == "weight" for steps in schedule.steps for step in steps)
        self._stages = {number: Stage(stages[number], number, splits) for number in own}
        self._wire = Wire(comm)

    def step(self, x, y, loss_fn):
        """Run the program once: forward and backward of a whole batch, cut into micro-batches along its rows.

        Args:
            x, y: the batch and its targets, of the same shapes on all ranks; the first stage reads x, the last one y.
            loss_fn: (output, target) -> the mean loss of a micro-batch.

        Returns:
            The mean loss of the batch, on every rank.

        Raises:
            ValueError: x or y do not divide into equal micro-batches.
        """
        num_parts = self.program.num_micro_batches
        held = _cut(x, num_parts, "x")
        targets = _cut(y, num_parts, "y")
        self._wire.begin(x)
        self._tied.set_aside()
        losses, last = [], self.program.num_stages - 1
        for step in self.program.steps[self.comm.rank]:
            if step.op == "send":
                self._wire.send(step.block, held.pop(step.block), step.peer)
            elif step.op == "recv":
                held[step.block] = self._wire.receive(step.block, step.peer)
            else:
                number, part = step.block
                with self.comm.compute(step.label):
                    loss = self._compute(step.op, number, part, held, targets, loss_fn if number == last else None)
                losses += [] if loss is None else [loss]
        self._wire.end()
        self._tied.add_up()
        return self._mean_loss(losses, x)

    def _compute(self, op, number, part, held, targets, loss_fn):
        """Do one computing step; the loss of the micro-batch where it is the last stage's forward."""
        stage = self._stages[number]
        if op == "forward":
            output = stage.forward(part, held.pop(("activation", number - 1, part)))
            self._wire.learn(number, output)
            if loss_fn is None:
                held["activation", number, part] = output
                return None
            target = targets["activation", -1, part]
            return stage.end(part, lambda output: loss_fn(output, target), self.program.num_micro_batches)
        if op == "weight":
            stage.weight(part)
            return None
        gradient = held.pop(("gradient", number, part)) if number < self.program.num_stages - 1 else None
        of_input = stage.backward(part, gradient)
        if op == "backward":
            stage.weight(part)
        if number > 0:
            held["gradient", number - 1, part] = of_input
        return None

    def _mean_loss(self, losses, x):
        """The mean over micro-batches, which the last stage's rank tells all."""
        root = self.program.placement[-1]
        mean = torch.stack(losses).mean() if self.comm.rank == root else torch.zeros((), device=x.device)
        mean = mean.double()
        self.comm.broadcast(mean, src=root)
        return mean

    @torch.no_grad()
    def forward(self, x):
        """What the whole model gives for `x`, on every rank and without a graph: for evaluation, not for training."""
        placement = self.program.placement
        for number, (rank, before) in enumerate(zip(placement, (placement[0], *placement), strict=False)):
            if before != rank:
                x = self._wire.hand_over(x, before, rank)
            if rank == self.comm.rank:
                x = self._stages[number].module(x)
        return self._wire.tell(x, placement[-1])


def split_layers(layers, num_stages):
    """Cut layers into stages of nearly equal numbers of layers, the longer ones last.

    Args:
        layers: a list of modules, such as `GPT(...).stages()`, or an `nn.Sequential`.
        num_stages: how many stages.

    Returns:
        A list of `nn.Sequential`.

    Raises:
        ValueError: there are more stages than layers.
    """
    layers = list(layers)
    check_whole("num_stages", num_stages, 1)
    if num_stages > len(layers):
        raise ValueError(f"num_stages={num_stages}: at most {len(layers)} are possible, the number of layers")
    cuts = [number * len(layers) // num_stages for number in range(num_stages + 1)]
    return [nn.Sequential(*layers[start:stop]) for start, stop in pairwise(cuts)]


def _cut(batch, num_parts, name):
    """{("activation", -1, part): rows of the batch}."""
    if not isinstance(batch, torch.Tensor) or batch.dim() == 0:
        raise TypeError(f"{name} is a {type(batch).__name__}: a tensor with the batch along its rows is needed")
    if len(batch) == 0 or len(batch) % num_parts:
        raise ValueError(f"{name} has {len(batch)} rows: a multiple of the {num_parts} micro-batches is needed")
    return {("activation", -1, part): rows for part, rows in enumerate(batch.chunk(num_parts))}


def _checked_stages(stages):
    stages = list(stages)
    for number, stage in enumerate(stages):
        if not isinstance(stage, nn.Module):
            raise TypeError(f"stages[{number}] is a {type(stage).__name__}: a torch.nn.Module is needed")
    return stages


def _check_schedule(schedule, comm, num_stages):
    if not isinstance(schedule, Pipeline):
        raise TypeError(f"schedule is a {type(schedule).__name__}: a Pipeline is needed, such as gpipe(4, 8)")
    if schedule.world_size != comm.world_size:
        raise ValueError(f"schedule is for {schedule.world_size} ranks: one for {comm.world_size} is needed")
    if schedule.num_stages != num_stages:
        raise ValueError(f"schedule has {schedule.num_stages} stages: {num_stages} are needed, as many as `stages` has")
    verify(schedule)
