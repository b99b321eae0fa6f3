"""A run on the pager: how far it had come at each time, what struck it, and when it went back."""

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .labels import EdgeLabels, key
from .picture import picture
from .style import COLOURS, GREY, figure

_SAVED = COLOURS["tree"]
_NAMES = {
    "kill": "killed",
    "stop": "stopped",
    "disk": "lost the disk",
    "message": "lost a message",
    "flip": "bit flipped",
}


def night(score, title=""):
    """Draw the steps that were done against time; incidents, checkpoints, and the times of going back; a `Picture`.

    Args:
        score: the `Score` of a run on real ranks.
        title: the title of the figure; by default what the score says.

    Raises:
        ValueError: the score is that of a rehearsal, which has no times.
    """
    if not score.events:
        raise ValueError("score has no events: that of a run on real ranks is needed, and not of a rehearsal")
    zero_s = score.events[0].start_s
    fig, ax = figure(8.5, 3.8)
    done = sorted((event.end_s - zero_s, event.step + 1) for event in score.events if event.what == "step")
    back = [event for event in score.events if event.what == "recover"]
    points = [(0.0, 0), *done, *((event.end_s - zero_s, event.step) for event in back)]
    times, steps = zip(*sorted(points), strict=True)
    ax.step(times, steps, where="post", color=COLOURS["compute"], linewidth=1.8)
    for clock in {event.clock for event in back}:  # from when the first rank comes until the last has what was kept
        own = [event for event in back if event.clock == clock]
        start_s, end_s = min(event.start_s for event in own), max(event.end_s for event in own)
        ax.axvspan(start_s - zero_s, end_s - zero_s, color=GREY, alpha=0.25, linewidth=0)
    saved = {event.clock: (event.end_s - zero_s, event.step) for event in score.events if event.what == "save"}
    ax.scatter(*zip(*saved.values(), strict=True), s=26, color=_SAVED, zorder=4) if saved else None
    labels = EdgeLabels(ax, "top")
    for event in score.incidents:
        time_s = event.start_s - zero_s
        ax.axvline(time_s, color=COLOURS["star"], linewidth=1.0, linestyle=(0, (2, 2)))
        label = f"{event.rank}: {_NAMES.get(event.what, event.what)}"
        labels.add((time_s, 1), ax.get_xaxis_transform(), label, COLOURS["star"])
    ax.set(xlabel="time (s)", ylabel="steps done", ylim=(0, 1.06 * score.num_steps), xlim=(0, 1.01 * score.time_s))
    samples = [
        (Line2D([], [], color=COLOURS["compute"], linewidth=1.8), "steps done"),
        (Line2D([], [], color=_SAVED, marker="o", linestyle=""), "checkpoint"),
        (Patch(color=GREY, alpha=0.3), "going back"),
        (Line2D([], [], color=COLOURS["star"], linestyle=(0, (2, 2))), "rank: what strikes it"),
    ]
    key(ax, samples)
    ax.set_title(title or str(score))
    return picture(fig, f"{title or 'a run on the pager'}: steps done against time, with incidents and checkpoints")
