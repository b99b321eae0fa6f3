"""Figures, players and controls of the lessons: `from lessons_lib import show`."""

from .control import Control, control
from .labels import draw_guess, mark
from .landscape import contours
from .lines import history, lines
from .style import COLOURS, Picture, colour, figure, picture, rank_colour
from .timeline import timeline

__all__ = [
    "COLOURS",
    "Control",
    "Picture",
    "colour",
    "contours",
    "control",
    "draw_guess",
    "figure",
    "history",
    "lines",
    "mark",
    "picture",
    "rank_colour",
    "timeline",
]
