"""The capstone (lesson 28): a set-up from a seed is planned, predicted, run on real ranks, and scored."""

from .draw import draw
from .estimate import Estimate, estimate, run_time_s
from .net import whole
from .plans import NAIVE, can_run, runnable, searched
from .run import Outcome, run
from .score import Score, score
from .setup import Setup

__all__ = [
    "NAIVE",
    "Estimate",
    "Outcome",
    "Score",
    "Setup",
    "can_run",
    "draw",
    "estimate",
    "run",
    "run_time_s",
    "runnable",
    "score",
    "searched",
    "whole",
]
