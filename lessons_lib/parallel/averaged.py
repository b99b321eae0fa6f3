"""What a gradient is the mean over already, so that nobody divides it twice (lesson 18)."""

from typing import NamedTuple

ADDED = (
    "gradients of parameters that lie on some ranks only, such as experts, are the mean over ranks already, and this "
    "backward pass would add a sum: clear them first by zero_grad(), and let average_gradients come after the last "
    "backward pass of a step"
)


class Averaged(NamedTuple):
    """A note that goes with a gradient and ends when somebody changes it.

    Attributes:
        axes: names of the axes over which it is the mean.
        was_sum: whether its parameter is cut over one of them, so that a backward pass would add a sum to the mean.
        version: of the gradient.
    """

    axes: tuple
    was_sum: bool
    version: int


def averaged(gradient):
    """The `Averaged` of a gradient, of no axis if there is none or the gradient has changed since."""
    note = getattr(gradient, "_averaged", None)
    return note if note is not None and note.version == gradient._version else Averaged((), False, 0)


def note_averaged(gradient, axes, was_sum):
    """Note that `gradient`, as it is now, is the mean over `axes`."""
    gradient._averaged = Averaged(tuple(axes), was_sum, gradient._version)


def scale(gradient, factor):
    """Multiply a gradient in place: of what it is the mean stays as it is."""
    note = averaged(gradient)
    gradient.mul_(factor)
    if note.axes:
        note_averaged(gradient, note.axes, note.was_sum)


def would_add(parameters):
    """Whether a gradient of these is the mean over ranks that hold other numbers, and a sum over them would follow."""
    return any(p.grad is not None and averaged(p.grad).was_sum for p in parameters)
