"""What a rank of a plan sends in a step, and what it holds, counted on real steps (lesson 28)."""

from ..memory import Meter
from .net import Net


def demand(comm, setup, plan):
    """Do two steps with a `Net` of its own; (bytes this rank sends in the second, the most bytes that it holds then).

    Memory is parameters, the optimiser's state, and what a step holds beyond them: activations, gradients. What ranks
    share to send messages is left out: a `Meter` sees it in the first step.
    """
    net = Net(comm, setup, plan)
    with Meter() as meter:
        net.step(0)
        net.optimizer.zero_grad()
        sent_before = comm.ledger.bytes_sent
        held_before = meter.peak = meter.now
        net.step(1)
    states = [tensor for state in net.optimizer.state.values() for tensor in state.values()]
    kept_bytes = sum(tensor.nbytes for tensor in [*net.pipeline.parameters(), *states])
    return comm.ledger.bytes_sent - sent_before, kept_bytes + meter.peak - held_before
