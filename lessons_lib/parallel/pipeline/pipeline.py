"""Pipeline parallelism: every rank holds some stages of the model, and micro-batches pass through them (lesson 16)."""

import zlib

import torch
from torch import nn

from ...schedules.pipeline import Pipeline
from ...schedules.verify import verify
from ..averaged import ADDED, would_add
from ..copies import lies_on
from ..replicas import share_start
from .aside import SetAside
from .meeting import Meeting
from .one_step import OneStep
from .split import split_batch
from .stage import Stage
from .tied import TiedParameters
from .wire import FAILED, Wire, check_output


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
        stages: the rank's own ones, {number as text: module}. What lies there is used: layers may be replaced.
        program: the schedule.

    Raises:
        TypeError: an argument of another type.
        ValueError: the program is for other ranks or stages, or does not compute what it promises.
        CollectiveMismatch: the ranks' stages or programs differ.

    Communication: of each micro-batch one activation and one gradient for each pair of neighbouring stages on two
    ranks; the loss, a number, from the last stage to all; one all-reduce of each tied parameter. With a new shape of
    input one small message more for each pair of stages. Before and after a step the ranks agree, which counts as no
    bytes.

    Memory: the parameters of a rank's own stages, and at most `count(schedule).most_kept[rank]` stashes. Where
    gradients of earlier steps lie in `.grad`, those of a step lie beside them until it ends.

    Differs from one process: what a layer does once for a batch it does once for each micro-batch. So batch norm takes
    the statistics of micro-batches, dropout draws other numbers, and hooks on parameters see one micro-batch's gradient
    after the other. A loss that is a mean over tokens counts each micro-batch alike. The first operation of a stage may
    not change its input in place: torch says so. Clip by `clip_grad_norm_` of this package: torch's own knows the norm
    of one rank's stages.

    On one axis of a mesh: with `mesh["pp"]` as `comm`, and the same start on all ranks, `average_gradients(
    net.parameters(), mesh, "dp")` after a step makes copies of the pipeline along "dp" equal to one process with the
    whole batch. Stages wrapped in `DataParallel(stage, mesh["dp"])` or `FullySharded`, with no tied parameters, need no
    average.

    State: `split_layers` leaves each layer its number, so that the ranks' `net.stages[...].state_dict()` together are
    that of the unsplit `nn.Sequential(*layers)`, and load on any other number of ranks.

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
        self._stages = {number: Stage(number, number == len(stages) - 1, splits) for number in own}
        self._wire, self._meeting = Wire(comm), Meeting(comm)
        self._note_holders()

    def step(self, x, y, loss_fn):
        """Run the program once: forward and backward of a whole batch, cut into micro-batches along its rows.

        Whatever raises on one rank raises on all of them, and leaves gradients as they were: the next step is right.

        Args:
            x, y: the batch and its targets, the same on all ranks; the first stage reads x, the last one y.
            loss_fn: (output, target) -> the mean loss of a micro-batch, a tensor with one number.

        Returns:
            The mean loss of the batch, on every rank.

        Raises:
            TypeError, ValueError: x or y do not divide into equal micro-batches, require a gradient, which would be
                lost, or differ between ranks; a tied parameter is frozen on some ranks alone, or has other numbers
                there; a stage does not give one tensor, or `loss_fn` not one number.
            RuntimeError: gradients are switched off, or are the mean over ranks of what this step would add a sum to.
            CollectiveMismatch: the ranks do not call it together, or with other shapes.
            RankFailed: another rank has raised.
        """
        modules = self._begin("step", {"x": x, "y": y})
        if not torch.is_grad_enabled():
            raise RuntimeError("PipelineParallel.step within torch.no_grad(): gradients are needed; use net(x) instead")
        num_parts = self.program.num_micro_batches
        held, targets = split_batch(x, y, num_parts)
        self._wire.begin(x)
        earlier = SetAside(self.stages.parameters())
        run = OneStep(self.program, self.comm, self._wire, self._stages, modules)
        try:
            run.run(held, targets, loss_fn)
            has_gradient = self._meeting.end(run.error, self._tied.has_gradient(modules))
            self._tied.add_up(modules, has_gradient)
        except BaseException:
            earlier.restore()
            self._forget()
            raise
        earlier.merge()
        return self._mean_loss(run.losses, x)

    def _begin(self, name, batch):
        """Meet the other ranks; this rank's modules {number: module}."""
        modules = {int(number): module for number, module in self.stages.items()}
        self._note_holders()
        adds = name == "step" and would_add(self.stages.parameters())
        states = self._meeting.begin(name, batch, [*self._tied.state(modules), float(adds)])
        self._tied.check(states)
        if any(state[-1] for state in states):
            raise RuntimeError(ADDED)
        return modules

    def _note_holders(self):
        """Note how many ranks hold each parameter, for norms over all of them; also of those that have come later."""
        for number, module in self.stages.items():
            for name, parameter in module.named_parameters(remove_duplicate=False):
                lies_on(parameter, self.comm, self._tied.num_holders(int(number), name))

    def _forget(self):
        """Let go of a step that has broken off."""
        self._wire.forget()
        for stage in self._stages.values():
            stage.forget()

    def _mean_loss(self, losses, x):
        """The mean over micro-batches, which the last stage's rank tells all."""
        root = self.program.placement[-1]
        mean = torch.zeros((), dtype=torch.float64, device=x.device)
        if self.comm.rank == root:
            mean = torch.stack([loss.double() for loss in losses]).mean()
        self.comm.broadcast(mean, src=root)
        return mean

    @torch.no_grad()
    def forward(self, x):
        """What the whole model gives for `x`, on every rank and without a graph: for evaluation, not for training.

        All ranks call it together. Raises as `step` does.
        """
        modules = self._begin("forward", {"x": x})
        placement, last, error = self.program.placement, self.program.num_stages - 1, None
        for number, (rank, before) in enumerate(zip(placement, (placement[0], *placement), strict=False)):
            if before != rank:
                x = self._wire.hand_over(x, before, rank)
            if rank == self.comm.rank and x is not FAILED:
                try:
                    x = modules[number](x)
                    check_output(x, number)
                except Exception as caught:
                    x, error = FAILED, caught
        self._meeting.end(error)
        return self._wire.tell(x, placement[last])

    def __reduce__(self):
        raise TypeError(
            "a PipelineParallel belongs to its own rank and cannot be copied or pickled: use net.stages, in "
            "deepcopy(net.stages), torch.save(net.state_dict(), path) or AveragedModel(net.stages)"
        )


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
