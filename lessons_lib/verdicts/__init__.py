"""What the lessons put on trial: the verdicts read from their notebooks, and their cells run again."""

from .again import Again, run_again
from .read import VERDICTS, Trial, read_trials

__all__ = ["VERDICTS", "Again", "Trial", "read_trials", "run_again"]
