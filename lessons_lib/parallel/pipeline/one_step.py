"""One batch on its way through a pipeline: what this rank computes, sends and receives for it."""

from .wire import FAILED


class OneStep:
    """Goes through a rank's list of steps once.

    When something raises here, or a block from elsewhere says that it has failed, the rank computes no more, but sends
    and receives to the end of its list, so that no other rank waits and nothing of this step is left on the wire.

    Args:
        program: a `Pipeline`.
        comm: the `Communicator`.
        wire: the `Wire`.
        stages: {number: `Stage`}, this rank's.
        modules: {number: module}.

    Attributes:
        losses: of the micro-batches, if the last stage is here.
        error: what was raised here first, or None.
    """

    def __init__(self, program, comm, wire, stages, modules):
        self._program, self._comm, self._wire = program, comm, wire
        self._stages, self._modules = stages, modules
        self.losses, self.error, self._has_failed = [], None, False

    def run(self, held, targets, loss_fn):
        """Do all steps.

        Args:
            held: {("activation", -1, part): rows of the batch}; it changes.
            targets: the same of the targets.
            loss_fn: (output, target) -> the loss of one micro-batch.
        """
        for step in self._program.steps[self._comm.rank]:
            if step.op == "send":
                block = held.pop(step.block, FAILED)
                self._wire.send(step.block, FAILED if self._has_failed else block, step.peer)
            elif step.op == "recv":
                held[step.block] = self._wire.receive(step.block, step.peer)
                self._has_failed |= held[step.block] is FAILED
            elif not self._has_failed:
                self._try(step, held, targets, loss_fn)
        self._wire.end()

    def _try(self, step, held, targets, loss_fn):
        try:
            with self._comm.compute(step.label):
                self._compute(step.op, *step.block, held, targets, loss_fn)
        except Exception as error:
            self.error, self._has_failed = error, True

    def _compute(self, op, number, part, held, targets, loss_fn):
        stage, last = self._stages[number], self._program.num_stages - 1
        if op == "forward":
            output = stage.forward(self._modules[number], part, held.pop(("activation", number - 1, part)))
            if number < last:
                self._wire.learn(number, output)
                held["activation", number, part] = output
            else:
                target = targets["activation", -1, part]
                num_parts = self._program.num_micro_batches
                self.losses.append(stage.end(part, lambda output: loss_fn(output, target), num_parts))
        if op in ("backward", "input"):
            gradient = held.pop(("gradient", number, part)) if number < last else None
            of_input = stage.backward(part, gradient)
            if number > 0:
                held["gradient", number - 1, part] = of_input
        if op in ("backward", "weight"):
            stage.weight(part)
