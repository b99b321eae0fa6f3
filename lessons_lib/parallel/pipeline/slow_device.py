"""A device of its own for each rank, emulated: many ranks on few cores then compute as if side by side (lesson 16)."""

import time
from contextlib import contextmanager


def emulate_device(comm, cost_s):
    """From now on each computing step of this rank takes a given time: it computes, and sleeps what is left.

    Ranks that sleep do not fight for cores, so that a timeline shows what a schedule does, not what the cores do. A
    trace of it says "emulated devices". `Links` do the same for wires.

    Args:
        comm: the `Communicator` whose `compute(label)` marks the steps: the one that the strategy has, perhaps a group.
        cost_s: {first word of the label: seconds}, such as {"forward": 1e-2, "backward": 2e-2}. A step that takes
            longer by itself is not shortened.

    Raises:
        ValueError: a cost is below 0.
    """
    for op, seconds in cost_s.items():
        if not seconds >= 0:
            raise ValueError(f"cost_s[{op!r}]={seconds!r}: 0 or more seconds are needed")
    compute = comm.compute

    @contextmanager
    def paced(label="compute"):
        with compute(label):
            start_s = time.perf_counter()  # within the span, which then lasts at least `cost_s`
            yield
            left_s = cost_s.get(label.partition(" ")[0], 0.0) - (time.perf_counter() - start_s)
            time.sleep(max(0.0, left_s))

    comm.compute = paced
    trace = comm.trace
    while trace is not None:  # what a group does counts in the trace of the launch too
        trace.source = f"emulated {'links and ' * ('links' in trace.source)}devices"
        trace = getattr(trace, "_parent", None)
