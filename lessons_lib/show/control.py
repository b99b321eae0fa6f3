"""Sliders and menus that re-draw a picture, and leave a still picture on a page that runs nothing.

The picture is an image in a `widgets.HTML`, which has an alternative text as a `widgets.Image` has not. There is no
`Output` widget and no pyplot, so it works beside a running cell too.
"""

import html
import time

import ipywidgets as widgets
from matplotlib.figure import Figure

from .picture import Picture

_ALARM = ("#B00020", "#FDECEA")  # its own background, since a dark theme makes dark red on its own hard to read
_LIVE_S = 0.3  # a picture that is drawn faster follows the slider while it moves


class Control:
    """Widgets that feed `draw`, and the picture it returns; displays itself.

    Attributes:
        widgets: {name: widget}.
        image: the `widgets.HTML` with the picture.
        message: the `widgets.HTML` that shows an error of `draw`.
        picture: the `Picture` that is shown now.
        still: the `Picture` for pages without a kernel; by default the first.
    """

    def __init__(self, draw, inputs, continuous=None, still=None, extra=()):
        self.widgets, self._draw = inputs, draw
        started_s = time.perf_counter()
        self.picture = self._drawn()
        cheap = time.perf_counter() - started_s < _LIVE_S if continuous is None else continuous
        self.still = still or self.picture
        self.image = widgets.HTML(layout=widgets.Layout(width="100%"))
        self.message = widgets.HTML()
        for widget in inputs.values():
            if widget.has_trait("continuous_update"):
                widget.continuous_update = cheap
            widget.observe(self._redraw, "value")
        self._show()
        self.box = widgets.VBox([*extra, *inputs.values(), self.image, self.message])

    @property
    def values(self):
        """{name: value} as `draw` gets them now."""
        return {name: widget.value for name, widget in self.widgets.items()}

    def _drawn(self):
        drawn = self._draw(**self.values)
        if not isinstance(drawn, (Picture, Figure)):
            raise TypeError(f"draw returned a {type(drawn).__name__}: a Picture or a matplotlib Figure is needed")
        return drawn if isinstance(drawn, Picture) else Picture(drawn)

    def _show(self):
        self.image.value = self.picture.html()

    def _redraw(self, change):
        try:
            self.picture = self._drawn()
            self._show()
            self.message.value = ""
        except Exception as error:
            values = ", ".join(f"{name}={value!r}" for name, value in self.values.items())
            text = f"{type(error).__name__}: {error}\nwith {values}. Above: the picture before."
            style = f"color:{_ALARM[0]};background:{_ALARM[1]};white-space:pre-wrap;padding:0.5em 0.8em"
            self.message.value = f'<pre role="alert" style="{style}">{html.escape(text)}</pre>'

    def _repr_mimebundle_(self, include=None, exclude=None):
        box = self.box._repr_mimebundle_() or {}
        view = "application/vnd.jupyter.widget-view+json"
        return self.still._repr_mimebundle_() | {mime: value for mime, value in box.items() if mime == view}


def control(draw, *, continuous=None, **specs):
    """Make one input per keyword, and the picture `draw(**values)`, which is drawn anew on every change.

    Args:
        draw: a function of the values by name that returns a `Picture` or a matplotlib `Figure`.
        continuous: whether to draw again while a slider moves (True) or when it is let go (False). By default the
            picture follows the slider if the first one was quick.
        specs: name=(low, high, step, start) makes a slider, of whole numbers if all four are; name=[choices] makes a
            slider over the choices if they are numbers, and else a menu; name=True or False makes a tick box; any
            ipywidgets input is taken as it is.

    Returns:
        A `Control`. It shows an error of a later picture below the picture before.

    Raises:
        TypeError, ValueError: a spec does not fit. An error of the first picture is raised too.
    """
    return Control(draw, {name: _widget(name, spec) for name, spec in specs.items()}, continuous)


def _widget(name, spec):
    look = {
        "description": name.replace("_", " "),
        "style": {"description_width": "initial"},
        "layout": widgets.Layout(width="min(32rem, 100%)"),
    }
    if isinstance(spec, widgets.Widget) and spec.has_trait("value"):
        spec.description = spec.description or look["description"]
        return spec
    if isinstance(spec, bool):
        return widgets.Checkbox(value=spec, indent=False, **look)
    if isinstance(spec, list) and spec:
        numbers = all(_is_number(choice) for choice in spec)
        return (widgets.SelectionSlider if numbers else widgets.Dropdown)(options=spec, value=spec[0], **look)
    if isinstance(spec, tuple) and len(spec) == 4 and all(map(_is_number, spec)):
        low, high, step, start = spec
        if not (low <= start <= high and low < high and step > 0):
            raise ValueError(f"{name}={spec!r}: low < high, step > 0 and low ≤ start ≤ high are needed")
        bounds = {"min": low, "max": high, "step": step, "value": start}
        if all(isinstance(each, int) for each in spec):
            return widgets.IntSlider(**bounds, **look)
        decimals = len(f"{step:.8f}".rstrip("0").partition(".")[2])
        return widgets.FloatSlider(**bounds, readout_format=f".{decimals}f", **look)
    accepted = "(low, high, step, start), a list of choices, a bool or a widget"
    raise TypeError(f"{name}={spec!r}: {accepted} is needed")


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
