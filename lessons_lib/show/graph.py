"""The graph that a value was computed by: a box per node, an arrow per edge, gradients below the boxes."""

from .picture import picture
from .style import INK, colour, figure

_BELOW = -22  # points from the middle of a box to the top of its gradient


def graph(result, names=None, title="", *, done=(), height=3.0):
    """Draw the nodes that `result` was made from, each to the left of all that is made from it; a `Picture`.

    A box holds a node's name, its operation, and its value, or its shape where it is an array. Below it stands the
    gradient, of an array the length, where there is one.

    Args:
        result: a node: `data` (a tensor), `op`, `grad` (a tensor or None) and `edges`, (source, pull) pairs.
        names: {node: its name}.
        title: the title of the figure.
        done: the nodes that have handed their gradient on; the arrows into them are drawn in the gradients' colour.
        height: of the figure, in inches.
    """
    names, where = names or {}, _places(result)
    fig, ax = figure(9.5, height)
    boxes, red = {}, colour("star")
    frame = {"boxstyle": "round", "facecolor": "white", "edgecolor": colour("compute"), "linewidth": 1.5}
    for node, (x, y) in where.items():
        name = f"{names.get(node, '')} {node.op}".strip()
        value = tuple(node.data.shape) or _number(node.data)
        boxes[node] = ax.text(x, y, f"{name}\n{value}", ha="center", va="center", color=INK, bbox=frame)
        if node.grad is not None:
            below = {"xytext": (0, _BELOW), "textcoords": "offset points", "ha": "center", "va": "top"}
            ax.annotate(_number(node.grad.norm() if node.data.dim() else node.grad), (x, y), color=red, **below)
    bent = False
    for node in where:
        for source, _ in node.edges:
            far = where[node][0] - where[source][0] > 1
            ends = {"patchA": boxes[source].get_bbox_patch(), "patchB": boxes[node].get_bbox_patch()}
            look = {"arrowstyle": "->", "linewidth": 1.5, "color": red if node in done else "#999999"}
            look["connectionstyle"] = "arc3,rad=-0.3" if far else "arc3"
            ax.annotate("", where[node], where[source], arrowprops=ends | look)
            bent = bent or far
    xs, ys = zip(*where.values(), strict=True)
    ax.set(xlim=(min(xs) - 0.5, 0.5), ylim=(min(ys) - 0.7, max(ys) + (0.9 if bent else 0.4)), title=title)
    ax.set_axis_off()
    return picture(fig, title or f"the graph of {len(where)} nodes behind a value")


def _places(result):
    """{node: (x, y)}: x is minus the longest way to the result, and sources stand from top to bottom."""
    depth, waiting = {result: 0}, [result]
    while waiting:  # a node that turns out to be farther away is dealt with again
        node = waiting.pop()
        for source, _ in node.edges:
            if depth.get(source, 0) <= depth[node]:
                depth[source] = depth[node] + 1
                waiting.append(source)
    columns = {}
    for node, far in depth.items():
        columns.setdefault(far, []).append(node)
    return {n: (-far, (len(ns) - 1) / 2 - row) for far, ns in columns.items() for row, n in enumerate(ns)}


def _number(value):
    return f"{value.item():.3f}".replace("-", "−")
