"""Figures, players and controls of the lessons: `from lessons_lib import show`."""

from .bars import bars
from .control import control
from .graph import graph
from .hearts import hearts, watch
from .labels import draw_guess, mark
from .landscape import contours
from .lanes import lanes, owners
from .ledger import ledger
from .lines import history, lines
from .night import night
from .panels import panels
from .picture import picture
from .pipelines import pipelines
from .player import player
from .schedule import schedule
from .sequences import lookup, transformer_block, unrolled, weights
from .style import COLOURS, colour, figure, rank_colour
from .table import table
from .timeline import timeline, timelines

__all__ = [
    "COLOURS",
    "bars",
    "colour",
    "contours",
    "control",
    "draw_guess",
    "figure",
    "graph",
    "hearts",
    "history",
    "lanes",
    "ledger",
    "lines",
    "lookup",
    "mark",
    "night",
    "owners",
    "panels",
    "picture",
    "pipelines",
    "player",
    "rank_colour",
    "schedule",
    "table",
    "timeline",
    "timelines",
    "transformer_block",
    "unrolled",
    "watch",
    "weights",
]
