"""The exercises, one module per lesson: `from lessons_lib.exercises import all_reduce as exercise`."""

from lessons_lib.exercises.core import Exercise, Mistake, Outcome, Verdict, all_exercises, by_rank

__all__ = ["Exercise", "Mistake", "Outcome", "Verdict", "all_exercises", "by_rank"]
