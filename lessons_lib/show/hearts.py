"""How ranks are, from their heartbeats: a picture, which can follow them while they train."""

import threading
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from IPython.display import display

from ..monitor import beats
from .lines import lines
from .picture import picture
from .style import figure


def hearts(folder, title="Heartbeats"):
    """Draw what the ranks said of themselves: steps, throughput, cores and memory, a curve per rank; a `Picture`.

    A curve that ends before the others is that of a rank that has fallen silent.

    Args:
        folder: that of their `Heart`s.
        title: the title of the figure.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no rank has beaten in it yet.
    """
    told = beats(folder)
    if not told:
        raise ValueError(f"folder={str(folder)!r}: no rank has beaten in it yet")
    zero_s = min(each[0].time_s for each in told.values())
    fig, axes = figure(8.5, 7.0, rows=4, sharex=True)
    panels = {
        "steps done": [[beat.step for beat in each] for each in told.values()],
        "samples per s": [_rates(each) for each in told.values()],
        "cores in use": [[beat.cpu for beat in each] for each in told.values()],
        "memory (MB)": [[beat.memory_bytes / 1e6 for beat in each] for each in told.values()],
    }
    times = [[beat.time_s - zero_s for beat in each] for each in told.values()]
    for ax, (label, values) in zip(axes, panels.items(), strict=True):
        curves = {f"rank {rank}": (x, y) for rank, x, y in zip(told, times, values, strict=True)}
        lines(curves, "time (s)" if ax is axes[-1] else "", label, title if ax is axes[0] else "", ax=ax)
        ax.set_ylim(bottom=0)
    return picture(fig, f"{title}: steps, throughput, cores and memory of each rank against time")


def _rates(each):
    """Samples per second since the beat before; nan for the first, and where another process has come."""
    found = [float("nan")]
    for before, beat in pairwise(each):
        samples, time_s = beat.samples - before.samples, beat.time_s - before.time_s
        found.append(samples / time_s if samples >= 0 < time_s else float("nan"))
    return found


@contextmanager
def watch(folder, every_s=1.0, title="Heartbeats"):
    """Show `hearts(folder)` below the cell, anew every `every_s` seconds while the body runs, and at its end.

        with show.watch("run/beats"):
            launch(train, world_size=4)

    What stays on the page is the last picture, a still one. Nothing is shown if no rank has beaten.

    Args:
        folder: that of the ranks' `Heart`s; it need not be there yet.
        every_s: seconds from one picture to the next.
        title: of the figure.
    """
    is_over, shown = threading.Event(), []

    def draw():
        if Path(folder).is_dir() and beats(folder):
            now = hearts(folder, title)
            if shown:
                shown[0].update(now)
            else:
                shown.append(display(now, display_id=True))

    def follow():
        while not is_over.wait(every_s):
            draw()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        draw()
